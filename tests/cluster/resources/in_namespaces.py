"""Trains, swaps and compares Ray nodes with addresses of their own:

    python -m tests.cluster.resources.in_namespaces SCENARIO ADDRESS FOLDER UNSHARED

Prints what came of it, as JSON. Runs on one of the nodes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from actors.engines.weights import digest_of
from actors.trainer import TrainerRank
from actors.training.job import RankLostError, TrainerError
from cluster.fleet.weights import prepare
from cluster.resources.connect import connected
from cluster.resources.head import check_head
from cluster.resources.placement import RankPlace
from cluster.training.group import Bounds, RankOptions, TrainerGroup
from loop.setup.nodes import check_nodes
from loop.store.storage.local import LocalStorage
from tests.actors.training.helpers import Shapes, job_of, save_base
from tests.cluster.workers import received

TRAIN_S = 150.0


@dataclass
class Places:
    """Two ranks in the bundles of a group."""

    group: PlacementGroup

    def place_ranks(self, timeout_s: float) -> list[RankPlace]:
        assert self.group.wait(timeout_s)
        return [RankPlace("", PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=n)) for n in (0, 1)]

    def is_lost(self, place: RankPlace) -> bool:
        return False


def train(folder: Path) -> dict[str, Any]:
    """The same job on ranks of two nodes and on ranks of one; the weights of the first then travel between the nodes."""
    found = {}
    for strategy in ("STRICT_SPREAD", "STRICT_PACK"):
        places = Places(placement_group([{"CPU": 0.5}, {"CPU": 0.5}], strategy=strategy))
        group = TrainerGroup(TrainerRank, 2, RankOptions(num_cpus=0.5, placement=places))
        job = job_of(save_base(folder / "base"), folder / strategy, num_steps=2)
        found[strategy] = group.train(job, Shapes(), Bounds(TRAIN_S)).digest
        group.shutdown()
        remove_placement_group(places.group)
    return {**found, "sent": send(folder / "STRICT_SPREAD")}


def send(checkpoint: Path) -> str:
    """Digest of the weights that a process on one node receives from a sender on the other."""
    here, there = (NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes())
    update = prepare(checkpoint, "r1", "native", {"scheduling_strategy": here})
    assert update.stream is not None
    transfer = update.stream.open("gloo", update.digest, 1)
    sent = update.stream.send(transfer)
    tensors = ray.get(ray.remote(received).options(scheduling_strategy=there).remote(transfer), timeout=60)
    ray.get(sent, timeout=20)
    return digest_of(tensors)


def refused(folder: Path) -> dict[str, Any]:
    """A job whose ranks offer each other their loopback address."""
    group = TrainerGroup(TrainerRank, 2, RankOptions(env_vars={"GLOO_SOCKET_IFNAME": "lo"}))
    started = time.monotonic()
    with pytest.raises(TrainerError) as refusal:
        group.train(job_of(save_base(folder / "base"), folder / "out"), Shapes(), Bounds(TRAIN_S, max_restarts=3))
    return {"error": str(refusal.value), "was_lost": isinstance(refusal.value, RankLostError), "seconds": time.monotonic() - started}


def differ(folder: Path, unshared: Path) -> dict[str, Any]:
    """What is said when the other node has everything, lacks a file, or has another run folder."""
    photos = unshared / "photos"
    photos.mkdir()
    shared = LocalStorage(folder)
    return {
        "shared": [told(lambda: check_nodes([str(folder)], shared, 2, 60)), told(lambda: check_nodes([str(photos)], shared, 2, 60))],
        "unshared": [told(lambda: check_nodes([], LocalStorage(unshared), 2, 60))],
        "left": [path.name for path in (*folder.iterdir(), *unshared.iterdir())],
    }


def told(check: Callable[[], None]) -> str:
    """The text of an error that a user can fix; empty if there is none."""
    try:
        check()
    except ValueError as error:
        return str(error)
    return ""


def with_environment(address: str, **variables: str) -> str:
    """What is said to a driver with these variables."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        return told(lambda: check_head(address, address, time.monotonic() + 10))
    finally:
        os.environ.clear()
        os.environ.update(before)


def refused_tokens(address: str, folder: Path) -> list[str]:
    return [
        with_environment(address, RAY_AUTH_TOKEN="wrong" * 8),
        with_environment(address, HOME=str(folder)),
        with_environment(address, RAY_AUTH_MODE="disabled"),
    ]


if __name__ == "__main__":
    scenario, address, folder, unshared = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    tokens = refused_tokens(address, folder) if scenario == "differ" else []
    scenarios: dict[str, Callable[[], dict[str, Any]]] = {
        "train": lambda: train(folder),
        "refused": lambda: refused(folder),
        "differ": lambda: {"tokens": tokens, **differ(folder, unshared)},
    }
    with connected(address, num_cpus=None, temp_dir=None, timeout_s=60):
        deadline = time.monotonic() + 60
        while sum(node["Alive"] for node in ray.nodes()) < 2:
            assert time.monotonic() < deadline, "the second node did not join"
            time.sleep(0.5)
        print(json.dumps(scenarios[scenario]()))
