"""Starts and restarts the engines of a fleet where they have room, and decides whether enough of them are left.

| what happened to an engine                 | what follows                                                                            |
|--------------------------------------------|-----------------------------------------------------------------------------------------|
| it died, its node lives                    | it restarts there, which is charged to the engine and to the fleet                      |
| its node is lost, another has room         | it moves there, which is charged to the fleet once for all engines of the lost node     |
| its node is lost, no other has room        | it leaves the fleet, which goes on without it, and is back as soon as there is room     |
| no restart is left                         | it leaves the fleet until restarts are refilled                                         |
| there is room for one more                 | it joins, which is charged to nobody; if its start fails, it leaves the fleet as above  |
| fewer than `min_engines` could serve       | the run ends: after a bounded wait for room, or at once if no restart is left           |
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from cluster.errors import FleetError
from cluster.fleet.health import DOWN, Clock, Event, State
from cluster.fleet.roster import Roster
from cluster.fleet.slot import EngineSlot
from cluster.resources.placement import CheckPlacement

log = logging.getLogger(__name__)

ROOM_POLL_S = 1.0
"""How often it is checked whether there is room again."""
_ANYWHERE = "anywhere"
_NODE_CHARS = 12
"""Of a node's id in messages."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """Where engines can run. The default is for engines that are started without a placement."""

    home: Callable[[int], str] = lambda _: _ANYWHERE
    """Id of the live node with room for the engine of this index; empty while there is none."""
    check: CheckPlacement = lambda: None
    min_engines: int = 1
    """Fewest engines with which a run goes on."""
    max_wait_s: float = math.inf
    """Longest wait for room with fewer."""
    num_places: Callable[[], int] = lambda: 0
    """Number of engines that have a place, those included that have found one since the last call. Asked for once a second; 0 if engines
    never join."""


class Restarts:
    """Decides what becomes of engines without process, and notes how the fleet shrinks and grows."""

    def __init__(self, roster: Roster, rooms: Rooms, clock: Clock, new_slot: Callable[[int], EngineSlot]) -> None:
        """`new_slot` makes the slot of an engine that joins, by its index."""
        self._incidents: list[str] = []
        self.last_error = "none"
        self._roster = roster
        self._rooms = rooms
        self._clock = clock
        self._new_slot = new_slot
        self._looked_at = -math.inf
        self._short_since: float | None = None
        """Since when fewer than `min_engines` have room."""

    def take_incidents(self) -> list[str]:
        taken, self._incidents = self._incidents, []
        return taken

    def home(self, slot: EngineSlot) -> str:
        return self._rooms.home(slot.index)

    def is_node_lost(self, slot: EngineSlot) -> bool:
        return bool(slot.home) and self.home(slot) != slot.home

    def startable(self) -> list[tuple[EngineSlot, str]]:
        """Engines without process that have room now, and on which node. They are `restarting` now and must be launched. Dead ones without
        room are unplaced or retired now. Once a second, unplaced ones are looked at and new ones join."""
        is_due = self._clock() - self._looked_at >= ROOM_POLL_S
        if is_due:
            self._looked_at = self._clock()
            self._admit()
        down = self._roster.of(*(DOWN if is_due else (State.DEAD,)))
        return [(slot, home) for slot in down if (home := self._place(slot))]

    def retire_if_used_up(self, slot: EngineSlot) -> None:
        """Retires an engine that has just died if it has no restart left."""
        if not slot.health.may_restart(slot.home if self.is_node_lost(slot) else ""):
            slot.health.record(Event.RESTARTS_USED_UP)
            self._note_retired(slot)

    def require_enough(self) -> None:
        """Checks that enough engines are left.

        Raises:
            FleetError: too many are retired.
            NotEnoughResourcesError: too few have had room for too long.
        """
        num_left, num_needed = len(self._roster) - self._roster.count(State.RETIRED), self._rooms.min_engines
        if num_left < num_needed:
            lost = f"{len(self._roster) - num_left} of" if num_left else "all"
            fewer = f", fewer than {num_needed} remain" if num_left else ""
            raise FleetError(
                f"{lost} {len(self._roster)} engine(s) are lost{fewer} and no restart is left; the last error: {self.last_error}"
            )
        if self._roster.num_members >= num_needed:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = self._clock()
            log.warning("waiting for room for at least %d engine(s), at most %g s", num_needed, self._rooms.max_wait_s)
        elif self._clock() - self._short_since > self._rooms.max_wait_s:
            self._rooms.check()

    def _admit(self) -> None:
        """Adds engines that have found a place, unless others wait for room: it would be theirs."""
        if self._roster.count(State.UNPLACED):
            return
        for index in range(len(self._roster), self._rooms.num_places()):
            self._roster.add(self._new_slot(index))

    def _place(self, slot: EngineSlot) -> str:
        """The node on which an engine restarts; empty if it does not."""
        home = self.home(slot)
        if not home:
            self._wait_for_room(slot)
            return ""
        lost_node = "" if home == slot.home else slot.home
        joins = slot.health.is_on_probation and slot.health.state is State.UNPLACED
        if slot.health.restart_or_retire(lost_node) is State.RETIRED:
            self._note_retired(slot)
            return ""
        if lost_node:
            self._note(f"engine {slot.index} moves from the lost node {_short(lost_node)} to {_short(home)}")
        elif joins:
            self._note(f"engine {slot.index} {'is back' if slot.home else 'joins'} on node {_short(home)}")
        return home

    def _wait_for_room(self, slot: EngineSlot) -> None:
        if slot.health.state is State.DEAD:
            slot.health.record(Event.ROOM_LOST)
            self._note(f"engine {slot.index} waits for room, because its node {_short(slot.home)} is lost")

    def _note_retired(self, slot: EngineSlot) -> None:
        why = "it has not come to serve" if slot.health.is_on_probation else "no restart is left"
        self._note(f"engine {slot.index} is out of service until a round is committed, because {why} (its last error: {self.last_error})")

    def _note(self, what: str) -> None:
        self._incidents.append(f"{what}; {self._roster.num_members} of {len(self._roster)} engine(s) are in the fleet")
        log.warning("%s", self._incidents[-1])


def _short(node: str) -> str:
    return node[:_NODE_CHARS]
