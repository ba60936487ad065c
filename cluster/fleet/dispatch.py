"""Dispatches tasks to the engines of a fleet: bounded work in flight, deadlines, retries on other engines.

    first part on an engine ──► its result, by reference ──► last part on an actor of a pool (optional) ──► the task's result

The root cause of an error determines the reaction:

| what failed                                               | reaction                                                          |
|-----------------------------------------------------------|-------------------------------------------------------------------|
| the data (`ValueError`), a policy's code, a `FinalError`  | the run ends at once                                              |
| an engine: it died, hangs or raises an `EngineError`      | it is restarted while others serve; its oldest task is charged    |
| an actor of the pool: it died or hangs                    | it is replaced; its call is repeated and charged                  |
| anything else                                             | the part is retried, if possible elsewhere, and charged           |
| the first part's result is lost                           | the task starts over, if possible elsewhere, and is charged       |

Charging a task counts one of its `max_attempts`. A task without attempts left ends the run. Engines may be swapped while tasks run
(`cluster.fleet.rolling`), but never while they have a task in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from actors.engines.errors import EngineError
from cluster.errors import FinalError, TaskFailedError, short_message
from cluster.fleet.health import WITHOUT_PROCESS, Event
from cluster.fleet.pool import Call, Pool
from cluster.fleet.rolling import RollingSwap
from cluster.fleet.slot import EngineSlot, Timeouts
from policies.errors import PolicyError

T = TypeVar("T")

Submit = Callable[[ActorHandle, T], ray.ObjectRef]
"""Submits a task's first part to an engine, as one remote call or a chain; returns the reference of the last. The driver fetches its
value, which should be small."""

_DRAIN_S = 30.0
"""How long a closed run waits for abandoned work; restarting an engine takes about as long."""

_MAX_NAME_CHARS = 200

_NO_MORE: Any = object()


@dataclass(frozen=True, slots=True)
class Limits:
    max_attempts: int
    """Attempts at a task, over all its parts."""
    max_in_flight_per_engine: int


@dataclass(frozen=True, slots=True)
class Then(Generic[T]):
    """The last part of every task, on an actor of a pool. Engines do not wait for it and are not blamed for its failures."""

    pool: Pool
    submit: Callable[[ActorHandle, T, ray.ObjectRef], ray.ObjectRef]
    """Submits it to an actor, given the first part's result."""


@dataclass(eq=False, slots=True)
class _Work(Generic[T]):
    task: T
    num_failures: int = 0
    failed_on: list[int] = field(default_factory=list)
    """Indices of the engines it failed on."""


@dataclass(eq=False, slots=True)
class _InFlight(Generic[T]):
    work: _Work[T]
    slot: EngineSlot
    ref: ray.ObjectRef


@dataclass(frozen=True, slots=True)
class _Begun(Generic[T]):
    """A task whose first part is done."""

    work: _Work[T]
    ref: ray.ObjectRef


class Dispatch(Generic[T]):
    """One run over the tasks, driven by `results`. After any end, `abandon` leaves no engine with a task."""

    def __init__(
        self,
        rolling: RollingSwap,
        tasks: Iterable[T],
        submit: Submit[T],
        then: Then[T] | None,
        timeouts: Timeouts,
        limits: Limits,
        *,
        pinned: bool,
    ) -> None:
        self._rolling = rolling
        self._then = then
        self._pinned = pinned
        self._tasks = iter(tasks)
        self._submit = submit
        self._timeouts = timeouts
        self._limits = limits
        self._retries: deque[_Work[T]] = deque()
        self._exhausted = False
        self._flights: dict[int, list[_InFlight[T]]] = {slot.index: [] for slot in rolling.slots}
        """By engine, oldest first: an actor runs its calls in the order of submission."""

    def results(self) -> Iterator[tuple[T, Any]]:
        """Yields each task with its result, as they complete.

        Raises:
            TaskFailedError: a task failed because of its data, or in `max_attempts` attempts.
            FinalError, PolicyError: a task raised it.
            WeightMismatchError: an engine refused the weights of a roll; the fleet rolls back.
            FleetError: all engines, or all actors of the pool, are retired; or an engine could not be swapped to the weights of a
                roll.
        """
        while True:
            self._rolling.restart_dead()
            self._advance()
            self._fill()
            if self._is_over():
                return
            yield from self._collect()
            self._enforce_deadlines()

    def abandon(self) -> None:
        """Waits, for a bounded time, until engines and pool have finished submitted work; kills those that have not.

        Queued calls are not cancelled: a cancelled call that waits for its arguments stalls the actor's later calls (Ray 2.60).
        """
        busy = [slot for slot in self._rolling.slots if self._flights[slot.index] and slot.health.state not in WITHOUT_PROCESS]
        for slot in busy:
            self._flights[slot.index].clear()
            slot.health.record(Event.WORK_ABANDONED)
            slot.health.expect_within(_DRAIN_S)
        for slot in busy:
            if slot.answers(slot.health.remaining_s):
                slot.health.record(Event.ANSWERED)
                slot.health.expect_nothing()
            else:
                self._rolling.kill(slot, "it did not finish abandoned work")
        if self._then is not None:
            self._then.pool.abandon(_DRAIN_S)

    def _is_over(self) -> bool:
        is_idle = self._then is None or self._then.pool.is_idle
        return self._exhausted and not any(self._flights.values()) and not self._retries and is_idle

    def _advance(self) -> None:
        self._rolling.advance(self._num_in_flight, old_may_serve=not self._pinned)

    def _num_in_flight(self, slot: EngineSlot) -> int:
        return len(self._flights[slot.index])

    def _fill(self) -> None:
        """Sends tasks to engines that accept them, least busy first, until all are full or no task is left."""
        while open_slots := self._open_slots():
            assignment = self._next_assignment(open_slots)
            if assignment is None:
                return
            slot, work = assignment
            flights = self._flights[slot.index]
            flights.append(_InFlight(work, slot, self._submit(slot.handle, work.task)))
            if len(flights) == 1:
                slot.health.expect_within(self._timeouts.task_s)

    def _open_slots(self) -> list[EngineSlot]:
        if self._then is not None and self._then.pool.is_full:
            return []
        limit = self._limits.max_in_flight_per_engine
        fit = [
            slot for slot in self._rolling.slots if self._rolling.accepts_tasks(slot, self._pinned) and self._num_in_flight(slot) < limit
        ]
        return sorted(fit, key=self._num_in_flight)

    def _next_assignment(self, open_slots: list[EngineSlot]) -> tuple[EngineSlot, _Work[T]] | None:
        alive = {slot.index for slot in self._rolling.slots if slot.health.state not in WITHOUT_PROCESS}
        for work in self._retries:
            for slot in open_slots:
                if slot.index not in work.failed_on or alive <= set(work.failed_on):
                    self._retries.remove(work)
                    return slot, work
        task = next(self._tasks, _NO_MORE)
        if task is _NO_MORE:
            self._exhausted = True
            return None
        return open_slots[0], _Work(task)

    def _collect(self) -> Iterator[tuple[T, Any]]:
        """Waits for one part, start or swap to end, at most until the next deadline."""
        flights = {flight.ref: flight for flights in self._flights.values() for flight in flights}
        changes = self._rolling.changes()
        pool = self._then.pool if self._then else None
        deadlines = [slot.health.remaining_s for slot in self._rolling.slots] + ([pool.remaining_s] if pool else [])
        ready, _ = ray.wait([*flights, *changes, *(pool.pending() if pool else [])], num_returns=1, timeout=min(deadlines))
        for ref in ready:
            if ref in changes:
                self._rolling.finish(changes[ref])
            elif ref in flights:
                yield from self._collect_flight(flights[ref])
        if pool:
            for call in pool.collect():
                yield from self._collect_call(call)

    def _collect_flight(self, flight: _InFlight[T]) -> Iterator[tuple[T, Any]]:
        try:
            result = ray.get(flight.ref, timeout=self._timeouts.task_s)
        except RayError as error:
            self._handle_failure(flight, error)
            return
        self._remove(flight)
        flight.slot.health.record(Event.TASK_OK)
        self._advance()  # before the result is processed, so that a drained engine swaps meanwhile
        if self._then is None:
            yield flight.work.task, result
        else:
            self._submit_last_part(self._then, _Begun(flight.work, flight.ref))

    def _submit_last_part(self, then: Then[T], begun: _Begun[T]) -> None:
        then.pool.submit(begun, lambda actor: then.submit(actor, begun.work.task, begun.ref))

    def _collect_call(self, call: Call) -> Iterator[tuple[T, Any]]:
        work: _Work[T] = call.item.work
        if call.error is None:
            yield work.task, call.result
            return
        assert self._then is not None
        cause = _root_cause(call.error)
        _raise_if_final(work, cause, call.error)
        self._charge(work, short_message(cause))
        if isinstance(cause, RayError):  # an error of its arguments, not of the actor
            self._retries.append(work)
        else:
            self._submit_last_part(self._then, call.item)

    def _enforce_deadlines(self) -> None:
        self._rolling.enforce_deadlines()
        for slot in self._rolling.slots:
            if slot.is_changing or not slot.health.is_overdue:
                continue
            oldest = self._flights[slot.index][0]
            if ray.wait([oldest.ref], timeout=0)[0]:
                continue  # done, and collected next
            slot.health.record(Event.MISSED_DEADLINE)
            self._kill(slot, f"a task took longer than {self._timeouts.task_s:g} s", oldest)

    def _remove(self, flight: _InFlight[T]) -> None:
        """Removes a task from those in flight on its engine. The next one's deadline starts when it becomes the oldest."""
        flights = self._flights[flight.slot.index]
        was_oldest = flights[0] is flight
        flights.remove(flight)
        if not flights:
            flight.slot.health.expect_nothing()
        elif was_oldest:
            flight.slot.health.expect_within(self._timeouts.task_s)

    def _handle_failure(self, flight: _InFlight[T], error: RayError) -> None:
        cause = _root_cause(error)
        if isinstance(cause, RayError) and flight.slot.owns(cause):
            # It is not known which queued task killed the engine; it was working on the oldest.
            self._kill(flight.slot, short_message(cause), self._flights[flight.slot.index][0])
        elif isinstance(cause, EngineError):
            self._kill(flight.slot, short_message(cause), flight)
        else:
            self._remove(flight)
            _raise_if_final(flight.work, cause, error)
            self._retry(flight, short_message(cause))

    def _kill(self, slot: EngineSlot, reason: str, to_blame: _InFlight[T]) -> None:
        """Kills an engine and retries its tasks elsewhere; only the task to blame is charged."""
        self._rolling.kill(slot, reason)
        flights, self._flights[slot.index] = self._flights[slot.index], []
        self._retries.extend(flight.work for flight in flights if flight is not to_blame)
        self._retry(to_blame, reason)

    def _retry(self, flight: _InFlight[T], reason: str) -> None:
        flight.work.failed_on.append(flight.slot.index)
        self._charge(flight.work, reason)
        self._retries.append(flight.work)

    def _charge(self, work: _Work[T], reason: str) -> None:
        work.num_failures += 1
        if work.num_failures >= self._limits.max_attempts:
            raise TaskFailedError(_name(work.task), work.num_failures, reason)


def _raise_if_final(work: _Work[Any], cause: Exception, error: Exception) -> None:
    """Ends the run if another attempt would fail in the same way."""
    if isinstance(cause, FinalError | PolicyError):
        raise cause from error
    if isinstance(cause, ValueError) and not isinstance(cause, RayError):
        raise TaskFailedError(_name(work.task), work.num_failures + 1, short_message(cause)) from error


def _root_cause(error: Exception) -> Exception:
    """The first error in a chain of calls: every call that depends on a failed one wraps its error again."""
    cause = error
    while isinstance(cause, RayTaskError) and isinstance(cause.cause, Exception):
        cause = cause.cause
    return cause


def _name(task: object) -> str:
    text = str(task)
    return text if len(text) <= _MAX_NAME_CHARS else f"{text[:_MAX_NAME_CHARS]}..."
