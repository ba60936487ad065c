"""The engine fleet: several engines that serve the same weights, or are being brought to others one after the other.

    start    every engine is made, loaded, swapped to the champion and attested; only then is it healthy
    run      tasks go to healthy engines and come back in the order of completion (`cluster.fleet.dispatch`)
    roll     begins a rolling swap, which goes on while tasks run (`cluster.fleet.rolling`); `settle` ends it
    swap     roll and settle: all engines end at the new weights, or all of them at the old
    sleep    all engines give back their devices' memory; they serve again after a completed swap (`settle`, or the next run)
    shutdown every engine is killed, and waited for

An engine whose swap fails half way never serves again: it is killed and a new one is made. Every wait is bounded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

from ray.actor import ActorHandle

from actors.engines.base import WeightUpdate
from actors.engines.errors import WeightMismatchError
from cluster.errors import FleetError
from cluster.fleet.dispatch import Dispatch, Limits, Submit, Then
from cluster.fleet.health import Clock, EngineHealth, RestartBudget, State
from cluster.fleet.rolling import RollingSwap
from cluster.fleet.slot import EngineSlot, EngineSwap, Timeouts
from cluster.fleet.supervised import Spawn
from cluster.fleet.weights import publish
from cluster.processes import await_exit
from cluster.resources.placement import CheckPlacement

T = TypeVar("T")

_SHUTDOWN_S = 30.0


class Fleet:
    """Engines 0 to `size` - 1. Not safe for concurrent use: one driver thread owns it."""

    def __init__(
        self,
        spawn: Spawn,
        size: int,
        *,
        task_timeout_s: float,
        start_timeout_s: float,
        swap_timeout_s: float,
        max_restarts_per_engine: int = 3,
        max_restarts: int = 16,
        max_attempts: int = 3,
        max_in_flight_per_engine: int = 2,
        check_placement: CheckPlacement = lambda: None,
        clock: Clock = time.monotonic,
    ) -> None:
        if size < 1:
            raise ValueError(f"a fleet of {size} engines; expected at least 1")
        self._timeouts = Timeouts(task_timeout_s, start_timeout_s, swap_timeout_s)
        self._limits = Limits(max_attempts, max_in_flight_per_engine)
        self._budget = RestartBudget(max_restarts_per_engine, max_restarts)
        self._slots = [EngineSlot(index, spawn, EngineHealth(self._budget, clock), self._timeouts) for index in range(size)]
        self._rolling = RollingSwap(self._slots, check_placement)
        self._running = False
        self._pinned = False

    @property
    def engines(self) -> list[ActorHandle]:
        """Actors of the engines that serve the weights of `weight_version`."""
        return [slot.handle for slot in self._slots if self._rolling.has_come_over(slot)]

    @property
    def num_restarts(self) -> int:
        return self._budget.num_restarts

    @property
    def weight_version(self) -> str:
        """Version that the engines serve or are being brought to, and that pinned results come from; empty before `start`. During a
        roll it is the new one, and the old one again once that is refused."""
        return self._rolling.target.version if self._rolling.target else ""

    def states(self) -> list[State]:
        """The state of each engine, by index."""
        return [slot.health.state for slot in self._slots]

    def start(self, update: WeightUpdate, on_ready: Callable[[], None] = lambda: None) -> list[EngineSwap]:
        """Makes all engines, at the same time, and brings them to the champion. What was made is killed on failure. `on_ready` is called
        for each that serves.

        Raises:
            WeightMismatchError: the update does not fit the model.
            UnfitModelError: an engine refuses the model; no other one is tried.
            FleetError: an engine could not be started.
        """
        assert self._rolling.target is None, "a fleet starts once"
        with ExitStack() as undo:
            undo.callback(self.shutdown, _SHUTDOWN_S)
            self._rolling.begin(publish(update))
            self._rolling.launch_all()
            for num_ready in range(1, len(self._slots) + 1):
                self._rolling.settle(num_ready)
                on_ready()
            undo.pop_all()
        return list(self._rolling.swaps)

    def run(self, tasks: Iterable[T], submit: Submit[T], *, pinned: bool = False, then: Then[T] | None = None) -> Iterator[tuple[T, Any]]:
        """Yields `(task, result)` in the order of completion. Tasks are taken as engines become free.

        `submit` starts a task on an engine and returns the reference of its last call, which may be on another actor; `then` ends it
        on an actor of a pool. A task may run more than once, but all calls of one attempt are served by one weight version. During a
        roll that may be another one than `weight_version`, unless the run is `pinned`. A roll that is not over when the tasks are
        goes on in the next run. Closing the iterator early waits, bounded, until no engine works on a task.

        Raises:
            TaskFailedError: a task raised a `ValueError`, or failed in `max_attempts` attempts.
            FinalError: a task raised it.
            WeightMismatchError: an engine refused the weights of a roll.
            FleetError: all engines, or all actors of the pool, are lost and no restart is left; or an engine could not be brought to
                the weights of a roll. After this and a refusal the fleet's weights are the old ones again: engines that had left them
                take no task before they have returned, in the next run or with `settle`.
            NotEnoughResourcesError: no engine, or no actor of the pool, runs, and there is no room for one.
        """
        assert self._rolling.target is not None, "start the fleet first"
        assert not self._running, "one run at a time"
        dispatch = Dispatch(self._rolling, tasks, submit, then, self._timeouts, self._limits, pinned=pinned)
        self._running, self._pinned = True, pinned
        try:
            yield from dispatch.results()
        finally:
            self._running = self._pinned = False
            dispatch.abandon()

    def roll(self, update: WeightUpdate) -> None:
        """Begins to bring the engines to `update`, one after the other, and returns at once. May be called between two results of a
        run that is not pinned, and before an earlier roll is over, which is then given up: one that fails goes back to the
        weights that the whole fleet served last."""
        assert self._rolling.target is not None, "start the fleet first"
        assert not self._pinned, "a pinned run holds the fleet's weights"
        self._rolling.begin(publish(update))

    def settle(self, num_engines: int | None = None) -> list[EngineSwap]:
        """Goes on with a roll until `num_engines` serve its weights, or all; returns those that have come over, in that order.

        Retired engines are no longer part of the fleet.

        Raises:
            WeightMismatchError: an engine refused the update; the fleet serves its old weights.
            FleetError: an engine could not be brought to the update; the others serve the old weights again.
        """
        assert self._rolling.target is not None, "start the fleet first"
        assert not self._running, "a run that goes on brings its engines over itself"
        try:
            self._rolling.settle(len(self._slots) if num_engines is None else num_engines)
        except (WeightMismatchError, FleetError):
            with suppress(FleetError):  # engines that cannot go back are lost, and told of by the next run
                self._rolling.settle(len(self._slots))
            raise
        return list(self._rolling.swaps)

    def swap(self, update: WeightUpdate) -> list[EngineSwap]:
        """Brings every engine to `update`, or leaves the whole fleet at what it served. Raises what `settle` does."""
        self.roll(update)
        return self.settle()

    def sleep(self) -> None:
        """Has all engines give back the memory of their devices, after they have come over to `weight_version` where a roll goes on.
        `settle`, `swap` and `run` wake them. An engine that cannot is killed, and replaced when the others wake.

        Raises:
            WeightMismatchError, FleetError: as `settle` does.
            TimeoutExceededError: the process of a killed engine is still there, with what it holds.
        """
        self.settle()
        self._rolling.sleep()
        self._await_killed(_SHUTDOWN_S)

    def shutdown(self, timeout_s: float) -> None:
        """Kills all engines and waits until their processes on this machine are gone. Safe to call twice.

        Raises:
            TimeoutExceededError: some are still there after `timeout_s` seconds.
        """
        for slot in self._slots:
            slot.kill("the fleet shuts down", logging.INFO)
        self._await_killed(timeout_s)

    def _await_killed(self, timeout_s: float) -> None:
        processes = [process for slot in self._slots for process in slot.killed_processes()]
        await_exit(processes, timeout_s, "engine")
