"""A node is lost in the middle of a run: it goes on where there is room, or ends in time with an error that says what is missing. A node
joins: it is used."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.resources.on_nodes import JUDGE_S, NUM_SHARED_TASKS, NUM_TASKS, ROOM_S, SPARE_BYTES, START_S, SWAP_S
from tests.cluster.workers import wait_while
from tests.paths import ROOT

pytestmark = pytest.mark.slow


HEARTBEATS_S = 30.0
"""Within which Ray notices that a node is gone."""


def play(scenario: str, folder: Path) -> dict[str, Any]:
    """In processes of its own: a process connects to one cluster, and ends with it."""
    command = [sys.executable, "-m", "tests.cluster.resources.on_nodes", scenario, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_actors_of_a_lost_node_move_to_another_and_where_there_is_none_left_the_run_ends_and_says_what_is_missing(tmp_path: Path) -> None:
    found = play("engines and judges move", tmp_path)
    first, second = found["first"], found["second"]
    assert (sorted(first["done"]), first["error"]) == ([*range(NUM_TASKS)], "")
    assert first["engine_restarts"] == 1, "for the node, and not for each engine or attempt"
    assert first["seconds"] < HEARTBEATS_S + 2 * (START_S + SWAP_S)
    assert "NotEnoughResourcesError: a node is lost and the rest has no room for" in second["error"]
    assert "the cluster has 0 CPU(s)" in second["error"]
    assert second["seconds"] < HEARTBEATS_S + max(ROOM_S, JUDGE_S)


def test_a_fleet_that_loses_nodes_moves_shrinks_and_goes_on_and_a_node_counts_once(tmp_path: Path) -> None:
    """Five engines on three nodes with room for three each: the first loss leaves room for all, the second does not."""
    found = play("a fleet shrinks", tmp_path)
    first, second = found["first"], found["second"]
    assert found["num_nodes"] == 2, "colocated bundles are packed"
    for one in (first, second):
        assert (sorted(one["done"]), one["error"], one["engine_restarts"]) == ([*range(NUM_TASKS)], "", 1)
    assert second["num_healthy"] in (2, 3), "what is left, and one that may still be moving at the end"


def test_a_node_that_joins_in_the_middle_of_a_run_gets_engines_which_take_their_share(tmp_path: Path) -> None:
    """Engines that sleep, two on each node: from when the new ones serve, half of the work is theirs."""
    found = play("a node joins", tmp_path)
    assert (found["size"], found["num_nodes"], found["restarts"]) == (2, 2, 0)
    done = [*found["before"], *found["shared"]]
    assert sorted(task for task, _ in done) == [*range(len(done))]
    engines = [engine for _, engine in found["shared"]]
    assert len(engines) >= NUM_SHARED_TASKS, "they have joined in time"
    assert abs(sum(engine >= 2 for engine in engines) / len(engines) - 0.5) < 0.2
    assert found["swapped"] == [0, 1, 2, 3], "later swaps include them"
    assert [line.partition(" on ")[0] for line in found["incidents"]] == ["engine 2 joins", "engine 3 joins"]


def test_a_trainer_rank_of_a_lost_node_moves_to_another_and_goes_on_from_its_last_step(tmp_path: Path) -> None:
    found = play("ranks move", tmp_path)
    assert found["num_nodes"] == 3, "bundles with one actor are spread"
    assert found["kept"] >= found["lost_at"] > 0
    assert found["digests"][0] == found["digests"][1]


@pytest.mark.skipif(psutil.virtual_memory().available < 2 * SPARE_BYTES, reason="needs 8 GiB of free memory, to use up half of them")
def test_an_engine_that_is_killed_for_its_memory_is_replaced(tmp_path: Path) -> None:
    found = play("memory", tmp_path)
    assert (sorted(found["done"]), found["error"]) == ([*range(NUM_TASKS)], "")
    assert found["engine_restarts"] >= 1


def test_a_driver_whose_ray_stands_still_ends_in_time_with_a_name_and_leaves_no_process(tmp_path: Path) -> None:
    """`make chaos-short` kills the raylet of a real run."""
    command = [sys.executable, "-m", "tests.cluster.resources.on_nodes", "local", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as driver:
        try:
            wait_while(lambda: not (tmp_path / "lose").exists(), bound_s=120)
            processes = psutil.Process(driver.pid).children(recursive=True)
            next(process for process in processes if process.name() == "gcs_server").suspend()
            started = time.monotonic()
            _, written = driver.communicate(timeout=120)
        finally:
            driver.kill()
    assert time.monotonic() - started < 45
    assert driver.returncode == 1
    assert re.search(r"NodeLostError: gcs_server \(process \d+\) of the local Ray stands still; continue with `vigc resume`", written)
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []
