"""A run on Ray nodes that share no folder: each has a cache of its own, and the run is in an S3 server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from loop.store.storage import open_storage
from tests.loop.run.small_run import first_commits, wait_until, write_config
from tests.paths import ROOT

pytestmark = pytest.mark.slow

NUM_NODES = 3
STEPS = "checkpoints/round-0001.steps"
STORE_BYTES = 100 * 1024**2


@pytest.fixture
def nodes(tmp_path: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cluster, dict[Path, Any]]]:
    """A head without CPUs, and nodes by their cache folders."""
    for name, value in {"RAY_health_check_period_ms": "500", "RAY_health_check_timeout_ms": "2000", "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES})
    try:
        found: dict[Path, Any] = {}
        for number in range(NUM_NODES):
            cache = tmp_path / f"node-{number}"
            monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
            found[cache] = machines.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "driver"))
        yield machines, found
    finally:
        machines.shutdown()


def test_a_run_whose_nodes_share_nothing_and_which_loses_that_of_its_rank_is_the_run_of_one_machine(
    nodes: tuple[Cluster, dict[Path, Any]], s3_uri: str, tmp_path: Path, finished: tuple[Path, str]
) -> None:
    machines, by_cache = nodes
    cluster = {"address": machines.address, "colocated": False, "num_engines": 1, "trainer_ranks": 1, "num_filters": 1}
    config = write_config(tmp_path, rounds=1, cluster=cluster, tracking={"enabled": False})
    storage = open_storage(s3_uri)
    command = [sys.executable, "-m", "loop", "run", str(config), "--run-dir", s3_uri]
    with (tmp_path / "errors").open("w") as errors:
        driver = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=errors)
    try:
        wait_until(lambda: storage.names(f"{STEPS}/samples") or driver.poll() is not None, 120)
        rank, lost = rank_below(tmp_path)
        wait_until(lambda: "rank-0.json" in storage.names(f"{STEPS}/step-00000002") or driver.poll() is not None, 120)
        rank.suspend()  # it would be done before its node is lost
        machines.remove_node(by_cache[lost], allow_graceful=False)
        with suppress(psutil.NoSuchProcess):
            rank.kill()
        assert driver.wait(120) == 0, (tmp_path / "errors").read_text()
    finally:
        driver.kill()
    log = " ".join(storage.read("run.log").decode().split())
    assert "a node of the ranks is lost" in log
    assert "training resumed after step 2" in log
    assert first_commits(s3_uri, 1) == first_commits(finished[0], 1)
    assert [path for path in tmp_path.rglob("*.pt") if not path.is_relative_to(lost)] == [], "unfinished work is left on a node"


def rank_below(folder: Path) -> tuple[psutil.Process, Path]:
    """The trainer rank of this test, and the cache of its node."""
    ranks = [process for process in psutil.process_iter(["name", "environ"]) if "TrainerRank" in process.info["name"]]
    caches = [(process, Path((process.info["environ"] or {}).get("XDG_CACHE_HOME", os.devnull))) for process in ranks]
    (found,) = [(process, cache) for process, cache in caches if cache.is_relative_to(folder)]
    return found
