"""The last part of tasks on a pool of actors that die, hang and fail: engines are not blamed for it."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.actor import ActorHandle

from cluster.errors import FinalError, FleetError, TaskFailedError
from cluster.fleet.dispatch import Then
from cluster.fleet.fleet import Fleet
from cluster.fleet.health import State
from cluster.fleet.pool import Pool
from policies.errors import PolicyError
from tests.cluster.fleet.judges import Judge
from tests.cluster.workers import Doubler, wait_while

CALL_S, START_S = 2.0, 30.0

MakePool = Callable[..., Pool]


@pytest.fixture
def make_pool(fleet: Fleet, tmp_path: Path) -> Iterator[MakePool]:
    """Makes launched pools of judges, which look for marks in `tmp_path`, and shuts them down after the test."""
    pools: list[Pool] = []
    judge: Any = ray.remote(num_cpus=0)(Judge)

    def make(size: int, **options: Any) -> Pool:
        bounds = {"call_timeout_s": CALL_S, "start_timeout_s": START_S, **options}
        pools.append(Pool("judge", lambda index: judge.remote(index, tmp_path), size, **bounds))
        pools[-1].launch()
        return pools[-1]

    yield make
    for pool in pools:
        pool.shutdown(20)


def serve(engine: ActorHandle, task: int) -> ray.ObjectRef:
    return engine.serve.remote(task)


def judge(actor: ActorHandle, task: int, served: ray.ObjectRef) -> ray.ObjectRef:
    return actor.judge.remote(task, served)


def judged(fleet: Fleet, pool: Pool, tasks: range) -> list[tuple[int, Any]]:
    return sorted(fleet.run(tasks, serve, then=Then(pool, judge), pinned=True))


EXPECTED = [(task, 2 * 1.0) for task in range(12)]
"""Twice what the shared fleet serves."""


def assert_quiet(fleet: Fleet, num_restarts: int) -> None:
    assert (fleet.num_restarts, fleet.states()) == (num_restarts, [State.HEALTHY] * 2), "no engine is blamed"


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("constructing", signal.SIGKILL),
        pytest.param("constructing", signal.SIGSTOP, marks=pytest.mark.slow),
        ("judging", signal.SIGKILL),
        ("judging", signal.SIGSTOP),
        ("writing", signal.SIGKILL),
    ],
)
def test_a_judge_that_dies_or_hangs_is_replaced_and_its_task_redone(
    fleet: Fleet, make_pool: MakePool, tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    num_restarts = fleet.num_restarts
    hold = tmp_path / f"hold_{moment}_0_once"
    hold.touch()
    bound_s = 10.0 if (moment, number) == ("constructing", signal.SIGSTOP) else START_S
    pool = make_pool(2, start_timeout_s=bound_s)
    if moment != "constructing":  # the first judge must not miss all tasks
        wait_while(lambda: pool.collect() or pool.states() != [State.HEALTHY] * 2)
    struck: list[int] = []
    strike = threading.Thread(target=lambda: struck.append(strike_when(tmp_path / f"{moment}_0", number)))
    strike.start()
    started = time.monotonic()
    assert judged(fleet, pool, range(12)) == EXPECTED
    wait_while(lambda: _advance(pool) == 0)
    strike.join()
    assert time.monotonic() - started < bound_s + CALL_S + START_S
    assert pool.num_restarts == 1
    assert_quiet(fleet, num_restarts)
    wait_while(lambda: psutil.pid_exists(struck[0]))
    assert sorted(path.read_text() for path in tmp_path.glob("part_*")) == sorted(str(task) for task in range(12))


def _advance(pool: Pool) -> int:
    """The restarts so far; a judge that was not needed for the tasks is noticed here."""
    pool.collect()
    return pool.num_restarts


def strike_when(mark: Path, number: signal.Signals) -> int:
    """Sends a signal to the process that has left its id in `mark`; returns the id."""
    wait_while(lambda: not (mark.exists() and mark.read_text()))
    process_id = int(mark.read_text())
    os.kill(process_id, number)
    return process_id


def test_a_judge_that_dies_idle_is_replaced_in_the_next_run(fleet: Fleet, make_pool: MakePool, tmp_path: Path) -> None:
    num_restarts = fleet.num_restarts
    pool = make_pool(1)
    assert judged(fleet, pool, range(2)) == EXPECTED[:2]
    os.kill(int((tmp_path / "judging_0").read_text()), signal.SIGKILL)
    started = time.monotonic()
    assert judged(fleet, pool, range(12)) == EXPECTED
    assert time.monotonic() - started < CALL_S + START_S
    assert (pool.num_restarts, pool.states()) == (1, [State.HEALTHY])
    assert_quiet(fleet, num_restarts)


def test_restarts_of_judges_are_bounded_and_the_error_names_them(fleet: Fleet, make_pool: MakePool, tmp_path: Path) -> None:
    num_restarts = fleet.num_restarts
    (tmp_path / "refuse_construction").touch()
    pool = make_pool(2, max_restarts_per_actor=1)
    with pytest.raises(FleetError, match=r"all 2 judge\(s\) are lost and no restart is left.*the room is locked"):
        judged(fleet, pool, range(4))
    assert pool.num_restarts == 2
    assert_quiet(fleet, num_restarts)


@pytest.mark.slow
def test_a_task_that_kills_every_judge_is_named(fleet: Fleet, make_pool: MakePool, tmp_path: Path) -> None:
    num_restarts = fleet.num_restarts
    (tmp_path / "die_at_5").touch()
    pool = make_pool(2)
    with pytest.raises(TaskFailedError, match=r"task 5 failed permanently after 3 attempt.*ActorDiedError"):
        judged(fleet, pool, range(8))
    assert_quiet(fleet, num_restarts)


@pytest.mark.parametrize(
    ("fault", "raised", "said"),
    [
        ("wrong", TaskFailedError, r"task 5 .* after 1 attempt.*ValueError: record 5 is wrong"),
        ("full", FinalError, "the disk is full"),
        ("misjudge", PolicyError, "^filter 'mine' raised KeyError: 5; fix its code"),
    ],
)
def test_an_error_of_the_data_or_a_final_one_ends_the_run_at_once(
    fleet: Fleet, make_pool: MakePool, tmp_path: Path, fault: str, raised: type[Exception], said: str
) -> None:
    num_restarts = fleet.num_restarts
    (tmp_path / f"{fault}_at_5").touch()
    pool = make_pool(2)
    with pytest.raises(raised, match=said):
        judged(fleet, pool, range(8))
    assert len([*tmp_path.glob("tried_5_*")]) == 1
    assert pool.num_restarts == 0
    assert_quiet(fleet, num_restarts)


def test_another_error_is_tried_again_on_the_judges_alone(fleet: Fleet, make_pool: MakePool, tmp_path: Path) -> None:
    num_restarts = fleet.num_restarts
    (tmp_path / "busy_at_5_once").touch()
    pool = make_pool(2)
    assert judged(fleet, pool, range(8)) == EXPECTED[:8]
    assert len([*tmp_path.glob("tried_5_*")]) == 2
    (tmp_path / "busy_at_5").touch()
    with pytest.raises(TaskFailedError, match=r"task 5 .* after 3 attempt.*OSError: busy"):
        judged(fleet, pool, range(8))
    assert pool.num_restarts == 0
    assert_quiet(fleet, num_restarts)


def test_an_engine_that_fails_is_told_from_its_judge(fleet: Fleet, make_pool: MakePool, shared_folder: Path) -> None:
    num_restarts = fleet.num_restarts
    pool = make_pool(1)
    with pytest.raises(TaskFailedError, match=r"after 1 attempt.*ValueError: record 3 is broken"):
        list(fleet.run([3], lambda engine, task: engine.data_error.remote(task), then=Then(pool, judge)))
    assert_quiet(fleet, num_restarts)
    run = fleet.run(range(3), lambda engine, task: engine.again.remote(engine.unfit_once.remote((task, "r1", 1.0))), then=Then(pool, judge))
    assert len(list(run)) == 3
    assert (fleet.num_restarts, pool.num_restarts) == (num_restarts + 1, 0)


def test_a_task_begins_again_where_what_the_judge_is_given_is_lost(fleet: Fleet, make_pool: MakePool) -> None:
    num_restarts = fleet.num_restarts
    pool = make_pool(1)
    gone: Any = ray.remote(num_cpus=0)(Doubler).remote()
    ray.kill(gone)
    begun: list[int] = []

    def begin(engine: ActorHandle, task: int) -> ray.ObjectRef:
        begun.append(task)
        return serve(engine, task)

    def judge_what_is_there(actor: ActorHandle, task: int, served: ray.ObjectRef) -> ray.ObjectRef:
        return judge(actor, task, gone.double.remote(served) if begun.count(task) == 1 and task == 1 else served)

    assert sorted(fleet.run(range(3), begin, then=Then(pool, judge_what_is_there))) == EXPECTED[:3]
    assert sorted(begun) == [0, 1, 1, 2]
    assert pool.num_restarts == 0
    assert_quiet(fleet, num_restarts)


def test_a_closed_run_leaves_a_quiet_pool_and_kills_a_judge_that_hangs(fleet: Fleet, make_pool: MakePool, tmp_path: Path) -> None:
    num_restarts = fleet.num_restarts
    pool = make_pool(1, call_timeout_s=60)
    run = fleet.run(range(100), serve, then=Then(pool, judge))
    next(run)
    run.close()  # type: ignore[attr-defined]
    assert pool.is_idle
    assert judged(fleet, pool, range(12)) == EXPECTED
    assert pool.num_restarts == 0
    assert_quiet(fleet, num_restarts)
