"""Engines that end or hang while they are constructed, idle, or about to swap: replaced within their bounds, and no task is lost."""

import os
import signal
import threading
import time
from contextlib import closing
from itertools import count, takewhile
from pathlib import Path

import psutil
import pytest
import ray

from actors.engines.errors import UnfitModelError
from cluster.fleet.fleet import Fleet
from cluster.fleet.health import State
from cluster.fleet.restarts import Rooms
from tests.cluster.conftest import MakeFleet
from tests.cluster.workers import update_of, wait_while, weights

START_S, SWAP_S, TASK_S = 30.0, 5.0, 3.0
HANG_START_S = 12.0
"""Of a fleet one of whose engines hangs while it is constructed: that is waited for."""

BOTH_WAYS = pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])


def test_a_model_that_an_engine_refuses_is_not_tried_again(make_fleet: MakeFleet, tmp_path: Path) -> None:
    (tmp_path / "unfit").touch()
    fleet = make_fleet(1)
    with pytest.raises(UnfitModelError, match=r"^this model is run wrongly$"):
        fleet.start(update_of(weights(0.0), "r0"))
    assert fleet.num_restarts == 0
    assert fleet.states() == [State.DEAD]


def strike_when_constructing(folder: Path, engine: int, number: signal.Signals) -> tuple[threading.Thread, list[int]]:
    """Has the engine's next process stay in its constructor, and sends it a signal there; the thread, and where it notes the process."""
    mark = folder / f"constructing_{engine}"
    mark.unlink(missing_ok=True)
    (folder / f"hold_constructing_{engine}_once").touch()
    struck: list[int] = []

    def strike() -> None:
        wait_while(lambda: not (mark.exists() and mark.read_text()))
        struck.append(int(mark.read_text()))
        os.kill(struck[0], number)

    thread = threading.Thread(target=strike)
    thread.start()
    return thread, struck


def process_of(fleet: Fleet, engine: int) -> int:
    return ray.get(fleet.engines[engine].__ray_call__.remote(lambda _: os.getpid()), timeout=20)


def assert_all_tasks_are_done(fleet: Fleet, version: str, value: float) -> None:
    assert sorted(dict(fleet.run(range(8), lambda engine, task: engine.serve.remote(task))).values()) == [
        (n, version, value) for n in range(8)
    ]


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_an_engine_that_ends_or_hangs_while_it_is_constructed_is_replaced(
    make_fleet: MakeFleet, tmp_path: Path, number: signal.Signals
) -> None:
    start_s = HANG_START_S if number == signal.SIGSTOP else START_S
    fleet = make_fleet(2, start_timeout_s=start_s, swap_timeout_s=SWAP_S)
    strike, struck = strike_when_constructing(tmp_path, 0, number)
    started = time.monotonic()
    fleet.start(update_of(weights(2.0), "r2"))
    strike.join()
    assert time.monotonic() - started < 2 * (start_s + SWAP_S)
    assert (fleet.num_restarts, fleet.states()) == (1, [State.HEALTHY] * 2)
    assert_all_tasks_are_done(fleet, "r2", 2.0)
    wait_while(lambda: psutil.pid_exists(struck[0]))


@pytest.mark.slow
def test_a_replacement_that_hangs_while_it_is_constructed_is_replaced_while_the_other_engine_works(
    make_fleet: MakeFleet, tmp_path: Path
) -> None:
    fleet = make_fleet(2, start_timeout_s=HANG_START_S, swap_timeout_s=SWAP_S)
    fleet.start(update_of(weights(2.0), "r2"))
    lost = process_of(fleet, 0)
    strike, struck = strike_when_constructing(tmp_path, 0, signal.SIGSTOP)
    os.kill(lost, signal.SIGKILL)
    started = time.monotonic()
    results = fleet.run(count(), lambda engine, task: engine.again.remote(engine.serve.remote(task)))
    served_by = {engine for _, (_, _, engine) in zip(range(20), (result for _, result in results), strict=False)}
    assert served_by == {1}
    bound_s = 2 * (HANG_START_S + SWAP_S)
    assert any(engine == 0 for _, (_, _, engine) in takewhile(lambda _: time.monotonic() - started < bound_s, results))
    strike.join()
    results.close()  # type: ignore[attr-defined]
    assert fleet.num_restarts == 2
    wait_while(lambda: psutil.pid_exists(struck[0]))


@BOTH_WAYS
def test_an_engine_that_ends_or_hangs_idle_is_replaced_in_the_next_run(make_fleet: MakeFleet, number: signal.Signals) -> None:
    fleet = make_fleet(2, task_timeout_s=TASK_S)
    fleet.start(update_of(weights(2.0), "r2"))
    lost = process_of(fleet, 1)
    os.kill(lost, number)
    started = time.monotonic()
    assert_all_tasks_are_done(fleet, "r2", 2.0)
    assert time.monotonic() - started < TASK_S + START_S
    assert fleet.num_restarts == 1
    wait_while(lambda: psutil.pid_exists(lost))


@BOTH_WAYS
def test_an_engine_that_ends_or_hangs_idle_is_replaced_by_the_next_swap(make_fleet: MakeFleet, number: signal.Signals) -> None:
    fleet = make_fleet(2, swap_timeout_s=SWAP_S)
    fleet.start(update_of(weights(2.0), "r2"))
    lost = process_of(fleet, 1)
    os.kill(lost, number)
    started = time.monotonic()
    fleet.swap(update_of(weights(3.0), "r3"))
    assert time.monotonic() - started < 2 * SWAP_S + START_S
    assert (fleet.num_restarts, fleet.states()) == (1, [State.HEALTHY] * 2)
    assert_all_tasks_are_done(fleet, "r3", 3.0)
    wait_while(lambda: psutil.pid_exists(lost))


def test_an_engine_that_joins_and_cannot_serve_ends_no_run_and_is_tried_again_after_a_refill(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """Each time in the middle of a roll, whose weights only one engine serves so far: they would be blamed for an old failure."""
    num_places = 1
    fleet = make_fleet(1, rooms=Rooms(num_places=lambda: num_places))
    fleet.start(update_of(weights(0.0), "r0"))
    num_places = 2

    def roll_until(version: str, state: State) -> None:
        fleet.roll(update_of(weights(1.0), version))
        deadline = time.monotonic() + 60
        with closing(fleet.run(count(), lambda engine, task: engine.slow.remote(task, 0.05))) as results:
            for _ in results:
                assert time.monotonic() < deadline, "it did not happen in time"
                if fleet.states()[1:] == [state]:
                    return

    for version, fault in (("r1", "unfit"), ("r2", "refuse_1_r2"), ("r3", "break_swap_1_r3")):
        (tmp_path / fault).touch()
        roll_until(version, State.RETIRED)
        assert fleet.weight_version == version
        (tmp_path / fault).unlink()
        fleet.refill_restarts()
    roll_until("r4", State.HEALTHY)
    assert len(fleet.complete_roll()) == 2
    assert (len(fleet.engines), fleet.num_restarts) == (2, 0)
    assert [line.partition(" on ")[0] for line in fleet.take_incidents()][::2] == ["engine 1 joins", *["engine 1 is back"] * 3]
