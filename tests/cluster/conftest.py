"""One local Ray for all cluster tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.fleet.fleet import Fleet
from cluster.fleet.slot import engine_actor
from cluster.resources.connect import ClusterInfo, connected
from tests.cluster.workers import Worker, update_of, weights

MakeFleet = Callable[..., Fleet]


@pytest.fixture(scope="package")
def cluster() -> Iterator[ClusterInfo]:
    with connected(None, num_cpus=2, temp_dir=None, timeout_s=60, object_store_bytes=128 * 1024**2) as info:
        yield info


def _fleet(folder: Path, size: int, **options: Any) -> Fleet:
    worker = engine_actor(Worker, num_cpus=0)
    bounds = {"task_timeout_s": 20.0, "start_timeout_s": 30.0, "swap_timeout_s": 10.0}
    return Fleet(lambda index: worker.remote(index, folder), size, **{**bounds, **options})


@pytest.fixture(scope="package")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shared fleet's workers look for marks."""
    return tmp_path_factory.mktemp("shared_fleet")


@pytest.fixture(scope="package")
def _shared_fleet(cluster: ClusterInfo, shared_folder: Path) -> Iterator[Fleet]:
    fleet = _fleet(shared_folder, 2, max_restarts_per_engine=100, max_restarts=100)
    fleet.start(update_of(weights(0.0), "r0"))
    yield fleet
    fleet.shutdown(20)


@pytest.fixture
def fleet(_shared_fleet: Fleet, shared_folder: Path) -> Fleet:
    """Two engines that serve `weights(1.0)` as `r1`, and no marks: shared by the tests, as a process with torch takes seconds to
    start."""
    for mark in shared_folder.iterdir():
        mark.unlink()
    _shared_fleet.swap(update_of(weights(1.0), "r1"))
    return _shared_fleet


@pytest.fixture
def make_fleet(cluster: ClusterInfo, tmp_path: Path) -> Iterator[MakeFleet]:
    """Makes fleets of a test's own, whose workers look for marks in `tmp_path`, and shuts them down after the test."""
    fleets: list[Fleet] = []

    def make(size: int, **options: Any) -> Fleet:
        fleets.append(_fleet(tmp_path, size, **options))
        return fleets[-1]

    yield make
    for each in fleets:
        each.shutdown(20)
