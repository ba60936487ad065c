"""Rolling swaps: engines are brought to the fleet's target one after the other, while the others work.

    healthy --taken out--> draining --its last task ends, the swap goes out--> stale --attested--> healthy, at the target

An engine that is taken out loads and verifies the target while it ends its tasks, so that neither is waited for out of service.
The next engine is taken out when no other one is on its way; where old weights may do no work, all the others are once one has come
over. A target is *proven* once the whole fleet serves it. Before that, an engine that refuses it, or cannot be brought to it on a
fresh process either, reverses the roll: the target goes back to the weights that were proven last, and engines that left them work
again only after they have returned. Afterwards a refusal is one machine's fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import ray

from actors.engines.errors import WeightMismatchError
from cluster.errors import EngineLostError, FleetError
from cluster.fleet.health import NOT_RUNNING, Event, State
from cluster.fleet.slot import EngineSlot, EngineSwap
from cluster.fleet.weights import Published
from cluster.resources.placement import CheckPlacement

_SWAP_ATTEMPTS = 2
"""The second one is on a fresh process; weights that fail there too are at fault themselves."""

_MAY_BE_TAKEN = (State.HEALTHY, State.STALE, State.ASLEEP)


class RollingSwap:
    """Which weights the engines are to serve, and how far they are. Lives as long as its fleet; restarts engines that are lost."""

    def __init__(self, slots: Sequence[EngineSlot], check_placement: CheckPlacement) -> None:
        self.slots = slots
        self._check_placement = check_placement
        self.target: Published | None = None
        self.swaps: list[EngineSwap] = []
        """Of the engines that have come over to the target since it was set, in that order."""
        self._proven: Published | None = None
        self._allowed: list[Published] = []
        """What tasks may come from where they are not pinned: the proven weights, and the targets set since."""
        self._failures: Counter[int] = Counter()
        """Attempts to bring an engine to the target that failed, by its index."""
        self._last_error = "none"

    def has_come_over(self, slot: EngineSlot) -> bool:
        return slot.health.state is State.HEALTHY and slot.serving is self.target

    def may_work(self, slot: EngineSlot, pinned: bool) -> bool:
        """Whether a task may go to this engine; where tasks are pinned, only if it serves the target."""
        return self.has_come_over(slot) or (not pinned and slot.health.state is State.HEALTHY and slot.serving in self._allowed)

    def begin(self, target: Published) -> None:
        """Sets the target. One that has not been reached is given up: engines on their way to it go on from there."""
        self.target = target
        self._allowed.append(target)
        self.swaps = []
        self._failures.clear()

    def launch_all(self) -> None:
        """Makes all engines for the first time, at the same time."""
        assert self.target is not None
        for slot in self.slots:
            slot.launch(self.target)

    def restart_dead(self) -> None:
        """Makes lost engines anew, to serve the target.

        Raises:
            FleetError: no engine is left, and no restart.
        """
        assert self.target is not None
        for slot in self.slots:
            if slot.health.state is State.DEAD and slot.health.restart_or_retire() is State.RESTARTING:
                slot.launch(self.target)
        if all(slot.health.state is State.RETIRED for slot in self.slots):
            self._reverse()
            raise FleetError(f"all {len(self.slots)} engine(s) are lost and no restart is left; the last error: {self._last_error}")

    def advance(self, num_in_flight: Callable[[EngineSlot], int], *, old_may_work: bool) -> None:
        """Takes the next engine out, the least busy one first, has it stage the target if it still has tasks in flight, and sends the
        swap to it once it has none. Where engines with old weights have nothing to do, the first one tries the target, and then all
        others follow at once."""
        assert self.target is not None
        on_their_way = [slot for slot in self.slots if slot.is_changing or slot.health.state is State.DRAINING]
        outdated = [slot for slot in self.slots if slot.health.state in _MAY_BE_TAKEN and not self.has_come_over(slot)]
        waiting = sorted((slot for slot in outdated if slot not in on_their_way), key=num_in_flight)
        tried = any(map(self.has_come_over, self.slots))
        num_next = len(waiting) if tried and not old_may_work else 1 - len(on_their_way)
        for slot in [*on_their_way, *waiting[: max(0, num_next)]]:
            if slot.health.state is State.HEALTHY:
                slot.health.record(Event.DRAIN_BEGAN)
                if num_in_flight(slot):
                    slot.stage(self.target)
            if not slot.is_changing and not num_in_flight(slot):
                slot.begin_swap(self.target)

    def changes(self) -> dict[ray.ObjectRef, EngineSlot]:
        """Launches and swaps that are under way, by the reference that is ready when they have ended."""
        return {slot.changed: slot for slot in self.slots if slot.is_changing}

    def finish(self, slot: EngineSlot) -> None:
        """Admits an engine whose launch or swap has ended, or loses it.

        Raises:
            WeightMismatchError: it refuses the target, which is not proven; the roll is reversed.
            FleetError: it cannot be brought to the target, which is not proven; the roll is reversed.
        """
        target = slot.changing_to
        try:
            swap = slot.finish_change()
        except WeightMismatchError as error:
            self._handle_refusal(slot, target, error)
        except EngineLostError as error:
            self._handle_failure(slot, target, str(error))
        else:
            if target is self.target:
                self.swaps.append(swap)
            self._prove()

    def enforce_deadlines(self) -> None:
        """Loses engines whose launch or swap takes too long.

        Raises:
            FleetError: as `finish` does.
            NotEnoughResourcesError: no engine runs, and there is no room for one.
        """
        for ref, slot in self.changes().items():
            if slot.health.is_overdue and not ray.wait([ref], timeout=0)[0]:
                if all(one.health.state in NOT_RUNNING for one in self.slots):
                    self._check_placement()
                self._handle_failure(slot, slot.changing_to, "it did not start or swap in time")

    def lose(self, slot: EngineSlot, reason: str) -> None:
        """Kills an engine. The roll is over where only this one was waited for, and no restart is left."""
        self._kill(slot, reason)
        self._prove()

    def settle(self, num_engines: int) -> None:
        """Goes on, with no task in flight, until `num_engines` serve the target, or all that are left.

        Raises:
            WeightMismatchError: as `finish` does.
            FleetError: as `finish` and `restart_dead` do.
        """
        while True:
            self.restart_dead()
            self.advance(lambda _: 0, old_may_work=False)
            if sum(map(self.has_come_over, self.slots)) >= min(num_engines, len(self._members())):
                return
            changes = self.changes()
            ready, _ = ray.wait([*changes], num_returns=1, timeout=min(slot.health.remaining_s for slot in changes.values()))
            for ref in ready:
                self.finish(changes[ref])
            self.enforce_deadlines()

    def sleep(self) -> None:
        """Puts all engines that serve to sleep, at the same time, and waits until each of them sleeps or is lost. They wake, or are
        made anew, when they are brought to the target or to another one."""
        falling = [(slot, slot.begin_sleep()) for slot in self.slots if slot.health.state is State.HEALTHY]
        for slot, slept in falling:
            try:
                slot.finish_sleep(slept)
            except EngineLostError as error:
                self.lose(slot, f"it did not fall asleep: {error}")

    def _members(self) -> list[EngineSlot]:
        """A retired engine is no longer part of the fleet."""
        return [slot for slot in self.slots if slot.health.state is not State.RETIRED]

    def _handle_refusal(self, slot: EngineSlot, target: Published, error: WeightMismatchError) -> None:
        if target is not self.target:
            return  # it is stale, and is sent the present target next
        if target is not self._proven:
            self._reverse()
            raise error
        self.lose(slot, str(error))  # others serve these weights: a refusal is this machine's fault

    def _handle_failure(self, slot: EngineSlot, target: Published, reason: str) -> None:
        if target is not self.target or target is self._proven:
            self.lose(slot, reason)
            return
        self._kill(slot, reason)
        self._failures[slot.index] += 1
        if self._failures[slot.index] >= _SWAP_ATTEMPTS or slot.health.state is State.RETIRED:
            self._reverse()
            raise FleetError(f"engine {slot.index} cannot be brought to {target.version}: {reason}")

    def _kill(self, slot: EngineSlot, reason: str) -> None:
        self._last_error = f"engine {slot.index}: {reason}"
        slot.kill(reason)

    def _prove(self) -> None:
        """Notes that the roll is over, if it is."""
        members = self._members()
        if self.target is not None and members and all(self.has_come_over(slot) for slot in members):
            self._proven = self.target
            self._allowed = [self.target]

    def _reverse(self) -> None:
        if self.target is not self._proven:
            self.target = self._proven
            self._allowed = [self._proven] if self._proven else []
            self.swaps = []
