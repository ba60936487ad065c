"""Stateless Ray tasks for what engines have produced, such as filters: bounded in number and time, and repeated if they fail.

    engine ──► a small summary, to the driver
          └──► data, by reference ──► a task ──► the item's result

| what failed                                                 | reaction                                                  |
|-------------------------------------------------------------|-----------------------------------------------------------|
| the process or node of a task; the task with an `OSError`   | Ray repeats the task, up to `MAX_ATTEMPTS` attempts       |
| the node of a task, for good                                | it is started on another node                             |
| a task hangs                                                | it is killed and repeated, up to `MAX_ATTEMPTS` attempts  |
| the data that a task needs is lost                          | its item starts over on an engine                         |
| anything else                                               | the run ends at once                                      |
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayError

from cluster.errors import TaskFailedError, short_message
from cluster.fleet.failures import raise_if_final, root_cause
from cluster.fleet.fleet import Fleet
from cluster.resources.placement import CheckPlacement

T = TypeVar("T")

logger = logging.getLogger(__name__)

SubmitForTask = Callable[[ActorHandle, T], tuple[ray.ObjectRef, ray.ObjectRef]]
"""Submits an item to an engine; returns the references of a small summary, which the driver fetches, and of the data for the task."""

MAX_ATTEMPTS = 3
_DRAIN_S = 5.0
_LOOK_S = 2.0
"""How often it is checked, while no task ends, whether one waits for a lost node."""

_RETRIES: dict[str, Any] = {"max_retries": MAX_ATTEMPTS - 1, "retry_exceptions": [OSError]}


@dataclass(eq=False, slots=True)
class _Unfinished(Generic[T]):
    item: T
    args: tuple[Any, ...]
    ref: ray.ObjectRef
    options: dict[str, Any]
    num_attempts: int = 1
    oldest_since: float | None = None
    """When it became the oldest of the unfinished tasks."""


class StatelessTasks(Generic[T]):
    """Calls of one function as Ray tasks. Ray starts them as their resources become free, in the order of submission."""

    def __init__(
        self,
        function: Callable[..., Any],
        constants: tuple[Any, ...],
        max_unfinished: int,
        timeout_s: float,
        options: Callable[[], dict[str, Any]],
        check_placement: CheckPlacement = lambda: None,
        is_stranded: Callable[[dict[str, Any]], bool] = lambda _: False,
    ) -> None:
        """Starts nothing.

        Args:
            function: called with `constants`, which are sent to each node once, and the arguments of an item.
            constants: see `function`.
            max_unfinished: tasks that have been submitted and have not ended.
            timeout_s: limit of a task, from when it is the oldest.
            options: returns Ray's options of the next task.
            check_placement: raises an error with advice if a task that is overdue has no room.
            is_stranded: whether a task with such options cannot run where it was sent, although others can.
        """
        self._task = ray.remote(**_RETRIES)(function)
        self._options = options
        self._constants = constants
        self._constant_refs: list[ray.ObjectRef] = []
        self._max_unfinished = max_unfinished
        self._timeout_s = timeout_s
        self._check_placement = check_placement
        self._is_stranded = is_stranded
        self._unfinished: deque[_Unfinished[T]] = deque()
        self._lost: list[T] = []
        self._num_losses: Counter[str] = Counter()

    def after(self, fleet: Fleet, items: Sequence[T], submit: SubmitForTask[T]) -> Generator[tuple[T, Any]]:
        """Runs items on a fleet's engines, then a task on what the engine made of each: the function is called with the constants, the
        item, its summary and its data. Yields `(item, result)`; items are told apart by their text.

        Raises what `Fleet.run` and `run` do.
        """
        data: dict[str, ray.ObjectRef] = {}

        def submit_and_keep(engine: ActorHandle, item: T) -> ray.ObjectRef:
            summary, data[str(item)] = submit(engine, item)
            return summary

        while items:
            with (
                closing(fleet.run(items, submit_and_keep)) as begun,
                closing(self.run((item, (item, summary, data.pop(str(item)))) for item, summary in begun)) as done,
            ):
                yield from done
            items = self.take_lost()

    def run(self, items: Iterable[tuple[T, tuple[Any, ...]]]) -> Generator[tuple[T, Any]]:
        """Starts a task for each item with its arguments, and yields `(item, result)` in the order of completion. Takes the next item
        only while fewer than `max_unfinished` tasks are unfinished. Closing the iterator early waits, for a bounded time, for the
        unfinished tasks, and kills those that remain.

        Raises:
            TaskFailedError: a task raised an error that is not temporary, or failed in `MAX_ATTEMPTS` attempts.
            FinalError, PolicyError: a task raised it.
            NotEnoughResourcesError: a task did not run in time because its resources are lost.
        """
        self._constant_refs = [ray.put(constant) for constant in self._constants]
        try:
            for item, args in items:
                self._unfinished.append(self._submitted(item, args, 1))
                yield from self._collect(wait=False)
                while len(self._unfinished) >= self._max_unfinished:
                    yield from self._collect(wait=True)
            while self._unfinished:
                yield from self._collect(wait=True)
        finally:
            self._abandon()

    def take_lost(self) -> list[T]:
        """Items of the last run whose arguments were lost before their task could use them."""
        lost, self._lost = self._lost, []
        return lost

    def _submitted(self, item: T, args: tuple[Any, ...], num_attempts: int) -> _Unfinished[T]:
        options = self._options()
        return _Unfinished(item, args, self._task.options(**options).remote(*self._constant_refs, *args), options, num_attempts)

    def _collect(self, *, wait: bool) -> Iterator[tuple[T, Any]]:
        """Yields results of finished tasks. With `wait`, waits for one, at most until the oldest task is overdue, which is repeated."""
        remaining_s = self._remaining_s()
        by_ref = {task.ref: task for task in self._unfinished}
        limit_s = min(remaining_s, _LOOK_S) if wait else 0
        ready, _ = ray.wait([*by_ref], num_returns=1 if wait else len(by_ref), timeout=limit_s)
        if not ready and remaining_s == 0:
            self._repeat(self._unfinished[0])
        elif not ready and wait:
            self._move_stranded()
        for ref in ready:
            task = by_ref[ref]
            self._unfinished.remove(task)
            try:
                result = ray.get(ref, timeout=self._timeout_s)
            except RayError as error:
                self._handle_failure(task, error)
            else:
                yield task.item, result

    def _remaining_s(self) -> float:
        """Seconds until the oldest task is overdue."""
        oldest, now = self._unfinished[0], time.monotonic()
        if oldest.oldest_since is None:
            oldest.oldest_since = now
        return max(0.0, oldest.oldest_since + self._timeout_s - now)

    def _handle_failure(self, task: _Unfinished[T], error: RayError) -> None:
        cause = root_cause(error)
        if isinstance(cause, ObjectLostError):
            self._handle_loss(task.item, short_message(cause))
            return
        raise_if_final(task.item, task.num_attempts, cause, error)
        was_repeated = isinstance(cause, OSError | RayError)
        raise TaskFailedError(str(task.item), MAX_ATTEMPTS if was_repeated else task.num_attempts, short_message(cause)) from error

    def _handle_loss(self, item: T, reason: str) -> None:
        self._num_losses[str(item)] += 1
        if self._num_losses[str(item)] >= MAX_ATTEMPTS:
            raise TaskFailedError(str(item), MAX_ATTEMPTS, reason)
        logger.warning("%s starts over: %s", item, reason)
        self._lost.append(item)

    def _abandon(self) -> None:
        refs = [task.ref for task in self._unfinished]
        self._unfinished.clear()
        for ref in ray.wait(refs, num_returns=len(refs), timeout=_DRAIN_S)[1] if refs else []:
            ray.cancel(ref, force=True)

    def _repeat(self, task: _Unfinished[T]) -> None:
        """Kills a task that is overdue, and starts it again."""
        self._check_placement()
        reason = f"it took longer than {self._timeout_s:g} s"
        ray.cancel(task.ref, force=True)
        if task.num_attempts >= MAX_ATTEMPTS:
            raise TaskFailedError(str(task.item), task.num_attempts, reason)
        logger.warning("%s is repeated: %s", task.item, reason)
        self._unfinished[0] = self._submitted(task.item, task.args, task.num_attempts + 1)

    def _move_stranded(self) -> None:
        """Starts tasks elsewhere that wait for a node which is lost. Ray would have them wait until their resources are back."""
        for number, task in enumerate(self._unfinished):
            if self._is_stranded(task.options):
                ray.cancel(task.ref, force=True)
                logger.warning("%s is started elsewhere, because its node is lost", task.item)
                self._unfinished[number] = self._submitted(task.item, task.args, task.num_attempts)
