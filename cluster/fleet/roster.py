"""The engines of a fleet by state, kept up to date by each change, so that the dispatcher need not look at all engines at each event."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter

from cluster.fleet.health import AWAY, State
from cluster.fleet.slot import EngineSlot


class Roster:
    """Engines by index and by state."""

    def __init__(self, slots: list[EngineSlot], on_change: Callable[[EngineSlot], None]) -> None:
        """`on_change` is called after each change of an engine's state. `slots` grows with `add`."""
        self.slots = slots
        self._on_change = on_change
        self._states: list[State] = []
        self._by_state: dict[State, dict[int, EngineSlot]] = {state: {} for state in State}
        for slot in slots:
            self._admit(slot)

    def __len__(self) -> int:
        return len(self.slots)

    def add(self, slot: EngineSlot) -> None:
        """Adds an engine, whose index is the number of engines so far."""
        assert slot.index == len(self.slots)
        self.slots.append(slot)
        self._admit(slot)

    def of(self, *states: State) -> list[EngineSlot]:
        """Engines in any of these states, by index."""
        return sorted((slot for state in states for slot in self._by_state[state].values()), key=attrgetter("index"))

    def count(self, *states: State) -> int:
        return sum(len(self._by_state[state]) for state in states)

    @property
    def num_members(self) -> int:
        """Engines that are part of the fleet."""
        return len(self.slots) - self.count(*AWAY)

    def _admit(self, slot: EngineSlot) -> None:
        self._states.append(slot.health.state)
        self._by_state[slot.health.state][slot.index] = slot
        slot.health.on_change = partial(self._file, slot)

    def _file(self, slot: EngineSlot) -> None:
        del self._by_state[self._states[slot.index]][slot.index]
        self._states[slot.index] = slot.health.state
        self._by_state[slot.health.state][slot.index] = slot
        self._on_change(slot)
