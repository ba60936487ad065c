"""A fleet ends a swap at the new weights or at the old, never at both."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray
import torch

from actors.engines.base import WeightUpdate
from actors.engines.errors import WeightMismatchError
from actors.engines.weights import digest_of
from cluster.errors import FleetError
from cluster.fleet.fleet import Fleet
from cluster.fleet.health import State
from cluster.fleet.weights import TRANSPORTS, prepare
from tests.cluster.conftest import MakeFleet
from tests.cluster.workers import save, update_of, weights


def served(fleet: Fleet) -> set[tuple[str, float]]:
    answers = ray.get([engine.serve.remote(0) for engine in fleet.engines], timeout=20)
    return {(version, value) for _, version, value in answers}


def test_every_transport_of_whole_weights_swaps_in_place(fleet: Fleet, tmp_path: Path) -> None:
    num_restarts = fleet.num_restarts
    for number, transport in enumerate(sorted(TRANSPORTS.keys() - {"adapter"}), start=1):
        folder = save(tmp_path / transport, weights(float(number)))
        swaps = fleet.swap(prepare(folder, f"r{number}", transport))
        assert {swap.attestation.digest for swap in swaps} == {digest_of(weights(float(number)))}
        assert served(fleet) == {(f"r{number}", float(number))}
        assert fleet.weight_version == f"r{number}"
    assert fleet.num_restarts == num_restarts


@pytest.mark.parametrize(
    "bad",
    [
        lambda: update_of(weights(2.0), "r2", digest="0" * 64),
        lambda: update_of({**weights(2.0), "head.weight": torch.zeros(4, 4)}, "r2"),
    ],
    ids=["digest", "shape"],
)
def test_an_update_that_does_not_fit_changes_nothing(fleet: Fleet, bad: Callable[[], WeightUpdate]) -> None:
    num_restarts = fleet.num_restarts
    with pytest.raises(WeightMismatchError, match="r2"):
        fleet.swap(bad())
    assert served(fleet) == {("r1", 1.0)}
    assert (fleet.states(), fleet.num_restarts, fleet.weight_version) == ([State.HEALTHY] * 2, num_restarts, "r1")
    fleet.swap(update_of(weights(3.0), "r3"))
    assert served(fleet) == {("r3", 3.0)}


@pytest.mark.parametrize("fault", ["break_swap_1_r2", "lie_1_r2"])
def test_a_fleet_that_cannot_be_brought_over_goes_back(fleet: Fleet, shared_folder: Path, fault: str) -> None:
    (shared_folder / fault).touch()
    with pytest.raises(FleetError, match="engine 1 cannot be brought to r2"):
        fleet.swap(update_of(weights(2.0), "r2"))
    assert len(fleet.engines) == 2
    assert served(fleet) == {("r1", 1.0)}
    (shared_folder / fault).unlink()
    fleet.swap(update_of(weights(2.0), "r2"))
    assert served(fleet) == {("r2", 2.0)}


def test_an_engine_that_dies_between_swaps_comes_back_at_the_new_weights(fleet: Fleet) -> None:
    num_restarts = fleet.num_restarts
    ray.kill(fleet.engines[0])
    fleet.swap(update_of(weights(2.0), "r2"))
    assert served(fleet) == {("r2", 2.0)}
    assert (fleet.num_restarts, len(fleet.engines)) == (num_restarts + 1, 2)


def test_a_fleet_that_cannot_start_leaves_nothing_running(make_fleet: MakeFleet) -> None:
    before = engine_processes()
    with pytest.raises(WeightMismatchError, match=r"head\.weight"):
        make_fleet(1).start(update_of({"head.weight": torch.zeros(2)}, "r1"))
    assert engine_processes() <= before


def test_nothing_runs_after_shutdown(make_fleet: MakeFleet) -> None:
    before = engine_processes()
    fleet = make_fleet(2)
    attested = [(swap.attestation.version, swap.attestation.digest) for swap in fleet.start(update_of(weights(1.0), "r1"))]
    assert attested == [("r1", digest_of(weights(1.0)))] * 2
    assert len(engine_processes() - before) == 2
    fleet.shutdown(20)
    assert engine_processes() <= before
    assert fleet.states() == [State.DEAD] * 2
    fleet.shutdown(20)


def engine_processes() -> set[psutil.Process]:
    return {process for process in psutil.process_iter(["cmdline"]) if "ray::Worker" in " ".join(process.info["cmdline"] or [])}
