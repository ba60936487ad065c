"""How one engine is doing: a small state machine, pure, on an injected clock.

    restarting --started--> stale --swap_completed--> healthy --taken_out--> draining --swap_began--> stale --swap_began--> stale
                            healthy, draining --missed_deadline, work_abandoned--> suspect --answered--> healthy
    healthy --sleep_began--> asleep --swap_began--> stale
    any of them --died--> dead --restart_began--> restarting

Only a completed swap makes a stale engine healthy; only a healthy engine gets work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum

from cluster.errors import ClusterError

Clock = Callable[[], float]
"""Seconds from any fixed point, never going back."""


class State(StrEnum):
    RESTARTING = "restarting"  # its process is being made, also for the first time
    STALE = "stale"  # it runs, and awaits a swap or is in one
    HEALTHY = "healthy"  # it serves the weights that it has attested, and gets work
    DRAINING = "draining"  # it is taken out of service for a swap: it ends its tasks and gets no new ones
    ASLEEP = "asleep"  # it gives back its device's memory, or has, and awaits a swap
    SUSPECT = "suspect"  # it may hang or may be busy with work that nobody waits for
    DEAD = "dead"  # it has no process


class Event(StrEnum):
    STARTED = "started"
    SWAP_COMPLETED = "swap_completed"
    TAKEN_OUT = "taken_out"
    SWAP_BEGAN = "swap_began"
    SLEEP_BEGAN = "sleep_began"
    TASK_OK = "task_ok"
    MISSED_DEADLINE = "missed_deadline"
    WORK_ABANDONED = "work_abandoned"
    ANSWERED = "answered"
    DIED = "died"
    RESTART_BEGAN = "restart_began"


class IllegalTransitionError(ClusterError):
    """An event cannot happen in this state: a defect in the fleet, not in a machine."""


_TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.RESTARTING, Event.STARTED): State.STALE,
    (State.STALE, Event.SWAP_COMPLETED): State.HEALTHY,
    (State.HEALTHY, Event.TAKEN_OUT): State.DRAINING,
    (State.DRAINING, Event.SWAP_BEGAN): State.STALE,
    (State.STALE, Event.SWAP_BEGAN): State.STALE,
    (State.HEALTHY, Event.SLEEP_BEGAN): State.ASLEEP,
    (State.ASLEEP, Event.SWAP_BEGAN): State.STALE,
    (State.HEALTHY, Event.TASK_OK): State.HEALTHY,
    (State.DRAINING, Event.TASK_OK): State.DRAINING,
    (State.HEALTHY, Event.MISSED_DEADLINE): State.SUSPECT,
    (State.DRAINING, Event.MISSED_DEADLINE): State.SUSPECT,
    (State.HEALTHY, Event.WORK_ABANDONED): State.SUSPECT,
    (State.DRAINING, Event.WORK_ABANDONED): State.SUSPECT,
    (State.SUSPECT, Event.WORK_ABANDONED): State.SUSPECT,
    (State.SUSPECT, Event.ANSWERED): State.HEALTHY,
    (State.DEAD, Event.RESTART_BEGAN): State.RESTARTING,
    **{(state, Event.DIED): State.DEAD for state in State if state is not State.DEAD},
}

NOT_RUNNING = (State.RESTARTING, State.DEAD)

_OUT_OF_SERVICE = (*NOT_RUNNING, State.STALE)
"""Nothing is worked on in these, though there may be work; while engines sleep there is none."""


class RestartBudget:
    """Restarts left to a whole fleet: an update or a task that kills every engine must not restart them for ever."""

    def __init__(self, max_per_engine: int, max_total: int) -> None:
        self.max_per_engine = max_per_engine
        self.max_total = max_total
        self.num_restarts = 0


class EngineHealth:
    """State, restarts and the current deadline of one engine. Starts as `restarting`: its first process is being made."""

    def __init__(self, budget: RestartBudget, clock: Clock) -> None:
        self.state = State.RESTARTING
        self.num_restarts = 0
        self._budget = budget
        self._clock = clock
        self._deadline = math.inf
        self._out_since: float | None = clock()

    @property
    def can_restart(self) -> bool:
        """Whether the engine's and the fleet's budget allow one more restart."""
        return self.num_restarts < self._budget.max_per_engine and self._budget.num_restarts < self._budget.max_total

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline, at least 0; infinite when nothing is expected."""
        return max(0.0, self._deadline - self._clock())

    @property
    def is_overdue(self) -> bool:
        return self._clock() >= self._deadline

    @property
    def out_of_service_s(self) -> float:
        """Seconds for which the engine has done no work, and has not been able to; 0 while it can."""
        return 0.0 if self._out_since is None else self._clock() - self._out_since

    def expect_within(self, seconds: float) -> None:
        """Sets the deadline by which the engine must have done what it is doing."""
        self._deadline = self._clock() + seconds

    def expect_nothing(self) -> None:
        self._deadline = math.inf

    def record(self, event: Event) -> State:
        """The state after `event`.

        Raises:
            IllegalTransitionError: the event cannot happen now, or a restart is over the budget.
        """
        after = _TRANSITIONS.get((self.state, event))
        if after is None:
            raise IllegalTransitionError(f"{event} cannot happen to an engine that is {self.state}")
        if event is Event.RESTART_BEGAN:
            self._count_restart()
        if event in (Event.DIED, Event.SWAP_COMPLETED):
            self.expect_nothing()
        if after not in _OUT_OF_SERVICE:
            self._out_since = None
        elif self._out_since is None:
            self._out_since = self._clock()
        self.state = after
        return after

    def _count_restart(self) -> None:
        if not self.can_restart:
            raise IllegalTransitionError(f"no restart left: {self.num_restarts} of this engine, {self._budget.num_restarts} of its fleet")
        self.num_restarts += 1
        self._budget.num_restarts += 1
