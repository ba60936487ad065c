"""The engine fleet: several engines that serve the same weights, or are being swapped to new ones.

    start          starts every engine, loads the model, swaps it to the champion; it is healthy once it has attested the weights
    run            sends tasks to healthy engines and yields results in the order of completion (`cluster.fleet.dispatch`)
    roll           begins a rolling swap, which continues while tasks run (`cluster.fleet.rolling`)
    complete_roll  waits until a rolling swap is complete, or until some engines serve the new weights
    swap           roll and complete_roll: afterwards all engines serve the new weights, or all of them the old ones
    sleep          has all engines release their devices' memory; they serve again after a completed swap
    shutdown       kills every engine and waits for the end of its process

An engine whose swap fails never serves again: it is killed and restarted. Every wait is bounded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

from ray.actor import ActorHandle

from actors.engines.base import WeightUpdate
from actors.engines.errors import WeightMismatchError
from cluster.errors import FleetError
from cluster.fleet.dispatch import BusyTime, Dispatch, Limits, Submit
from cluster.fleet.health import Clock, EngineHealth, RestartBudget, State
from cluster.fleet.restarts import Rooms
from cluster.fleet.rolling import RollingSwap
from cluster.fleet.slot import EngineSlot, EngineSwap, Spawn, Timeouts
from cluster.fleet.weights import put_update
from cluster.processes import await_exit

T = TypeVar("T")

_SHUTDOWN_S = 30.0


class Fleet:
    """Engines 0 to `size` - 1, and those that join. Not thread-safe: one driver thread owns it."""

    def __init__(
        self,
        spawn: Spawn,
        size: int,
        *,
        task_timeout_s: float,
        start_timeout_s: float,
        swap_timeout_s: float,
        max_restarts_per_engine: int = 3,
        max_restarts: int | None = None,
        max_attempts: int = 3,
        max_in_flight_per_engine: int = 2,
        rooms: Rooms | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """Makes the engines' slots, and starts nothing.

        Args:
            spawn: makes an engine's actor.
            size: number of engines at the start.
            task_timeout_s, start_timeout_s, swap_timeout_s: see `Timeouts`.
            max_restarts_per_engine: restarts of one engine until the next refill.
            max_restarts: restarts of all engines until the next refill; by default 16, or twice the number of engines if that is more,
                which grows with engines that join.
            max_attempts, max_in_flight_per_engine: see `Limits`.
            rooms: where engines can run; by default anywhere.
            clock: monotonic time.
        """
        if size < 1:
            raise ValueError(f"a fleet of {size} engines; expected at least 1")
        self._timeouts = Timeouts(task_timeout_s, start_timeout_s, swap_timeout_s)
        self._limits = Limits(max_attempts, max_in_flight_per_engine)
        self._spawn = spawn
        self._clock = clock
        self._grows_budget = max_restarts is None
        self._budget = RestartBudget(max_restarts_per_engine, _restarts_of(size) if max_restarts is None else max_restarts)
        self._slots = [self._new_slot(index) for index in range(size)]
        self._rolling = RollingSwap(self._slots, rooms or Rooms(), clock, self._joining_slot)
        self._running = False
        self._busy = BusyTime()

    @property
    def busy_s(self) -> float:
        """Seconds in which engines had a task, summed over the engines, as of the last run that has ended."""
        return self._busy.seconds

    @property
    def engines(self) -> list[ActorHandle]:
        """Actors of the engines that serve the weights of `weight_version`."""
        return [slot.handle for slot in self._slots if self._rolling.serves_target(slot)]

    @property
    def num_restarts(self) -> int:
        return self._budget.num_restarts

    def take_incidents(self) -> list[str]:
        """How the fleet has shrunk and grown since the last call, one line each, in order."""
        return self._rolling.restarts.take_incidents()

    def refill_restarts(self) -> None:
        """Gives the fleet and its engines all their restarts back. Retired engines come back: each is started once, in the next run or by
        `complete_roll`, and serves after a completed swap; if that fails, it is retired until the next refill."""
        self._budget.refill()
        for slot in self._slots:
            slot.health.refill()

    @property
    def weight_version(self) -> str:
        """Version that serves runs, which some engines may still be swapped to; empty before `start`. A roll sets it to the new version,
        and a refusal resets it to the old one."""
        return self._rolling.target.version if self._rolling.target else ""

    @property
    def size(self) -> int:
        """Number of engines, those that have left the fleet included."""
        return len(self._slots)

    def states(self) -> list[State]:
        """The state of each engine, by index."""
        return [slot.health.state for slot in self._slots]

    def start(self, update: WeightUpdate, on_ready: Callable[[], None] = lambda: None) -> list[EngineSwap]:
        """Starts all engines concurrently and swaps them to the champion. Calls `on_ready` for each engine that serves. On failure all
        are killed.

        Raises:
            WeightMismatchError: the update does not fit the model.
            UnfitModelError: an engine refuses the model, as every other one would.
            FleetError: an engine could not be started.
        """
        assert self._rolling.target is None, "a fleet starts once"
        with ExitStack() as undo:
            undo.callback(self.shutdown, _SHUTDOWN_S)
            self._rolling.set_target(put_update(update))
            self._rolling.launch_all()
            for num_ready in range(1, len(self._slots) + 1):
                self._rolling.complete(num_ready)
                on_ready()
            undo.pop_all()
        return list(self._rolling.swaps)

    def run(self, tasks: Iterable[T], submit: Submit[T]) -> Generator[tuple[T, Any]]:
        """Yields `(task, result)` in the order of completion. Tasks are taken as engines become free.

        `submit` starts a task on an engine and returns the reference of its last call. Tasks start only on engines that serve
        `weight_version`. A task may run more than once, but one weight version serves all calls of one attempt. A roll that is
        incomplete when the tasks end continues in the next run. Closing the iterator early waits, for a bounded time, until no engine
        has a task.

        Raises:
            TaskFailedError: a task raised a `ValueError`, or failed in `max_attempts` attempts.
            FinalError: a task raised it.
            WeightMismatchError: an engine refused the weights of a roll.
            FleetError: too few engines and no restart are left, or an engine could not be swapped to the weights of a roll. After this or
                a refusal the fleet has rolled back: engines with the new weights get no task before they are swapped back, in the next
                run or by `complete_roll`.
            NotEnoughResourcesError: too few engines have had room for too long.
        """
        assert self._rolling.target is not None, "start the fleet first"
        assert not self._running, "one run at a time"
        dispatch = Dispatch(self._rolling, tasks, submit, self._timeouts, self._limits, self._busy)
        self._running = True
        try:
            yield from dispatch.results()
        finally:
            self._running = False
            dispatch.abandon()

    def roll(self, update: WeightUpdate) -> None:
        """Begins to swap the engines to `update` and returns at once. Replaces an incomplete roll. Between two results of a run, tasks
        that have not started wait for the new weights. If the roll fails, the fleet rolls back to the last weights that all engines
        served."""
        assert self._rolling.target is not None, "start the fleet first"
        self._rolling.set_target(put_update(update))

    def complete_roll(self, num_engines: int | None = None) -> list[EngineSwap]:
        """Blocks until `num_engines` serve the weights of a roll, by default all; returns the completed swaps in order.

        Retired engines do not count.

        Raises:
            WeightMismatchError: an engine refused the update; the fleet serves its old weights.
            FleetError: an engine could not be swapped to the update; the others serve the old weights again.
        """
        assert self._rolling.target is not None, "start the fleet first"
        assert not self._running, "a run swaps its engines itself"
        try:
            self._rolling.complete(len(self._slots) if num_engines is None else num_engines)
        except (WeightMismatchError, FleetError):
            with suppress(FleetError):  # the next run raises if engines could not be swapped back
                self._rolling.complete(len(self._slots))
            raise
        return list(self._rolling.swaps)

    def swap(self, update: WeightUpdate) -> list[EngineSwap]:
        """Swaps every engine to `update`, or leaves the whole fleet at its old weights. Raises what `complete_roll` does."""
        self.roll(update)
        return self.complete_roll()

    def sleep(self) -> None:
        """Has all engines release their devices' memory; completes a roll first. `complete_roll`, `swap` and `run` wake them. An engine
        that cannot sleep is killed, and restarted when the others wake.

        Raises:
            WeightMismatchError, FleetError: see `complete_roll`.
            TimeoutExceededError: the process of a killed engine has not exited and still holds its memory.
        """
        self.complete_roll()
        self._rolling.sleep()
        self._await_killed(_SHUTDOWN_S)

    def shutdown(self, timeout_s: float) -> None:
        """Kills all engines and waits until their processes on this machine have exited. Safe to call twice.

        Raises:
            TimeoutExceededError: some are still running after `timeout_s` seconds.
        """
        for slot in self._slots:
            slot.kill("the fleet shuts down", logging.INFO)
        self._await_killed(timeout_s)

    def _new_slot(self, index: int, *, joins: bool = False) -> EngineSlot:
        return EngineSlot(index, self._spawn, EngineHealth(self._budget, self._clock, joins=joins), self._timeouts)

    def _joining_slot(self, index: int) -> EngineSlot:
        if self._grows_budget:
            self._budget.max_total = _restarts_of(index + 1)
        return self._new_slot(index, joins=True)

    def _await_killed(self, timeout_s: float) -> None:
        processes = [process for slot in self._slots for process in slot.killed_processes()]
        await_exit(processes, timeout_s, "engine")


def _restarts_of(num_engines: int) -> int:
    return max(16, 2 * num_engines)
