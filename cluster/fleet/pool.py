"""A pool of small CPU actors beside the engines, such as filters: an actor that dies or hangs is killed and replaced.

    launch   starts all actors without waiting for them
    submit   queues a call; each actor runs one call at a time
    collect  admits, kills and restarts actors, gives free ones the next calls, returns calls that have ended
    shutdown kills every actor and waits for the end of its process

The actors keep no state that others need. If an actor dies, the caller must resubmit its call.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError

from cluster.errors import FleetError, PoolActorLostError, short_message
from cluster.fleet.health import NOT_RUNNING, ActorHealth, Clock, Event, RestartBudget, State
from cluster.fleet.supervised import Spawn, SupervisedActor
from cluster.processes import READY_S, await_exit
from cluster.resources.placement import CheckPlacement

logger = logging.getLogger(__name__)

_MAX_WAITING_PER_ACTOR = 2


@dataclass(eq=False, slots=True)
class Call:
    """A call for `item`. After it has ended, it has either a result or an error."""

    item: Any
    start: Callable[[ActorHandle], ray.ObjectRef]
    result: Any = None
    error: Exception | None = None


class _Actor(SupervisedActor):
    """One actor of the pool, with its call."""

    def __init__(self, name: str, spawn: Spawn, index: int, health: ActorHealth) -> None:
        super().__init__(name, index, spawn, health)
        self.call: Call | None = None
        self.pending: ray.ObjectRef | None = None
        """Ready when its construction or its call has succeeded or failed."""

    @property
    def is_free(self) -> bool:
        return self.health.state is State.HEALTHY and self.call is None

    def launch(self, timeout_s: float) -> None:
        self.pending = self._start_process(timeout_s).location

    def admit(self) -> None:
        """Raises a `RayError` if it could not be constructed."""
        assert self._process is not None
        self._process.locate(*ray.get(self._process.location, timeout=READY_S))
        self.pending = None
        # It has no weights, so it is healthy as soon as it is constructed.
        self.health.record(Event.STARTED)
        self.health.record(Event.SWAP_COMPLETED)

    def begin(self, call: Call, timeout_s: float) -> None:
        assert self._process is not None
        self.call, self.pending = call, call.start(self._process.handle)
        self.health.expect_within(timeout_s)

    def finish(self) -> Call:
        """Returns the ended call. Raises a `RayError` if this actor is dead."""
        assert self._process is not None
        assert self.call is not None
        assert self.pending is not None
        try:
            self.call.result = ray.get(self.pending, timeout=READY_S)
        except RayError as error:
            if isinstance(error, GetTimeoutError) or self._process.owns(error):
                raise
            self.call.error = error
        ended, self.call, self.pending = self.call, None, None
        self.health.record(Event.TASK_OK)
        self.health.expect_nothing()
        return ended

    def kill(self, reason: str, level: int = logging.WARNING) -> Call | None:
        """Kills the actor's process; returns its call, with an error. Does nothing if there is no process."""
        if not self._kill_process(reason, level):
            return None
        call, self.call, self.pending = self.call, None, None
        if call is not None:
            call.error = PoolActorLostError(f"{self.name}: {reason}")
        return call


class Pool:
    """Actors 0 to `size` - 1, called `name`. Not thread-safe: one driver thread owns it."""

    def __init__(
        self,
        name: str,
        spawn: Spawn,
        size: int,
        *,
        call_timeout_s: float,
        start_timeout_s: float,
        max_restarts_per_actor: int = 3,
        max_restarts: int = 16,
        check_placement: CheckPlacement = lambda: None,
        clock: Clock = time.monotonic,
    ) -> None:
        if size < 1:
            raise ValueError(f"a pool of {size} actors; expected at least 1")
        self._name = name
        self._call_timeout_s = call_timeout_s
        self._start_timeout_s = start_timeout_s
        self._check_placement = check_placement
        self._budget = RestartBudget(max_restarts_per_actor, max_restarts)
        self._actors = [_Actor(name, spawn, index, ActorHealth(self._budget, clock)) for index in range(size)]
        self._waiting: deque[Call] = deque()
        self._last_error = "none"

    @property
    def num_restarts(self) -> int:
        return self._budget.num_restarts

    @property
    def is_idle(self) -> bool:
        """Whether no call is queued or running."""
        return not self._waiting and all(actor.call is None for actor in self._actors)

    @property
    def is_full(self) -> bool:
        """Whether so many calls are queued that no more should be submitted for now."""
        return len(self._waiting) >= _MAX_WAITING_PER_ACTOR * len(self._actors)

    @property
    def remaining_s(self) -> float:
        """Seconds until the next deadline of an actor."""
        return min((actor.health.remaining_s for actor in self._actors), default=math.inf)

    def states(self) -> list[State]:
        """The state of each actor, by index."""
        return [actor.health.state for actor in self._actors]

    def launch(self) -> None:
        """Starts all actors without waiting for them."""
        for actor in self._actors:
            actor.launch(self._start_timeout_s)

    def submit(self, item: Any, start: Callable[[ActorHandle], ray.ObjectRef]) -> None:
        """Queues a call for `item`; `start` starts it on an actor."""
        self._waiting.append(Call(item, start))

    def pending(self) -> list[ray.ObjectRef]:
        """References to wait for: when one is ready, `collect` has work to do."""
        return [actor.pending for actor in self._actors if actor.pending is not None]

    def collect(self) -> list[Call]:
        """Calls that have ended, in any order; never waits.

        Raises:
            FleetError: all actors are retired.
            NotEnoughResourcesError: no actor runs, and there is no room for one.
        """
        ended = [call for actor in self._actors if (call := self._poll_actor(actor)) is not None]
        for actor in self._actors:
            if actor.health.state is State.DEAD and actor.health.restart_or_retire() is State.RESTARTING:
                actor.launch(self._start_timeout_s)
            if actor.is_free and self._waiting:
                actor.begin(self._waiting.popleft(), self._call_timeout_s)
        if all(actor.health.state is State.RETIRED for actor in self._actors):
            raise FleetError(f"all {len(self._actors)} {self._name}(s) are lost and no restart is left; the last error: {self._last_error}")
        return ended

    def abandon(self, timeout_s: float) -> None:
        """Drops all queued calls and waits, for a bounded time, until the actors are free; kills those that are not."""
        self._waiting.clear()
        busy = {actor.pending: actor for actor in self._actors if actor.call is not None}
        if busy:
            ray.wait([*busy], num_returns=len(busy), timeout=timeout_s)
        for actor in busy.values():
            if self._poll_actor(actor) is None:
                self._kill(actor, "it did not finish abandoned work")

    def shutdown(self, timeout_s: float) -> None:
        """Kills all actors and waits until their processes on this machine have exited. Safe to call twice.

        Raises:
            TimeoutExceededError: some are still running after `timeout_s` seconds.
        """
        for actor in self._actors:
            actor.kill("the pool shuts down", logging.INFO)
        await_exit([process for actor in self._actors for process in actor.killed_processes()], timeout_s, self._name)

    def _poll_actor(self, actor: _Actor) -> Call | None:
        """Admits or kills an actor if due; returns its call if that has ended."""
        if actor.pending is None:
            return None
        if not ray.wait([actor.pending], timeout=0)[0]:
            return self._kill_overdue(actor) if actor.health.is_overdue else None
        try:
            return actor.finish() if actor.call is not None else actor.admit()
        except RayError as error:
            return self._kill(actor, short_message(error))

    def _kill_overdue(self, actor: _Actor) -> Call | None:
        if actor.call is not None:
            return self._kill(actor, f"a task took longer than {self._call_timeout_s:g} s")
        if all(one.health.state in NOT_RUNNING for one in self._actors):
            self._check_placement()
        return self._kill(actor, f"it did not start within {self._start_timeout_s:g} s")

    def _kill(self, actor: _Actor, reason: str) -> Call | None:
        self._last_error = f"{actor.name}: {reason}"
        return actor.kill(reason)
