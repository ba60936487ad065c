"""Engines that sleep hold nothing, take no task, and serve again only after a completed swap; those that cannot are replaced."""

import os
import signal
from pathlib import Path

import psutil
import pytest
import ray

from actors.engines.errors import WeightMismatchError
from cluster.errors import FleetError
from cluster.fleet.fleet import Fleet
from cluster.fleet.health import State
from tests.cluster.conftest import MakeFleet
from tests.cluster.fleet.test_fleet_swap import served
from tests.cluster.workers import update_of, wait_while, weights

OLD, NEW = update_of(weights(1.0), "r1"), update_of(weights(2.0), "r2")


def asleep(folder: Path) -> dict[int, int]:
    """Processes of the engines that have fallen asleep, by index."""
    return {int(mark.name.split("_")[1]): int(mark.read_text()) for mark in folder.glob("asleep_*")}


def slept(fleet: Fleet, folder: Path) -> dict[int, int]:
    fleet.sleep()
    assert fleet.states() == [State.ASLEEP, State.ASLEEP]
    assert fleet.engines == []
    return asleep(folder)


def test_all_engines_sleep_and_wake_to_new_weights_in_their_processes(fleet: Fleet, shared_folder: Path) -> None:
    num_restarts, pids = fleet.num_restarts, slept(fleet, shared_folder)
    assert set(pids) == {0, 1}
    swaps = fleet.swap(NEW)
    assert {swap.attestation.version for swap in swaps} == {"r2"}
    assert served(fleet) == {("r2", 2.0)}
    assert (fleet.num_restarts, all(map(psutil.pid_exists, pids.values()))) == (num_restarts, True)


def test_they_wake_to_the_same_weights_without_a_roll(fleet: Fleet, shared_folder: Path) -> None:
    slept(fleet, shared_folder)
    assert (fleet.weight_version, len(fleet.complete_roll(num_engines=1))) == ("r1", 3), "two swaps before, and one more"
    assert ("r1", 1.0) in served(fleet)
    fleet.complete_roll()
    assert fleet.states() == [State.HEALTHY, State.HEALTHY]


def test_a_run_wakes_them_and_no_task_meets_a_sleeping_engine(fleet: Fleet, shared_folder: Path) -> None:
    slept(fleet, shared_folder)
    results = [result for _, result in fleet.run(range(12), lambda engine, task: engine.serve.remote(task))]
    assert {(version, value) for _, version, value in results} == {("r1", 1.0)}
    assert len(results) == 12


def test_an_engine_that_is_still_coming_over_is_waited_for(fleet: Fleet, shared_folder: Path) -> None:
    fleet.roll(NEW)
    fleet.complete_roll(num_engines=1)
    assert set(slept(fleet, shared_folder)) == {0, 1}
    assert {mark.name for mark in shared_folder.glob("swapping_*_r2")} == {"swapping_0_r2", "swapping_1_r2"}


def test_time_asleep_is_not_time_out_of_service(fleet: Fleet, shared_folder: Path) -> None:
    slept(fleet, shared_folder)
    assert [slot.health.out_of_service_s for slot in fleet._slots] == [0.0, 0.0]


def test_an_update_that_is_refused_on_waking_brings_them_to_the_old_weights(fleet: Fleet, shared_folder: Path) -> None:
    num_restarts = fleet.num_restarts
    slept(fleet, shared_folder)
    with pytest.raises(WeightMismatchError, match="r2"):
        fleet.swap(update_of(weights(2.0), "r2", digest="0" * 64))
    assert (fleet.weight_version, served(fleet), len(fleet.engines)) == ("r1", {("r1", 1.0)}, 2)
    assert fleet.num_restarts == num_restarts


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_an_engine_that_dies_or_hangs_asleep_is_replaced_when_it_is_to_wake(make_fleet: MakeFleet, tmp_path: Path, number: int) -> None:
    fleet = make_fleet(2, swap_timeout_s=2.0)
    fleet.start(OLD)
    pids = slept(fleet, tmp_path)
    os.kill(pids[0], number)
    assert {swap.engine for swap in fleet.swap(NEW)} == {0, 1}
    assert (fleet.num_restarts, served(fleet)) == (1, {("r2", 2.0)})
    wait_while(lambda: psutil.pid_exists(pids[0]))


@pytest.mark.parametrize("fault", ["break_sleep_1", "hold_sleep_1"])
def test_an_engine_that_fails_or_hangs_on_falling_asleep_gives_its_memory_back_by_its_end(
    make_fleet: MakeFleet, tmp_path: Path, fault: str
) -> None:
    fleet = make_fleet(2, swap_timeout_s=2.0)
    fleet.start(OLD)
    pid = int((tmp_path / "constructing_1").read_text())
    (tmp_path / fault).touch()

    fleet.sleep()

    assert fleet.states() == [State.ASLEEP, State.DEAD]
    assert not psutil.pid_exists(pid), "it is waited for"
    (tmp_path / fault).unlink()
    assert {swap.engine for swap in fleet.swap(NEW)} == {0, 1}
    assert (fleet.num_restarts, served(fleet)) == (1, {("r2", 2.0)})


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_an_engine_that_dies_or_hangs_while_it_wakes_is_replaced(make_fleet: MakeFleet, tmp_path: Path, number: int) -> None:
    fleet = make_fleet(1, swap_timeout_s=2.0)
    fleet.start(OLD)
    fleet.sleep()
    holding = tmp_path / "hold_swap_0_r2"
    holding.touch()
    fleet.roll(NEW)
    results = fleet.run(range(4), lambda engine, task: engine.serve.remote(task))
    fleet._rolling.advance(lambda _: 0)
    wait_while(lambda: not (tmp_path / "swapping_0_r2").exists() or not (tmp_path / "swapping_0_r2").read_text())
    os.kill(int((tmp_path / "swapping_0_r2").read_text()), number)
    holding.unlink()
    assert {result[1:] for _, result in results} == {("r2", 2.0)}
    assert fleet.num_restarts == 1


def test_where_all_are_lost_asleep_and_no_restart_is_left_the_fleet_says_so(make_fleet: MakeFleet, tmp_path: Path) -> None:
    fleet = make_fleet(1, max_restarts_per_engine=0)
    fleet.start(OLD)
    fleet.sleep()
    os.kill(asleep(tmp_path)[0], signal.SIGKILL)
    with pytest.raises(FleetError, match="engine 0 cannot be brought to r2"):
        fleet.swap(NEW)


def test_a_sleeping_fleet_shuts_down(make_fleet: MakeFleet, tmp_path: Path) -> None:
    fleet = make_fleet(1)
    fleet.start(OLD)
    fleet.sleep()
    fleet.shutdown(20)
    assert not psutil.pid_exists(asleep(tmp_path)[0])
    assert ray.is_initialized()
