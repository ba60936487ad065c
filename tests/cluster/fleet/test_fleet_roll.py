"""A rolling swap: one engine tries the new weights, serves while the others follow, and no shard mixes versions."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.actor import ActorHandle

from actors.engines.errors import WeightMismatchError
from actors.engines.weights import digest_of
from cluster.errors import FleetError
from cluster.fleet.dispatch import Submit
from cluster.fleet.fleet import Fleet
from cluster.fleet.health import State
from tests.cluster.conftest import MakeFleet
from tests.cluster.workers import Relay, update_of, wait_while, weights

VALUES = {"r1": 1.0, "r2": 2.0, "r3": 3.0}
OLD, NEW, NEWER = (update_of(weights(value), version) for version, value in VALUES.items())

Seen = tuple[str, int]
"""The version and the engine that a shard came from."""


def chain(engine: ActorHandle, task: int) -> ray.ObjectRef:
    """Two calls, as generation and correction are."""
    return engine.again.remote(engine.serve.remote(task))


def shards_of(fleet: Fleet, tasks: Iterable[int], submit: Submit[int] = chain) -> Iterator[Seen]:
    """Runs shards and checks that each is whole: both of its calls were served by one version, and by the weights of that version."""
    with closing(fleet.run(tasks, submit)) as run:
        for task, (first, second, engine) in run:
            assert first == second == (task, first[1], VALUES[first[1]])
            yield first[1], engine


def until(results: Iterator[Seen], holds: Callable[[list[Seen]], object]) -> list[Seen]:
    """Results up to the one with which it holds."""
    seen: list[Seen] = []
    deadline = time.monotonic() + 60
    while not holds(seen):
        assert time.monotonic() < deadline, "it did not happen in time"
        seen.append(next(results))
    return seen


def until_all_serve(results: Iterator[Seen], version: str) -> list[Seen]:
    return until(results, lambda seen: {(version, 0), (version, 1)} <= set(seen))


def hold(folder: Path, version: str, *engines: int) -> list[Path]:
    """Marks that hold the engines' swaps to a version until they are unlinked."""
    marks = [folder / f"hold_swap_{engine}_{version}" for engine in engines]
    for mark in marks:
        mark.touch()
    return marks


def swapping(folder: Path, version: str) -> dict[int, int]:
    """Process ids of the engines that have begun a swap to a version, by index."""
    pids = {int(mark.name.split("_")[1]): mark.read_text() for mark in folder.glob(f"swapping_*_{version}")}
    return {engine: int(pid) for engine, pid in pids.items() if pid}


def held(engine: ActorHandle, task: int) -> ray.ObjectRef:
    """One call, which a mark can hold."""
    return engine.held.remote(task)


def loads(folder: Path, engine: int, version: str) -> int:
    """How often an engine has begun to load a version."""
    return len([*folder.glob(f"loaded_{engine}_{version}_*")])


def roll_until_preloading(fleet: Fleet, folder: Path) -> tuple[Iterator[Seen], Path]:
    """A run on a fleet that is rolled to `r2`, in which engine 0 has begun to preload it; its tasks end when the mark is unlinked."""
    holding = folder / "hold_tasks_0"
    holding.touch()
    results = shards_of(fleet, itertools.count(), held)
    next(results)
    fleet.roll(NEW)
    until(results, lambda _: loads(folder, 0, "r2"))
    assert fleet.states()[0] is State.DRAINING
    assert 0 not in swapping(folder, "r2")
    return results, holding


def test_an_engine_preloads_its_update_while_it_ends_its_tasks(fleet: Fleet, shared_folder: Path) -> None:
    results, holding = roll_until_preloading(fleet, shared_folder)
    assert "r2" in {version for version, _ in (next(results) for _ in range(20))}, "the other one is swapped, and serves"
    holding.unlink()
    until_all_serve(results, "r2")
    results.close()  # type: ignore[attr-defined]
    assert loads(shared_folder, 0, "r2") == 1, "the swap loads nothing again"
    assert {swap.attestation.digest for swap in fleet.complete_roll()} == {digest_of(weights(2.0))}


def test_what_is_preloaded_is_given_up_for_a_newer_roll(fleet: Fleet, shared_folder: Path) -> None:
    results, holding = roll_until_preloading(fleet, shared_folder)
    fleet.roll(NEWER)
    holding.unlink()
    until_all_serve(results, "r3")
    results.close()  # type: ignore[attr-defined]
    assert 0 not in swapping(shared_folder, "r2")
    assert {swap.attestation.digest for swap in fleet.complete_roll()} == {digest_of(weights(3.0))}


def test_a_refusal_while_preloading_is_raised_by_the_swap(fleet: Fleet, shared_folder: Path) -> None:
    holding = [shared_folder / f"hold_tasks_{engine}" for engine in (0, 1)]
    for mark in holding:
        mark.touch()
    results = shards_of(fleet, itertools.count(), lambda engine, task: held(engine, task) if task else chain(engine, task))
    next(results)
    fleet.roll(update_of(weights(2.0), "r2", digest="0" * 64))

    def release() -> None:
        wait_while(lambda: not loads(shared_folder, 0, "r2"))
        for mark in holding:
            mark.unlink()

    releaser = threading.Thread(target=release)
    releaser.start()
    with pytest.raises(WeightMismatchError, match="r2 has digest"):
        until(results, lambda _: False)
    releaser.join()
    assert [loads(shared_folder, engine, "r2") for engine in (0, 1)] == [1, 0]
    assert fleet.weight_version == "r1"
    assert {version for version, _ in until_all_serve(shards_of(fleet, itertools.count()), "r1")} == {"r1"}


@pytest.mark.parametrize("dies", [True, False])
def test_an_engine_that_dies_or_hangs_while_it_preloads_is_replaced_in_time(make_fleet: MakeFleet, tmp_path: Path, dies: bool) -> None:
    fleet = make_fleet(2, swap_timeout_s=2.0)
    fleet.start(OLD)
    loading = tmp_path / "hold_load_0_r2"
    loading.touch()
    results, holding = roll_until_preloading(fleet, tmp_path)
    pid = int((tmp_path / "preloading_0_r2").read_text())
    if dies:
        os.kill(pid, signal.SIGKILL)
    holding.unlink()
    until(results, lambda _: fleet.num_restarts)
    assert loads(tmp_path, 0, "r2") == 1, "the swap waits for what is preloaded"
    loading.unlink()
    until_all_serve(results, "r2")
    results.close()  # type: ignore[attr-defined]
    assert fleet.num_restarts == 1


def test_the_first_engine_that_serves_the_new_weights_works_while_the_others_swap(fleet: Fleet, shared_folder: Path) -> None:
    [held] = hold(shared_folder, "r2", 1)
    num_restarts = fleet.num_restarts
    fleet.roll(NEW)
    assert (fleet.weight_version, fleet.engines) == ("r2", [])
    results = shards_of(fleet, itertools.count())
    until(results, lambda _: 1 in swapping(shared_folder, "r2"))
    assert {next(results) for _ in range(20)} == {("r2", 0)}
    assert fleet.states() == [State.HEALTHY, State.STALE]
    held.unlink()
    until_all_serve(results, "r2")
    results.close()  # type: ignore[attr-defined]
    swaps = fleet.complete_roll()
    assert [swap.engine for swap in swaps] == [0, 1]
    assert {(swap.attestation.version, swap.attestation.digest) for swap in swaps} == {("r2", digest_of(weights(2.0)))}
    assert all(swap.out_of_service_s >= swap.attestation.seconds > 0 for swap in swaps)
    assert (fleet.num_restarts, len(fleet.engines)) == (num_restarts, 2)


def test_no_shard_mixes_versions_however_often_they_change(fleet: Fleet) -> None:
    """The second call of these shards comes from another actor and could be overtaken by a swap, were the engine not drained."""
    num_restarts = fleet.num_restarts
    relay: Any = ray.remote(Relay)
    between = relay.options(num_cpus=0.1, max_concurrency=4).remote()
    updates = itertools.cycle((NEW, NEWER, OLD))
    seen = []
    for number, result in enumerate(shards_of(fleet, range(400), between.shard.remote)):
        seen.append(result)
        if number % 10 == 0:
            fleet.roll(next(updates))
    ray.kill(between)
    assert len(seen) == 400
    assert {version for version, _ in seen} == set(VALUES)
    last = fleet.weight_version
    fleet.complete_roll()
    assert set(shards_of(fleet, range(20))) == {(last, 0), (last, 1)}
    assert fleet.num_restarts == num_restarts


def test_a_run_that_ends_first_leaves_the_roll_to_the_next(fleet: Fleet, shared_folder: Path) -> None:
    [held] = hold(shared_folder, "r2", 1)
    fleet.roll(NEW)
    assert {version for version, _ in shards_of(fleet, range(5))} == {"r2"}
    assert fleet.states()[1] is State.STALE
    held.unlink()
    until_all_serve(shards_of(fleet, itertools.count()), "r2")


def test_a_refused_update_ends_the_run_and_the_old_weights_stay(fleet: Fleet) -> None:
    num_restarts = fleet.num_restarts
    results = shards_of(fleet, itertools.count())
    next(results)
    fleet.roll(update_of(weights(2.0), "r2", digest="0" * 64))
    with pytest.raises(WeightMismatchError, match="r2"):
        until(results, lambda _: False)
    assert fleet.weight_version == "r1"
    assert {version for version, _ in until_all_serve(shards_of(fleet, itertools.count()), "r1")} == {"r1"}
    assert fleet.num_restarts == num_restarts


@pytest.mark.parametrize(("fault", "error"), [("refuse", WeightMismatchError), ("break_swap", FleetError)])
def test_a_swapped_engine_is_swapped_back_before_it_gets_tasks_again(
    fleet: Fleet, shared_folder: Path, fault: str, error: type[Exception]
) -> None:
    (shared_folder / f"{fault}_1_r2").touch()
    fleet.roll(NEW)
    results = shards_of(fleet, itertools.count())
    with pytest.raises(error, match=r"engine 1.*r2"):
        until(results, lambda seen: ("r2", 1) in seen)
    assert fleet.weight_version == "r1"
    fleet.roll(NEWER)
    assert {version for version, _ in until_all_serve(shards_of(fleet, itertools.count()), "r3")} == {"r3"}


def test_a_second_roll_overtakes_the_first(fleet: Fleet, shared_folder: Path) -> None:
    [held] = hold(shared_folder, "r2", 1)
    fleet.roll(NEW)
    results = shards_of(fleet, itertools.count())
    until(results, lambda _: 1 in swapping(shared_folder, "r2"))
    fleet.roll(NEWER)
    until(results, lambda seen: ("r3", 0) in seen)
    held.unlink()
    assert ("r2", 1) not in until_all_serve(results, "r3")
    results.close()  # type: ignore[attr-defined]
    assert [swap.engine for swap in fleet.complete_roll()] == [0, 1]


def test_a_second_roll_that_is_refused_undoes_the_unfinished_first(fleet: Fleet, shared_folder: Path) -> None:
    [held] = hold(shared_folder, "r2", 1)
    fleet.roll(NEW)
    assert [*shards_of(fleet, range(3))] == [("r2", 0)] * 3
    assert fleet.states() == [State.HEALTHY, State.STALE]
    held.unlink()
    with pytest.raises(WeightMismatchError, match="r3"):
        fleet.swap(update_of(weights(3.0), "r3", digest="0" * 64))
    assert fleet.weight_version == "r1"
    assert set(shards_of(fleet, range(20))) == {("r1", 0), ("r1", 1)}


@pytest.mark.parametrize("fault", ["break_swap_1_r2_once", "lie_1_r2_once"])
def test_an_engine_whose_swap_fails_comes_back_on_a_new_process(fleet: Fleet, shared_folder: Path, fault: str) -> None:
    (shared_folder / fault).touch()
    num_restarts = fleet.num_restarts
    results = shards_of(fleet, itertools.count())
    next(results)
    fleet.roll(NEW)
    until_all_serve(results, "r2")
    results.close()  # type: ignore[attr-defined]
    by_engine = {swap.engine: swap for swap in fleet.complete_roll()}
    assert fleet.num_restarts == num_restarts + 1
    assert by_engine[1].out_of_service_s > by_engine[0].out_of_service_s, "the failed attempt and the restart count"


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_an_engine_that_dies_or_hangs_in_a_swap_is_replaced_in_time(make_fleet: MakeFleet, tmp_path: Path, number: int) -> None:
    fleet = make_fleet(2, swap_timeout_s=2.0)
    fleet.start(OLD)
    hold(tmp_path, "r2", 0, 1)
    victims: list[int] = []

    def strike() -> None:
        wait_while(lambda: not swapping(tmp_path, "r2"))
        [(engine, pid)] = swapping(tmp_path, "r2").items()
        os.kill(pid, number)
        victims.append(engine)
        for mark in tmp_path.glob("hold_swap_*"):
            mark.unlink()

    striker = threading.Thread(target=strike)
    results = shards_of(fleet, itertools.count())
    next(results)
    striker.start()
    fleet.roll(NEW)
    until_all_serve(results, "r2")
    striker.join()
    assert fleet.num_restarts == 1
    results.close()  # type: ignore[attr-defined]
    assert [swap.engine for swap in fleet.complete_roll()] == [victims[0], 1 - victims[0]]


def test_an_engine_that_dies_while_it_drains_comes_back_at_the_new_weights(fleet: Fleet, shared_folder: Path) -> None:
    num_restarts = fleet.num_restarts
    done: list[int] = []
    killed: list[int] = []
    for task, _ in fleet.run(range(12), lambda engine, task: engine.slow.remote(task, 0.2)):
        done.append(task)
        if len(done) == 1:
            fleet.roll(NEW)
        elif State.DRAINING in fleet.states() and not killed:
            draining = fleet.states().index(State.DRAINING)
            killed.append(int((shared_folder / f"working_{draining}").read_text()))
            os.kill(killed[0], signal.SIGKILL)
    assert sorted(done) == list(range(12))
    assert {swap.attestation.version for swap in fleet.complete_roll()} == {"r2"}
    assert fleet.num_restarts == num_restarts + 1
    assert set(shards_of(fleet, range(20))) == {("r2", 0), ("r2", 1)}


def test_a_single_engine_swaps_between_its_tasks(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(1)
    fleet.start(OLD)
    seen = []
    for number, result in enumerate(shards_of(fleet, range(30))):
        seen.append(result[0])
        if number == 9:
            fleet.roll(NEW)
    assert len(seen) == 30
    assert seen == sorted(seen)
    assert set(seen) == {"r1", "r2"}


def test_all_others_follow_the_first_engine_at_once(make_fleet: MakeFleet, tmp_path: Path) -> None:
    fleet = make_fleet(3)
    fleet.start(OLD)
    held = hold(tmp_path, "r2", 1, 2)
    fleet.roll(NEW)
    results = shards_of(fleet, itertools.count())
    until(results, lambda _: len(swapping(tmp_path, "r2")) == 3)
    assert next(results) == ("r2", 0)
    for mark in held:
        mark.unlink()
    until(results, lambda seen: len(set(seen)) == 3)
    results.close()  # type: ignore[attr-defined]
