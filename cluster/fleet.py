"""The engine fleet: several engines that always serve the same weights.

    start    every engine is made, loaded, swapped to the champion and attested; only then is it healthy
    run      tasks go to healthy engines and come back in the order of completion (`cluster.dispatch`)
    swap     one engine after the other; all of them end at the new weights, or all of them at the old
    shutdown every engine is killed, and waited for

An engine whose swap fails half way never serves again: it is killed and a new one is made. Every wait is bounded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, TypeVar

import psutil
from ray.actor import ActorHandle

from actors.engines.base import Attestation, WeightMismatchError, WeightUpdate
from cluster.dispatch import Dispatch, Limits, Submit
from cluster.errors import EngineLostError, FleetError, TimeoutExceededError
from cluster.health import Clock, EngineHealth, Event, RestartBudget, State
from cluster.slot import EngineSlot, Spawn, Timeouts
from cluster.weights import Published, publish

T = TypeVar("T")

_SWAP_ATTEMPTS = 2
"""The second one is on a fresh process; weights that fail there too are at fault themselves."""

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
        clock: Clock = time.monotonic,
    ) -> None:
        if size < 1:
            raise ValueError(f"a fleet of {size} engines; expected at least 1")
        self._timeouts = Timeouts(task_timeout_s, start_timeout_s, swap_timeout_s)
        self._limits = Limits(max_attempts, max_in_flight_per_engine)
        self._budget = RestartBudget(max_restarts_per_engine, max_restarts)
        self._slots = [EngineSlot(index, spawn, EngineHealth(self._budget, clock), self._timeouts) for index in range(size)]
        self._target: Published | None = None
        self._running = False

    @property
    def engines(self) -> list[ActorHandle]:
        """Actors of the engines that serve the fleet's weights."""
        return [slot.handle for slot in self._slots if slot.health.state is State.HEALTHY]

    @property
    def num_restarts(self) -> int:
        return self._budget.num_restarts

    @property
    def weight_version(self) -> str:
        """Version that the fleet serves; empty before `start`."""
        return self._target.version if self._target else ""

    def states(self) -> list[State]:
        """The state of each engine, by index."""
        return [slot.health.state for slot in self._slots]

    def start(self, update: WeightUpdate) -> list[Attestation]:
        """Makes all engines, at the same time, and brings them to the champion. What was made is killed on failure.

        Raises:
            WeightMismatchError: the update does not fit the model.
            FleetError: an engine could not be started.
        """
        assert self._target is None, "a fleet starts once"
        target = publish(update)
        with ExitStack() as undo:
            undo.callback(self.shutdown, _SHUTDOWN_S)
            for slot in self._slots:
                slot.launch(target)
            attestations = [self._bring(slot, target) for slot in self._slots]
            undo.pop_all()
        self._target = target
        return attestations

    def run(self, tasks: Iterable[T], submit: Submit[T]) -> Iterator[tuple[T, Any]]:
        """Yields `(task, result)` in the order of completion. Tasks are taken as engines become free.

        `submit` starts a task on an engine and returns the reference of its last call, which may be on another actor. A task may
        run more than once. Closing the iterator early waits, bounded, until the engines are quiet.

        Raises:
            TaskFailedError: a task raised a `ValueError`, or failed on `max_attempts` engines.
            FleetError: all engines are lost and no restart is left.
        """
        assert self._target is not None, "start the fleet first"
        assert not self._running, "one run at a time"
        served = {slot.serving for slot in self._slots if slot.health.state is State.HEALTHY}
        assert served <= {self._target}, "a swap was interrupted: the fleet serves mixed weights"
        dispatch = Dispatch(self._slots, self._target, tasks, submit, self._timeouts, self._limits)
        self._running = True
        try:
            yield from dispatch.results()
        finally:
            self._running = False
            dispatch.abandon()

    def swap(self, update: WeightUpdate) -> list[Attestation]:
        """Brings every engine to `update`, one after the other, or leaves the whole fleet at what it served.

        Engines that are dead without a restart left are no longer part of the fleet.

        Raises:
            WeightMismatchError: an engine refused the update; the fleet serves its old weights.
            FleetError: an engine could not be brought to the update; the others serve the old weights again.
        """
        assert self._target is not None, "start the fleet first"
        assert not self._running, "no swap while tasks are in flight"
        target = publish(update)
        members = [slot for slot in self._slots if slot.health.state is not State.DEAD or slot.health.can_restart]
        if not members:
            raise FleetError("all engines are lost and no restart is left")
        try:
            attestations = [self._bring(slot, target) for slot in members]
        except (WeightMismatchError, FleetError):
            self._restore(self._target)
            raise
        self._target = target
        return attestations

    def shutdown(self, timeout_s: float) -> None:
        """Kills all engines and waits until their processes on this machine are gone. Safe to call twice.

        Raises:
            TimeoutExceededError: some are still there after `timeout_s` seconds.
        """
        for slot in self._slots:
            slot.kill("the fleet shuts down", logging.INFO)
        processes = [process for slot in self._slots for process in slot.killed_processes()]
        _, alive = psutil.wait_procs(processes, timeout=timeout_s)
        if alive:
            raise TimeoutExceededError(f"engine processes {[process.pid for process in alive]} are still there after {timeout_s:g} s")

    def _bring(self, slot: EngineSlot, target: Published) -> Attestation:
        """Makes one engine serve `target`, on a new process where the old one is lost."""
        last_error = "no restart is left"
        for _ in range(_SWAP_ATTEMPTS):
            if slot.health.state is State.DEAD:
                if not slot.health.can_restart:
                    break
                slot.launch(target)
            try:
                attestation = slot.finish_launch() if slot.is_launching else None
                if attestation is not None and slot.serving is target:
                    return attestation
                return slot.swap(target)
            except EngineLostError as error:
                last_error = str(error)
                slot.kill(last_error)
        raise FleetError(f"engine {slot.index} cannot be brought to {target.version}: {last_error}")

    def _restore(self, previous: Published) -> None:
        """Brings the engines that left `previous` back to it. One that cannot be brought back stays dead: a fleet never mixes."""
        for slot in self._slots:
            if slot.health.state is State.HEALTHY and slot.serving is previous:
                continue
            if slot.health.state is State.HEALTHY:
                slot.health.record(Event.OUTDATED)
            try:
                self._bring(slot, previous)
            except (WeightMismatchError, FleetError) as error:
                slot.kill(str(error))
