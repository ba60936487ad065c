"""Dispatches tasks to the engines of a fleet: bounded work in flight, deadlines, retries on other engines.

The root cause of an error determines the reaction:

| what failed                                               | reaction                                                          |
|-----------------------------------------------------------|-------------------------------------------------------------------|
| the data (`ValueError`), a policy's code, a `FinalError`  | the run ends at once                                              |
| an engine: it died, hangs or raises an `EngineError`      | it is restarted while others serve; its oldest task is charged    |
| anything else                                             | the task is retried, if possible elsewhere, and charged           |

Charging a task counts one of its `max_attempts`. A task without attempts left ends the run. Engines may be swapped while tasks run
(`cluster.fleet.rolling`), but never while they have a task in flight.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.engines.errors import EngineError
from cluster.errors import TaskFailedError, short_message
from cluster.fleet.failures import raise_if_final, root_cause
from cluster.fleet.health import WITHOUT_PROCESS, Event
from cluster.fleet.rolling import RollingSwap
from cluster.fleet.slot import EngineSlot, Timeouts
from cluster.fleet.weights import UpdateRef

T = TypeVar("T")

Submit = Callable[[ActorHandle, T], ray.ObjectRef]
"""Submits a task to an engine, as one remote call or a chain; returns the reference of the last. The driver fetches its value, which
should be small: a call with several return values can leave the large ones where they are."""

_DRAIN_S = 30.0
"""How long a closed run waits for abandoned work; restarting an engine takes about as long."""

_LOOK_S = 0.25
"""How often deadlines are looked at."""

_NO_MORE: Any = object()


@dataclass(frozen=True, slots=True)
class Limits:
    max_attempts: int
    """Attempts at a task."""
    max_in_flight_per_engine: int


@dataclass(eq=False, slots=True)
class _Work(Generic[T]):
    task: T
    failed_on: list[int] = field(default_factory=list)
    """Indices of the engines it failed on, one per failure."""


@dataclass(eq=False, slots=True)
class _InFlight(Generic[T]):
    work: _Work[T]
    slot: EngineSlot
    ref: ray.ObjectRef


class BusyTime:
    """Seconds in which engines have a task, summed over the engines."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: dict[int, float] = {}

    def note(self, index: int, *, is_busy: bool) -> None:
        """Engine `index` has a task from now on, or has none."""
        now_s = time.monotonic()
        if is_busy:
            self._since.setdefault(index, now_s)
        else:
            self.seconds += now_s - self._since.pop(index, now_s)


class Dispatch(Generic[T]):
    """One run over the tasks, driven by `results`. After any end, `abandon` leaves no engine with a task."""

    def __init__(
        self, rolling: RollingSwap, tasks: Iterable[T], submit: Submit[T], timeouts: Timeouts, limits: Limits, busy: BusyTime
    ) -> None:
        self._rolling = rolling
        self._tasks = iter(tasks)
        self._submit = submit
        self._timeouts = timeouts
        self._limits = limits
        self._busy = busy
        self._retries: deque[_Work[T]] = deque()
        self._exhausted = False
        self._flights: defaultdict[int, list[_InFlight[T]]] = defaultdict(list)
        """By engine, oldest first: an actor runs its calls in the order of submission."""
        self._num_flights = 0
        self._ended: SimpleQueue[ray.ObjectRef] = SimpleQueue()
        """References that are ready, of tasks, starts and swaps."""
        self._watched: dict[ray.ObjectRef, _InFlight[T] | EngineSlot] = {}
        """What each reference that is not ready yet belongs to."""
        self._open: list[tuple[int, int]] = []
        """Heap of (tasks in flight, index) of engines that may take a task. An entry that is no longer true is dropped when it is met."""
        self._open_for: UpdateRef | None = None
        """The target for which `_open` was made."""
        self._looked_at = -math.inf

    def results(self) -> Iterator[tuple[T, Any]]:
        """Yields each task with its result, as they complete.

        Raises:
            TaskFailedError: a task failed because of its data, or in `max_attempts` attempts.
            FinalError, PolicyError: a task raised it.
            WeightMismatchError: an engine refused the weights of a roll; the fleet rolls back.
            FleetError: all engines are retired, or an engine could not be swapped to the weights of a roll.
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
        """Waits, for a bounded time, until the engines have finished submitted work; kills those that have not.

        Queued calls are not cancelled: a cancelled call that waits for its arguments stalls the actor's later calls (Ray 2.60).
        """
        busy = [slot for slot in self._rolling.slots if self._flights[slot.index] and slot.health.state not in WITHOUT_PROCESS]
        for slot in busy:
            self._num_flights -= len(self._flights[slot.index])
            self._flights[slot.index].clear()
            self._busy.note(slot.index, is_busy=False)
            slot.health.record(Event.WORK_ABANDONED)
            slot.health.expect_within(_DRAIN_S)
        for slot in busy:
            if slot.answers(slot.health.remaining_s):
                slot.health.record(Event.ANSWERED)
                slot.health.expect_nothing()
            else:
                self._rolling.kill(slot, "it did not finish abandoned work")

    def _is_over(self) -> bool:
        return self._exhausted and not self._num_flights and not self._retries

    def _advance(self) -> None:
        self._rolling.advance(self._num_in_flight)

    def _num_in_flight(self, slot: EngineSlot) -> int:
        return len(self._flights[slot.index])

    def _fill(self) -> None:
        """Sends tasks to engines that accept them, least busy first, until all are full or no task is left."""
        while (assignment := self._next_assignment()) is not None:
            slot, work = assignment
            flight = _InFlight(work, slot, self._submit(slot.handle, work.task))
            flights = self._flights[slot.index]
            flights.append(flight)
            self._busy.note(slot.index, is_busy=True)
            self._num_flights += 1
            self._watch(flight.ref, flight)
            self._offer(slot)
            if len(flights) == 1:
                slot.health.expect_within(self._timeouts.task_s)

    def _next_assignment(self) -> tuple[EngineSlot, _Work[T]] | None:
        slot = self._least_busy()
        if slot is None:
            return None
        if self._retries and (retry := self._next_retry()) is not None:
            return retry
        task = next(self._tasks, _NO_MORE)
        if task is _NO_MORE:
            self._exhausted = True
            return None
        return slot, _Work(task)

    def _next_retry(self) -> tuple[EngineSlot, _Work[T]] | None:
        """A task to repeat with an engine on which it has not failed, if any such engine lives."""
        alive = {slot.index for slot in self._rolling.slots if slot.health.state not in WITHOUT_PROCESS}
        open_slots = sorted(filter(self._is_open, self._rolling.slots), key=self._num_in_flight)
        for work in self._retries:
            for slot in open_slots:
                if slot.index not in work.failed_on or alive <= set(work.failed_on):
                    self._retries.remove(work)
                    return slot, work
        return None

    def _is_open(self, slot: EngineSlot) -> bool:
        return slot.index in self._rolling.current and self._num_in_flight(slot) < self._limits.max_in_flight_per_engine

    def _offer(self, slot: EngineSlot) -> None:
        """Notes that an engine may take a task, with its number of tasks by now."""
        if self._is_open(slot):
            heappush(self._open, (self._num_in_flight(slot), slot.index))

    def _least_busy(self) -> EngineSlot | None:
        """The open engine with the fewest tasks, and of those the one with the lowest index."""
        if self._open_for is not self._rolling.target:
            self._open, self._open_for = [], self._rolling.target
            for slot in self._rolling.slots:
                self._offer(slot)
        while self._open:
            num_in_flight, index = self._open[0]
            slot = self._rolling.slots[index]
            if self._is_open(slot) and self._num_in_flight(slot) == num_in_flight:
                return slot
            heappop(self._open)
        return None

    def _watch(self, ref: ray.ObjectRef, owner: _InFlight[T] | EngineSlot) -> None:
        """Has `ref` put into the queue when it is ready. `ray.wait` would go through all references at each event."""
        self._watched[ref] = owner
        ref.future().add_done_callback(lambda _: self._ended.put(ref))

    def _collect(self) -> Iterator[tuple[T, Any]]:
        """Waits for one task, start or swap to end, at most until deadlines are looked at again."""
        for ref, slot in self._rolling.changes().items():
            if ref not in self._watched:
                self._watch(ref, slot)
        try:
            ref = self._ended.get(timeout=_LOOK_S)
        except Empty:
            return
        owner = self._watched.pop(ref, None)
        if isinstance(owner, EngineSlot):
            if owner.is_changing and owner.changed == ref:
                self._rolling.finish(owner)
                self._offer(owner)
        elif owner is not None and owner in self._flights[owner.slot.index]:
            yield from self._collect_flight(owner)

    def _collect_flight(self, flight: _InFlight[T]) -> Iterator[tuple[T, Any]]:
        try:
            result = ray.get(flight.ref, timeout=self._timeouts.task_s)
        except RayError as error:
            self._handle_failure(flight, error)
            return
        self._remove(flight)
        flight.slot.health.record(Event.TASK_OK)
        self._advance()  # before the result is processed, so that a drained engine swaps meanwhile
        yield flight.work.task, result

    def _enforce_deadlines(self) -> None:
        if time.monotonic() - self._looked_at < _LOOK_S:
            return
        self._looked_at = time.monotonic()
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
        self._num_flights -= 1
        self._offer(flight.slot)
        if not flights:
            self._busy.note(flight.slot.index, is_busy=False)
            flight.slot.health.expect_nothing()
        elif was_oldest:
            flight.slot.health.expect_within(self._timeouts.task_s)

    def _handle_failure(self, flight: _InFlight[T], error: RayError) -> None:
        cause = root_cause(error)
        if isinstance(cause, RayError) and flight.slot.owns(cause):
            # It is not known which queued task killed the engine; it was working on the oldest.
            self._kill(flight.slot, short_message(cause), self._flights[flight.slot.index][0])
        elif isinstance(cause, EngineError):
            self._kill(flight.slot, short_message(cause), flight)
        else:
            self._remove(flight)
            raise_if_final(flight.work.task, len(flight.work.failed_on) + 1, cause, error)
            self._retry(flight, short_message(cause))

    def _kill(self, slot: EngineSlot, reason: str, to_blame: _InFlight[T]) -> None:
        """Kills an engine and retries its tasks elsewhere; only the task to blame is charged."""
        self._rolling.kill(slot, reason)
        flights, self._flights[slot.index] = self._flights[slot.index], []
        self._num_flights -= len(flights)
        self._busy.note(slot.index, is_busy=False)
        self._retries.extend(flight.work for flight in flights if flight is not to_blame)
        self._retry(to_blame, reason)

    def _retry(self, flight: _InFlight[T], reason: str) -> None:
        work = flight.work
        work.failed_on.append(flight.slot.index)
        if len(work.failed_on) >= self._limits.max_attempts:
            raise TaskFailedError(str(work.task), len(work.failed_on), reason)
        self._retries.append(work)
