"""Stateless tasks behind the engines that die, hang and fail: Ray and the driver repeat them, and engines are not blamed."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.actor import ActorHandle
from ray.exceptions import OwnerDiedError

from cluster.errors import FinalError, NotEnoughResourcesError, TaskFailedError
from cluster.fleet.fleet import Fleet
from cluster.fleet.health import State
from cluster.fleet.tasks import MAX_ATTEMPTS, StatelessTasks
from policies.errors import PolicyError
from tests.cluster.fleet.judges import judge
from tests.cluster.workers import wait_while

TASK_S = 3.0

MakeTasks = Callable[..., StatelessTasks[int]]


@pytest.fixture
def make_tasks(fleet: Fleet, tmp_path: Path) -> MakeTasks:
    """Makes judges, which look for marks in `tmp_path`."""

    def make(function: Callable[..., Any] = judge, max_unfinished: int = 3, timeout_s: float = 30.0, **options: Any) -> StatelessTasks[int]:
        return StatelessTasks(function, (tmp_path,), max_unfinished, timeout_s, lambda: {"num_cpus": 0}, **options)

    return make


def judged(fleet: Fleet, judges: StatelessTasks[int], tasks: Iterable[int]) -> list[tuple[int, Any]]:
    """Runs tasks on engines and then on judges; what the engines serve does not pass through the driver."""

    def serve(engine: ActorHandle, task: int) -> tuple[ray.ObjectRef, ray.ObjectRef]:
        served = engine.serve.remote(task)
        return served, served

    with closing(judges.after(fleet, [*tasks], serve)) as found:
        return sorted(found)


EXPECTED = [(task, 2 * 1.0) for task in range(12)]
"""Twice what the shared fleet serves."""


@pytest.fixture(autouse=True)
def no_engine_is_blamed(fleet: Fleet) -> Iterable[None]:
    num_restarts = fleet.num_restarts
    yield
    assert (fleet.num_restarts, fleet.states()) == (num_restarts, [State.HEALTHY] * 2)


@pytest.mark.parametrize("moment", ["judging", "writing"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_task_whose_process_dies_or_hangs_is_repeated_in_time(
    fleet: Fleet, make_tasks: MakeTasks, tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    (tmp_path / f"hold_{moment}_4_once").touch()
    struck: list[int] = []
    strike = threading.Thread(target=lambda: struck.append(strike_when(tmp_path / f"{moment}_4", number)))
    strike.start()
    started = time.monotonic()
    limit_s = TASK_S if number == signal.SIGSTOP else 60  # a dead process is replaced without waiting for the limit
    assert judged(fleet, make_tasks(timeout_s=limit_s), range(12)) == EXPECTED
    assert time.monotonic() - started < 30
    strike.join()
    assert len([*tmp_path.glob("tried_4_*")]) == 2
    wait_while(lambda: psutil.pid_exists(struck[0]))
    assert sorted(path.read_text() for path in tmp_path.glob("part_*")) == sorted(str(task) for task in range(12))


def strike_when(mark: Path, number: signal.Signals) -> int:
    """Sends a signal to the process that has left its id in `mark`; returns the id."""
    wait_while(lambda: not (mark.exists() and mark.read_text()))
    process_id = int(mark.read_text())
    os.kill(process_id, number)
    return process_id


@pytest.mark.parametrize(
    ("fault", "raised", "said", "num_attempts"),
    [
        ("wrong", TaskFailedError, r"task 5 .* after 1 attempt.*ValueError: record 5 is wrong", 1),
        ("full", FinalError, "the disk is full", 1),
        ("misjudge", PolicyError, "^filter 'mine' raised KeyError: 5; fix its code", 1),
        ("busy", TaskFailedError, r"task 5 .* after 3 attempt.*OSError: busy", 3),
        ("die", TaskFailedError, r"task 5 .* after 3 attempt.*WorkerCrashedError", 3),
    ],
)
def test_a_task_that_cannot_succeed_ends_the_run(
    fleet: Fleet, make_tasks: MakeTasks, tmp_path: Path, fault: str, raised: type[Exception], said: str, num_attempts: int
) -> None:
    (tmp_path / f"{fault}_at_5").touch()
    with pytest.raises(raised, match=said):
        judged(fleet, make_tasks(), range(8))
    assert len([*tmp_path.glob("tried_5_*")]) == num_attempts


def test_a_task_that_always_hangs_ends_the_run_and_its_processes(fleet: Fleet, make_tasks: MakeTasks, tmp_path: Path) -> None:
    assert judged(fleet, make_tasks(), [0]) == EXPECTED[:1], "now a process is there, and the next task starts at once"
    (tmp_path / "hold_judging_1").touch()
    with pytest.raises(TaskFailedError, match=r"task 1 failed permanently after 3 attempt.*it took longer than 1 s"):
        judged(fleet, make_tasks(timeout_s=1.0), [1])
    wait_while(lambda: psutil.pid_exists(int((tmp_path / "judging_1").read_text())))


def test_a_task_that_waits_for_a_lost_node_is_started_elsewhere(fleet: Fleet, tmp_path: Path) -> None:
    options = itertools.chain([{"num_cpus": 1000}], itertools.repeat({"num_cpus": 0}))
    tasks: StatelessTasks[int] = StatelessTasks(
        judge, (tmp_path,), 3, 30.0, lambda: next(options), is_stranded=lambda given: given["num_cpus"] == 1000
    )
    started = time.monotonic()
    assert judged(fleet, tasks, range(2)) == EXPECTED[:2]
    assert time.monotonic() - started < 25


def test_a_temporary_error_is_repeated(fleet: Fleet, make_tasks: MakeTasks, tmp_path: Path) -> None:
    (tmp_path / "busy_at_5_once").touch()
    assert judged(fleet, make_tasks(), range(8)) == EXPECTED[:8]
    assert len([*tmp_path.glob("tried_5_*")]) == 2


def test_an_item_whose_data_is_lost_starts_over_a_bounded_number_of_times(fleet: Fleet, make_tasks: MakeTasks) -> None:
    def lose(folder: Path, task: int, served: Any) -> float:
        raise OwnerDiedError("", None, "")

    judges = make_tasks(lose)
    for _ in range(MAX_ATTEMPTS - 1):
        assert [*judges.run((task, (task, None)) for task in range(3))] == []
        assert sorted(judges.take_lost()) == [0, 1, 2]
    with pytest.raises(TaskFailedError, match=r"after 3 attempt.*OwnerDiedError"):
        [*judges.run((task, (task, None)) for task in range(3))]
    assert judges.take_lost() == []


def test_a_run_takes_few_items_ahead_and_a_closed_one_kills_its_tasks(fleet: Fleet, make_tasks: MakeTasks, tmp_path: Path) -> None:
    (tmp_path / "hold_judging_1").touch()
    judges, tasks = make_tasks(max_unfinished=2), itertools.count()
    run = judges.run((task, (task, None, (task, "r1", 1.0))) for task in tasks)
    assert [next(run) for _ in range(9)] == [(task, 2.0) for task in (0, *range(2, 10))]
    wait_while(lambda: not (tmp_path / "judging_1").exists())
    assert next(tasks) <= 12
    run.close()
    wait_while(lambda: psutil.pid_exists(int((tmp_path / "judging_1").read_text())))
    (tmp_path / "hold_judging_1").unlink()
    assert judged(fleet, judges, range(12)) == EXPECTED


def test_tasks_whose_resources_are_lost_are_named(fleet: Fleet, make_tasks: MakeTasks, tmp_path: Path) -> None:
    (tmp_path / "hold_judging_0").touch()

    def check() -> None:
        raise NotEnoughResourcesError("a node is lost")

    with pytest.raises(NotEnoughResourcesError, match="a node is lost"):
        judged(fleet, make_tasks(timeout_s=1.0, check_placement=check), range(2))


def test_an_item_whose_data_is_lost_is_made_again_by_an_engine(fleet: Fleet, make_tasks: MakeTasks, tmp_path: Path) -> None:
    def lose_once(folder: Path, task: int, _: object, served: tuple[int, str, float]) -> float:
        if task == 1 and not (folder / "lost").exists():
            (folder / "lost").touch()
            raise OwnerDiedError("", None, "")
        return 2 * served[2]

    submitted: list[int] = []

    def serve(engine: ActorHandle, task: int) -> tuple[ray.ObjectRef, ray.ObjectRef]:
        submitted.append(task)
        served = engine.serve.remote(task)
        return served, served

    assert sorted(make_tasks(lose_once).after(fleet, range(3), serve)) == EXPECTED[:3]
    assert sorted(submitted) == [0, 1, 1, 2]


def test_an_error_of_the_driver_between_two_items_ends_them_and_leaves_no_engine_with_work(fleet: Fleet, make_tasks: MakeTasks) -> None:
    judges, submitted = make_tasks(), list[int]()

    def serve(engine: ActorHandle, task: int) -> tuple[ray.ObjectRef, ray.ObjectRef]:
        if len(submitted) == 6:
            raise FinalError("what goes on beside it has failed")
        submitted.append(task)
        served = engine.serve.remote(task)
        return served, served

    with pytest.raises(FinalError, match="beside it"), closing(judges.after(fleet, [*range(40)], serve)) as found:
        list(found)
    assert len(submitted) == 6
    assert judged(fleet, judges, range(12)) == EXPECTED
