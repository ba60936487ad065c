"""The health of one engine: a small pure state machine with an injected clock.

    restarting --started--> stale --swap_completed--> healthy --drain_began--> draining --swap_began--> stale --swap_began--> stale
                            healthy, draining --missed_deadline, work_abandoned--> suspect --answered--> healthy
    healthy --sleep_began--> asleep --swap_began--> stale
    any of them --died--> dead
    dead --room_lost--> unplaced
    dead, unplaced --restart_began, move_began--> restarting
    dead, unplaced --restarts_used_up--> retired
    retired --refilled--> unplaced
    unplaced --join_began--> restarting, if it is on probation

A restart on the same node is charged to the engine and to the fleet. A move, after its node was lost, is not charged to the engine, and to
the fleet once for all engines of that node. An engine that joins a running fleet, or comes back from retirement, is on probation until
its first completed swap: its start is charged to nobody, and if that fails, it retires.

Only a healthy engine gets work. These transitions must not exist:

- restarting or asleep to healthy, and stale to healthy without a completed swap: the engine's weights would be unknown.
- healthy to stale directly: an engine is drained before its swap, because one task must not see two versions.
- suspect to draining or stale: an engine that may hang would block its swap. It must answer or die first.
- dead or unplaced to any state with a process except restarting: the next process has no weights and needs start and swap.
- dead or unplaced to restarting if no restart is left, and to retired if one is. Only the supervisor knows whether the engine's node is
  lost, so it decides when it is about to restart the engine (`restart_or_retire`).
- retired to any state but unplaced, and there only when restarts are refilled: the fleet may have completed a roll without the engine.
- unplaced to restarting without a charge, for an engine that is not on probation: a fault could restart it forever.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum

from cluster.errors import ClusterError

Clock = Callable[[], float]
"""Monotonic time in seconds."""


class State(StrEnum):
    RESTARTING = "restarting"  # its process starts, also for the first time
    STALE = "stale"  # it runs, and waits for a swap or is in one
    HEALTHY = "healthy"  # it serves the weights that it has attested, and gets work
    DRAINING = "draining"  # it finishes its tasks before a swap and gets no new ones
    ASLEEP = "asleep"  # it releases or has released its device's memory and waits for a swap
    SUSPECT = "suspect"  # it may hang, or be busy with abandoned work
    DEAD = "dead"  # it has no process and may be restarted
    UNPLACED = "unplaced"  # it has no process and no node has room for it: not part of the fleet until one has
    RETIRED = "retired"  # it has no process and no restart left: not part of the fleet until restarts are refilled


class Event(StrEnum):
    STARTED = "started"
    SWAP_COMPLETED = "swap_completed"
    DRAIN_BEGAN = "drain_began"
    SWAP_BEGAN = "swap_began"
    SLEEP_BEGAN = "sleep_began"
    TASK_OK = "task_ok"
    MISSED_DEADLINE = "missed_deadline"
    WORK_ABANDONED = "work_abandoned"
    ANSWERED = "answered"
    DIED = "died"
    ROOM_LOST = "room_lost"
    RESTART_BEGAN = "restart_began"
    MOVE_BEGAN = "move_began"
    JOIN_BEGAN = "join_began"
    RESTARTS_USED_UP = "restarts_used_up"
    REFILLED = "refilled"


class IllegalTransitionError(ClusterError):
    """An event cannot happen in this state: a bug in the fleet, not a fault of a machine."""


DOWN = (State.DEAD, State.UNPLACED)
AWAY = (State.UNPLACED, State.RETIRED)
"""States of engines that are not part of the fleet."""
WITHOUT_PROCESS = (*DOWN, State.RETIRED)
NOT_RUNNING = (State.RESTARTING, *WITHOUT_PROCESS)

_TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.RESTARTING, Event.STARTED): State.STALE,
    (State.STALE, Event.SWAP_COMPLETED): State.HEALTHY,
    (State.HEALTHY, Event.DRAIN_BEGAN): State.DRAINING,
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
    (State.DEAD, Event.ROOM_LOST): State.UNPLACED,
    **{(state, event): State.RESTARTING for state in DOWN for event in (Event.RESTART_BEGAN, Event.MOVE_BEGAN)},
    (State.UNPLACED, Event.JOIN_BEGAN): State.RESTARTING,
    **{(state, Event.RESTARTS_USED_UP): State.RETIRED for state in DOWN},
    (State.RETIRED, Event.REFILLED): State.UNPLACED,
    **{(state, Event.DIED): State.DEAD for state in State if state not in WITHOUT_PROCESS},
}

_OUT_OF_SERVICE = (*NOT_RUNNING, State.STALE)
"""States in which an engine does no work although there may be some; while engines sleep there is none."""


class RestartBudget:
    """Limits the restarts of all engines of a fleet: an update or a task that kills every engine must not restart them forever."""

    def __init__(self, max_per_engine: int, max_total: int) -> None:
        self.max_per_engine = max_per_engine
        self.max_total = max_total
        self.num_restarts = 0
        """All that were charged."""
        self._num_at_refill = 0
        self._charged_nodes: set[str] = set()

    @property
    def num_left(self) -> int:
        return self.max_total - (self.num_restarts - self._num_at_refill)

    def refill(self) -> None:
        """Starts to count anew."""
        self._num_at_refill = self.num_restarts

    def allows_move_from(self, lost_node: str) -> bool:
        return lost_node in self._charged_nodes or self.num_left > 0

    def charge_move_from(self, lost_node: str) -> None:
        """Counts a lost node, the first time."""
        if lost_node not in self._charged_nodes:
            self._charged_nodes.add(lost_node)
            self.num_restarts += 1


class EngineHealth:
    """State, restarts and current deadline of one engine."""

    def __init__(self, budget: RestartBudget, clock: Clock, *, joins: bool = False) -> None:
        """The state is `restarting`, as the first process of the engine starts; that of an engine which joins later is `unplaced`."""
        self.on_change: Callable[[], None] = lambda: None
        """Called after each change of the state."""
        self.state = State.UNPLACED if joins else State.RESTARTING
        self.is_on_probation = joins
        """Whether the engine has joined or come back, and has not served yet."""
        self.num_restarts = 0
        """Those charged to this engine since the last refill."""
        self._budget = budget
        self._clock = clock
        self._deadline = math.inf
        self._out_since: float | None = clock()

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline, at least 0; infinite if there is none."""
        return max(0.0, self._deadline - self._clock())

    @property
    def is_overdue(self) -> bool:
        return self._clock() >= self._deadline

    @property
    def out_of_service_s(self) -> float:
        """Seconds since the engine became unable to work; 0 while it is able."""
        return 0.0 if self._out_since is None else self._clock() - self._out_since

    def expect_within(self, seconds: float) -> None:
        """Sets the deadline of the engine's current work."""
        self._deadline = self._clock() + seconds

    def expect_nothing(self) -> None:
        self._deadline = math.inf

    def refill(self) -> None:
        """Gives the engine all its restarts back. A retired one comes back, on probation."""
        self.num_restarts = 0
        if self.state is State.RETIRED:
            self.record(Event.REFILLED)

    def may_restart(self, lost_node: str = "") -> bool:
        """Whether a restart is left for the engine, or for its move from a node that is lost."""
        return self._budget.allows_move_from(lost_node) if lost_node else self._has_restart_left

    def restart_or_retire(self, lost_node: str = "") -> State:
        """Records that an engine without process restarts, or that it retires if no restart is left; returns its new state.

        Args:
            lost_node: the node from which it moves, if that is lost.
        """
        if self.is_on_probation and self.state is State.UNPLACED:
            return self.record(Event.JOIN_BEGAN)
        if not self.may_restart(lost_node):
            return self.record(Event.RESTARTS_USED_UP)
        if not lost_node:
            return self.record(Event.RESTART_BEGAN)
        self._budget.charge_move_from(lost_node)
        return self.record(Event.MOVE_BEGAN)

    def record(self, event: Event) -> State:
        """Records an event and returns the new state.

        Raises:
            IllegalTransitionError: the event cannot happen in this state or with the remaining restarts.
        """
        after = _TRANSITIONS.get((self.state, event))
        if after is None:
            raise IllegalTransitionError(f"{event} cannot happen to an engine that is {self.state}")
        if event is Event.RESTARTS_USED_UP and self._has_restart_left:
            raise IllegalTransitionError(f"a restart is left: {self._used()}")
        elif event is Event.RESTART_BEGAN:
            self._count_restart()
        elif event is Event.JOIN_BEGAN and not self.is_on_probation:
            raise IllegalTransitionError("only an engine on probation joins")
        if event in (Event.REFILLED, Event.SWAP_COMPLETED):
            self.is_on_probation = event is Event.REFILLED
        if event in (Event.DIED, Event.SWAP_COMPLETED):
            self.expect_nothing()
        if after not in _OUT_OF_SERVICE:
            self._out_since = None
        elif self._out_since is None:
            self._out_since = self._clock()
        self.state = after
        self.on_change()
        return after

    @property
    def _has_restart_left(self) -> bool:
        return not self.is_on_probation and self.num_restarts < self._budget.max_per_engine and self._budget.num_left > 0

    def _count_restart(self) -> None:
        if not self._has_restart_left:
            raise IllegalTransitionError(f"no restart left: {self._used()}")
        self.num_restarts += 1
        self._budget.num_restarts += 1

    def _used(self) -> str:
        return f"{self.num_restarts} used by this engine, {self._budget.num_restarts} in total"
