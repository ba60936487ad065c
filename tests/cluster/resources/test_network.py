"""Ranks on nodes with addresses of their own, as on a real cluster: on one machine all other tests share an address."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.resources.namespaces import START_NODE, RayNodes, namespaces, not_permitted, ray_nodes
from tests.loop.run.small_run import CONFIG, write_config
from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(not_permitted()), reason=not_permitted())]

Play = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """Two nodes with one and two CPUs, started by `start_node.sh`, which share a token."""
    with namespaces(2) as (head, other), ray_nodes([head, other], (2, 1)) as found:
        yield found


@pytest.fixture
def play(nodes: RayNodes, tmp_path: Path) -> Play:
    """Plays a scenario of `in_namespaces` on the head."""

    def play(scenario: str) -> dict[str, Any]:
        module = "tests.cluster.resources.in_namespaces"
        done = nodes.run(sys.executable, "-m", module, scenario, nodes.address, str(tmp_path), str(nodes.unshared))
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return play


def test_ranks_train_across_nodes_as_on_one_node_and_weights_travel_between_them(play: Play) -> None:
    found = play("train")
    assert found["STRICT_SPREAD"] == found["STRICT_PACK"] == found["sent"]


def test_a_rendezvous_that_is_refused_is_named_at_once_with_what_to_set(play: Play) -> None:
    found = play("refused")
    assert re.search(r"rank \d of 2, at 10\.77\.0\.\d, cannot reach .*refused.*GLOO_SOCKET_IFNAME=lo.*set both variables", found["error"])
    assert not found["was_lost"], "ranks that live are not restarted"
    assert found["seconds"] < 40


def test_a_node_without_a_file_or_with_another_run_folder_is_named_and_so_is_a_wrong_token(play: Play) -> None:
    found = play("differ")
    (alike, no_file), (no_run_folder,) = found["shared"], found["unshared"]
    assert alike == ""
    assert re.match(r"node 10\.77\.0\.2 \(.*\): .*/photos is not there or cannot be read; put it on every node", no_file)
    assert re.match(r"node 10\.77\.0\.2 \(.*\): the run folder .* does not hold what the driver has written there; give", no_run_folder)
    assert not [name for name in found["left"] if name.startswith(".nodes")]
    problems = ["refuses the token in RAY_AUTH_TOKEN; ", "asks for a token, and there is none in /", "set it to token"]
    for line, problem in zip(found["tokens"], problems, strict=True):
        assert problem in line


def test_a_machine_with_another_token_does_not_become_a_node(nodes: RayNodes) -> None:
    refused = nodes.run("bash", str(START_NODE), "worker", nodes.address, RAY_AUTH_TOKEN="wrong" * 8)
    assert refused.returncode == 1
    assert re.fullmatch(r"the Ray cluster at \S+ refuses the token in RAY_AUTH_TOKEN; .*\n", refused.stderr)


def test_a_run_that_is_submitted_to_a_cluster_with_a_token_finishes(nodes: RayNodes, tmp_path: Path) -> None:
    sizes = {"rounds": 1, "generation": {"num_shards": 2}, "training": {**CONFIG["training"], "num_steps": 2}}
    config, run_dir = write_config(tmp_path, **sizes, cluster={"num_engines": 2, "trainer_ranks": 2}), tmp_path / "run"
    command = ["python", "-m", "loop", "run", str(config), "--resume", "--run-dir", str(run_dir)]
    submit = ["ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--working-dir", str(ROOT), "--", *command]
    refused = nodes.run(*submit, RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    assert "Missing authentication token" in refused.stderr
    assert not run_dir.exists()
    done = nodes.run(*submit, RAY_AUTH_MODE="token")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (run_dir / "rounds" / "0001" / "commit.json").exists()
