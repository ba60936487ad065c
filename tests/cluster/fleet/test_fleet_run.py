"""Tasks on a fleet whose engines die, hang and fail."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.errors import FleetError, TaskFailedError
from cluster.fleet.fleet import Fleet
from cluster.fleet.health import State
from tests.cluster.conftest import MakeFleet
from tests.cluster.workers import Doubler, update_of, wait_while, weights


def signal_when_working(folder: Path, index: int, number: int) -> threading.Thread:
    """Sends a signal to the process of an engine as soon as it works on a task."""

    def send() -> None:
        mark = folder / f"working_{index}"
        wait_while(lambda: not (mark.exists() and mark.read_text()))
        os.kill(int(mark.read_text()), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_results_come_from_the_champion_and_through_chains(fleet: Fleet) -> None:
    fleet.swap(update_of(weights(1.5), "r1"))
    results = dict(fleet.run(range(12), lambda engine, task: engine.serve.remote(task)))
    assert results == {task: (task, "r1", 1.5) for task in range(12)}
    doubler: Any = ray.remote(num_cpus=0.1)(Doubler)
    other = doubler.remote()
    assert dict(fleet.run(range(3), lambda engine, task: other.double.remote(engine.serve.remote(task)))) == dict.fromkeys(range(3), 3.0)
    ray.kill(other)
    assert list(fleet.run([], lambda engine, task: engine.serve.remote(task))) == []


def test_a_killed_engine_is_replaced_swapped_and_its_task_redone(make_fleet: MakeFleet, tmp_path: Path) -> None:
    fleet = make_fleet(2, max_in_flight_per_engine=1)
    fleet.start(update_of(weights(2.0), "r2"))
    killer = signal_when_working(tmp_path, 0, signal.SIGKILL)
    started_s = time.monotonic()
    results = [result for _, result in fleet.run(range(8), lambda engine, task: engine.slow.remote(task, 0.4))]
    assert 8 * 0.4 <= fleet.busy_s < 2 * (time.monotonic() - started_s), "while an engine is replaced it has no task"
    killer.join()
    assert sorted(task for task, _ in results) == list(range(8))
    assert fleet.num_restarts == 1
    fleet.swap(update_of(weights(2.0), "r2"))  # settles the replacement, whether or not the run still needed it
    assert fleet.states() == [State.HEALTHY] * 2
    assert ray.get([engine.ping.remote() for engine in fleet.engines], timeout=10) == ["r2", "r2"]


def test_a_hanging_engine_is_replaced_within_the_deadline(make_fleet: MakeFleet, tmp_path: Path) -> None:
    fleet = make_fleet(2, task_timeout_s=2.0)
    fleet.start(update_of(weights(2.0), "r2"))
    stopper = signal_when_working(tmp_path, 1, signal.SIGSTOP)
    started = time.monotonic()
    results = [result for _, result in fleet.run(range(6), lambda engine, task: engine.slow.remote(task, 0.2))]
    stopper.join()
    assert sorted(task for task, _ in results) == list(range(6))
    assert time.monotonic() - started < 15
    assert fleet.num_restarts == 1
    stopped = int((tmp_path / "working_1").read_text())
    fleet.shutdown(20)
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)


def test_data_errors_end_the_run_at_once_and_others_are_tried_elsewhere(fleet: Fleet, shared_folder: Path) -> None:
    num_restarts = fleet.num_restarts
    with pytest.raises(TaskFailedError, match=r"task 5 failed permanently after 1 attempt.*record 5 is broken"):
        list(fleet.run([5], lambda engine, task: engine.data_error.remote(task)))
    assert len(list(shared_folder.glob("tried_5_*"))) == 1
    assert len(dict(fleet.run(range(4), lambda engine, task: engine.flaky.remote(task)))) == 4
    with pytest.raises(TaskFailedError, match=r"after 3 attempt.*never works"):
        list(fleet.run([6], lambda engine, task: engine.always_fails.remote(task)))
    assert {mark.name for mark in shared_folder.glob("failed_6_*")} == {"failed_6_on_0", "failed_6_on_1"}
    assert fleet.num_restarts == num_restarts, "an application error costs no engine"
    assert dict(fleet.run(range(3), lambda engine, task: engine.unfit_once.remote(task))) == {0: 0, 1: 1, 2: 2}
    assert fleet.num_restarts == num_restarts + 1, "an engine that declares itself unfit is restarted"


def test_errors_are_told_apart_through_a_chain(fleet: Fleet) -> None:
    num_restarts = fleet.num_restarts
    with pytest.raises(TaskFailedError, match="ValueError: record 5 is broken"):
        list(fleet.run([5], lambda engine, task: engine.slow.remote(engine.data_error.remote(task), 0)))
    killed: Any = ray.remote(num_cpus=0.1)(Doubler).remote()
    ray.kill(killed)
    with pytest.raises(TaskFailedError, match="ActorDiedError"):
        list(fleet.run([5], lambda engine, task: killed.double.remote(engine.serve.remote(task))))
    assert (fleet.num_restarts, fleet.states()) == (num_restarts, [State.HEALTHY] * 2), "another actor's death is not the engine's"


def test_a_closed_run_leaves_quiet_engines(fleet: Fleet) -> None:
    run = fleet.run(range(100), lambda engine, task: engine.slow.remote(task, 0.2))
    next(run)
    started = time.monotonic()
    run.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 5
    assert fleet.states() == [State.HEALTHY] * 2
    assert fleet.swap(update_of(weights(2.0), "r2"))[0].attestation.version == "r2"


def test_a_fleet_without_restarts_left_says_so(make_fleet: MakeFleet, tmp_path: Path) -> None:
    fleet = make_fleet(1, max_restarts_per_engine=0)
    fleet.start(update_of(weights(1.0), "r1"))
    killer = signal_when_working(tmp_path, 0, signal.SIGKILL)
    with pytest.raises(FleetError, match=r"all 1 engine\(s\) are lost.*ActorDiedError"):
        list(fleet.run(range(3), lambda engine, task: engine.slow.remote(task, 2.0)))
    killer.join()
    with pytest.raises(FleetError, match="no restart is left"):
        fleet.swap(update_of(weights(2.0), "r2"))
