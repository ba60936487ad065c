"""Rolling swaps: swaps a fleet's engines to its target, one first and then the others while it serves.

    healthy --drain began--> draining --its last task ends, the swap is sent--> stale --attested--> healthy, serves the target

Tasks go only to engines that serve the target. One engine tries the target first; all others follow at once. An engine that still has
tasks drains: it loads and verifies the target while it finishes them, so that its swap waits for neither.

The *stable* weights are the last target that the whole fleet served. If an engine refuses a target that is not stable yet, or fails
to serve it even in a fresh process, the fleet rolls back to the stable weights; engines with other weights get no task before they
are swapped back. If an engine refuses the stable weights, its machine is at fault, and the engine is restarted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import ray

from actors.engines.errors import UnfitModelError, WeightMismatchError
from cluster.errors import EngineLostError, FleetError, NotEnoughResourcesError
from cluster.fleet.health import Clock, Event, State
from cluster.fleet.restarts import ROOM_POLL_S, Restarts, Rooms
from cluster.fleet.roster import Roster
from cluster.fleet.slot import EngineSlot, EngineSwap
from cluster.fleet.weights import UpdateRef

_SWAP_ATTEMPTS = 2
"""The second one is in a fresh process. If that fails too, the weights are at fault."""

_NOT_SERVING = (State.STALE, State.ASLEEP)
_SWAPPABLE = (State.HEALTHY, *_NOT_SERVING)
_CHANGING = (State.RESTARTING, State.STALE)
"""States of engines that start or are swapped."""
_IN_PROGRESS = (*_CHANGING, State.DRAINING)


class RollingSwap:
    """Swaps the engines of a fleet to its target and restarts dead engines. Lives as long as its fleet."""

    def __init__(self, slots: list[EngineSlot], rooms: Rooms, clock: Clock, new_slot: Callable[[int], EngineSlot]) -> None:
        """`slots` grows by engines that join, whose slots `new_slot` makes."""
        self.slots = slots
        self.current: set[int] = set()
        """Indices of the engines that serve the target."""
        self.roster = Roster(slots, self._note_current)
        self.restarts = Restarts(self.roster, rooms, clock, new_slot)
        self._rooms = rooms
        self.target: UpdateRef | None = None
        self.swaps: list[EngineSwap] = []
        """Completed swaps to the target since it was set, in that order."""
        self._stable: UpdateRef | None = None
        self._failures: Counter[int] = Counter()
        """Failed attempts to swap an engine to the target, by its index."""

    def serves_target(self, slot: EngineSlot) -> bool:
        return slot.health.state is State.HEALTHY and slot.serving is self.target

    def set_target(self, target: UpdateRef) -> None:
        """Replaces the target, even an unfinished one: engines that are being swapped to the old one are swapped again."""
        self._aim(target)
        self._failures.clear()

    def launch_all(self) -> None:
        """Starts all engines for the first time, concurrently."""
        assert self.target is not None
        for slot in self.slots:
            slot.launch(self.target, self.restarts.home(slot))

    def restart_dead(self) -> None:
        """Starts engines without process, new ones too, with the target where they have room; see `cluster.fleet.restarts`.

        Raises:
            FleetError: too few engines are left, and no restart.
            NotEnoughResourcesError: too few engines have had room for too long.
        """
        assert self.target is not None
        num_members = self.roster.num_members
        for slot, home in self.restarts.startable():
            slot.launch(self.target, home)
        if self.roster.num_members < num_members:
            self._update_stable()
        try:
            self.restarts.require_enough()
        except (FleetError, NotEnoughResourcesError):
            self._roll_back()
            raise

    def advance(self, num_in_flight: Callable[[EngineSlot], int]) -> None:
        """Drains the least busy engine, or all others once one serves the target. An engine preloads the target while it has tasks in
        flight, and is swapped once it has none."""
        assert self.target is not None
        if self._is_settled:
            return
        in_progress = [slot for slot in self.roster.of(*_IN_PROGRESS) if slot.is_changing or slot.health.state is State.DRAINING]
        are_all_current = self.roster.count(State.HEALTHY) == len(self.current)
        swappable = self.roster.of(*(_NOT_SERVING if are_all_current else _SWAPPABLE))
        outdated = [slot for slot in swappable if slot.index not in self.current and not slot.is_changing]
        waiting = sorted(outdated, key=num_in_flight)
        trying = [slot for slot in in_progress if self._tries(slot)]
        num_next = len(waiting) if self.current else 1 - len(trying)
        for slot in [*in_progress, *waiting[: max(0, num_next)]]:
            if slot.health.state is State.HEALTHY:
                slot.health.record(Event.DRAIN_BEGAN)
                if num_in_flight(slot):
                    slot.preload(self.target)
            if not slot.is_changing and not num_in_flight(slot):
                slot.begin_swap(self.target)

    def _tries(self, slot: EngineSlot) -> bool:
        """Whether an engine in progress is to show that the target can be served, which one on probation may take minutes to do."""
        return not slot.health.is_on_probation and (not slot.is_changing or slot.changing_to is self.target)

    def changes(self) -> dict[ray.ObjectRef, EngineSlot]:
        """Starts and swaps in progress, by the reference that is ready when they have ended."""
        return {slot.changed: slot for slot in self.roster.of(*_CHANGING) if slot.is_changing}

    def finish(self, slot: EngineSlot) -> None:
        """Admits an engine whose start or swap has ended, or kills it if that failed.

        An engine on probation cannot end a run, because others may be able to serve what it cannot.

        Raises:
            UnfitModelError: it refuses the model, as every other engine would.
            WeightMismatchError: it refuses a target that is not stable; the fleet rolls back.
            FleetError: it cannot be swapped to a target that is not stable; the fleet rolls back.
        """
        target = slot.changing_to
        try:
            swap = slot.finish_change()
        except WeightMismatchError as error:
            self._handle_refusal(slot, target, error)
        except UnfitModelError as error:
            if not slot.health.is_on_probation:
                raise
            self.kill(slot, str(error))
        except EngineLostError as error:
            self._handle_failure(slot, target, str(error))
        else:
            if target is self.target:
                self.swaps.append(swap)
            self._update_stable()

    def enforce_deadlines(self) -> None:
        """Kills engines whose start or swap has timed out.

        Raises:
            FleetError: see `finish`.
        """
        for ref, slot in self.changes().items():
            if slot.health.is_overdue and not ray.wait([ref], timeout=0)[0]:
                self._handle_failure(slot, slot.changing_to, "it did not start or swap in time")

    def kill(self, slot: EngineSlot, reason: str) -> None:
        """Kills an engine. Completes the roll if the engine retires and all others serve the target."""
        self._kill_process(slot, reason)
        self._update_stable()

    def complete(self, num_engines: int) -> None:
        """Blocks, with no task in flight, until `num_engines` serve the target, or all that are not retired.

        Raises:
            WeightMismatchError: see `finish`.
            FleetError: see `finish` and `restart_dead`.
        """
        while True:
            self.restart_dead()
            self.advance(lambda _: 0)
            if len(self.current) >= min(num_engines, max(self._rooms.min_engines, self.roster.num_members)):
                return
            self._await_change()
            self.enforce_deadlines()

    def _await_change(self) -> None:
        """Waits for a start or swap to end, at most until the next deadline, or until room is looked for again."""
        changes = self.changes()
        if not changes:
            time.sleep(ROOM_POLL_S)
            return
        limit_s = min(ROOM_POLL_S, *(slot.health.remaining_s for slot in changes.values()))
        ready, _ = ray.wait([*changes], num_returns=1, timeout=limit_s)
        for ref in ready:
            self.finish(changes[ref])

    def sleep(self) -> None:
        """Puts all healthy engines to sleep, concurrently, and waits for them; kills those that fail. The next swap wakes or restarts
        them."""
        started = [(slot, slot.begin_sleep()) for slot in self.slots if slot.health.state is State.HEALTHY]
        for slot, slept in started:
            try:
                slot.finish_sleep(slept)
            except EngineLostError as error:
                self.kill(slot, f"it did not fall asleep: {error}")

    def _handle_refusal(self, slot: EngineSlot, target: UpdateRef, error: WeightMismatchError) -> None:
        if target is not self.target:
            return  # it is stale, and gets the current target next
        if target is not self._stable and not slot.health.is_on_probation:
            self._roll_back()
            raise error
        self.kill(slot, str(error))  # others serve these weights, or will try them, so this machine is at fault

    def _handle_failure(self, slot: EngineSlot, target: UpdateRef, reason: str) -> None:
        is_excused = slot.health.is_on_probation or self.restarts.is_node_lost(slot)
        if target is not self.target or target is self._stable or is_excused:
            self.kill(slot, reason)  # the target is not at fault
            return
        self._kill_process(slot, reason)
        self._failures[slot.index] += 1
        if self._failures[slot.index] >= _SWAP_ATTEMPTS or slot.health.state is State.RETIRED:
            self._roll_back()
            raise FleetError(f"engine {slot.index} cannot be brought to {target.version}: {reason}")

    def _kill_process(self, slot: EngineSlot, reason: str) -> None:
        self.restarts.last_error = f"engine {slot.index}: {reason}"
        slot.kill(reason)
        self.restarts.retire_if_used_up(slot)

    def _update_stable(self) -> None:
        """The target becomes stable if the whole fleet serves it."""
        if self.current and self._is_settled:
            self._stable = self.target

    @property
    def _is_settled(self) -> bool:
        """Whether every engine of the fleet serves the target."""
        return len(self.current) == self.roster.num_members

    def _roll_back(self) -> None:
        if self.target is not self._stable:
            self._aim(self._stable)

    def _aim(self, target: UpdateRef | None) -> None:
        self.target = target
        self.swaps = []
        self.current = {slot.index for slot in self.slots if self.serves_target(slot)}

    def _note_current(self, slot: EngineSlot) -> None:
        if self.serves_target(slot):
            self.current.add(slot.index)
        else:
            self.current.discard(slot.index)
