"""One local Ray for all cluster tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.connect import ClusterInfo, connected
from cluster.fleet import Fleet
from tests.cluster.workers import Worker

MakeFleet = Callable[..., Fleet]


@pytest.fixture(scope="session")
def cluster() -> Iterator[ClusterInfo]:
    with connected(None, num_cpus=2, temp_dir=None, timeout_s=60, object_store_bytes=128 * 1024**2) as info:
        yield info


@pytest.fixture
def make_fleet(cluster: ClusterInfo, tmp_path: Path) -> Iterator[MakeFleet]:
    """Makes fleets of `Worker` and shuts them down after the test."""
    fleets: list[Fleet] = []
    worker: Any = ray.remote(num_cpus=0.1)(Worker)

    def make(size: int = 2, **options: Any) -> Fleet:
        bounds = {"task_timeout_s": 20.0, "start_timeout_s": 30.0, "swap_timeout_s": 10.0}
        fleets.append(Fleet(lambda index: worker.remote(index, tmp_path), size, **{**bounds, **options}))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.shutdown(20)
