"""Rolling swaps: swaps a fleet's engines to its target, one first and then the others while it serves.

    healthy --drain began--> draining --its last task ends, the swap is sent--> stale --attested--> healthy, serves the target

Tasks go only to engines that serve the target. One engine tries the target first; all others follow at once. An engine that still has
tasks drains: it loads and verifies the target while it finishes them, so that its swap waits for neither.

The *stable* weights are the last target that the whole fleet served. If an engine refuses a target that is not stable yet, or fails
to serve it even in a fresh process, the fleet rolls back to the stable weights; engines with other weights get no task before they
are swapped back. If an engine refuses the stable weights, its machine is at fault, and the engine is restarted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import ray

from actors.engines.errors import WeightMismatchError
from cluster.errors import EngineLostError, FleetError
from cluster.fleet.health import NOT_RUNNING, Event, State
from cluster.fleet.slot import EngineSlot, EngineSwap
from cluster.fleet.weights import UpdateRef
from cluster.resources.placement import CheckPlacement

_SWAP_ATTEMPTS = 2
"""The second one is in a fresh process. If that fails too, the weights are at fault."""

_SWAPPABLE = (State.HEALTHY, State.STALE, State.ASLEEP)


class RollingSwap:
    """Swaps the engines of a fleet to its target and restarts dead engines. Lives as long as its fleet."""

    def __init__(self, slots: Sequence[EngineSlot], check_placement: CheckPlacement) -> None:
        self.slots = slots
        self._check_placement = check_placement
        self.target: UpdateRef | None = None
        self.swaps: list[EngineSwap] = []
        """Completed swaps to the target since it was set, in that order."""
        self._stable: UpdateRef | None = None
        self._failures: Counter[int] = Counter()
        """Failed attempts to swap an engine to the target, by its index."""
        self._last_error = "none"

    def serves_target(self, slot: EngineSlot) -> bool:
        return slot.health.state is State.HEALTHY and slot.serving is self.target

    def set_target(self, target: UpdateRef) -> None:
        """Replaces the target, even an unfinished one: engines that are being swapped to the old one are swapped again."""
        self.target = target
        self.swaps = []
        self._failures.clear()

    def launch_all(self) -> None:
        """Starts all engines for the first time, concurrently."""
        assert self.target is not None
        for slot in self.slots:
            slot.launch(self.target)

    def restart_dead(self) -> None:
        """Restarts dead engines with the target, and retires those without a restart left.

        Raises:
            FleetError: all engines are retired.
        """
        assert self.target is not None
        for slot in self.slots:
            if slot.health.state is State.DEAD and slot.health.restart_or_retire() is State.RESTARTING:
                slot.launch(self.target)
        if all(slot.health.state is State.RETIRED for slot in self.slots):
            self._roll_back()
            raise FleetError(f"all {len(self.slots)} engine(s) are lost and no restart is left; the last error: {self._last_error}")

    def advance(self, num_in_flight: Callable[[EngineSlot], int]) -> None:
        """Drains the least busy engine, or all others once one serves the target. An engine preloads the target while it has tasks in
        flight, and is swapped once it has none."""
        assert self.target is not None
        in_progress = [slot for slot in self.slots if slot.is_changing or slot.health.state is State.DRAINING]
        outdated = [slot for slot in self.slots if slot.health.state in _SWAPPABLE and not self.serves_target(slot)]
        waiting = sorted((slot for slot in outdated if slot not in in_progress), key=num_in_flight)
        trying = [slot for slot in in_progress if not slot.is_changing or slot.changing_to is self.target]
        num_next = len(waiting) if any(map(self.serves_target, self.slots)) else 1 - len(trying)
        for slot in [*in_progress, *waiting[: max(0, num_next)]]:
            if slot.health.state is State.HEALTHY:
                slot.health.record(Event.DRAIN_BEGAN)
                if num_in_flight(slot):
                    slot.preload(self.target)
            if not slot.is_changing and not num_in_flight(slot):
                slot.begin_swap(self.target)

    def changes(self) -> dict[ray.ObjectRef, EngineSlot]:
        """Starts and swaps in progress, by the reference that is ready when they have ended."""
        return {slot.changed: slot for slot in self.slots if slot.is_changing}

    def finish(self, slot: EngineSlot) -> None:
        """Admits an engine whose start or swap has ended, or kills it if that failed.

        Raises:
            WeightMismatchError: it refuses a target that is not stable; the fleet rolls back.
            FleetError: it cannot be swapped to a target that is not stable; the fleet rolls back.
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
            self._update_stable()

    def enforce_deadlines(self) -> None:
        """Kills engines whose start or swap has timed out.

        Raises:
            FleetError: see `finish`.
            NotEnoughResourcesError: no engine runs, and there is no room for one.
        """
        for ref, slot in self.changes().items():
            if slot.health.is_overdue and not ray.wait([ref], timeout=0)[0]:
                if all(one.health.state in NOT_RUNNING for one in self.slots):
                    self._check_placement()
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
            if sum(map(self.serves_target, self.slots)) >= min(num_engines, len(self._members())):
                return
            changes = self.changes()
            ready, _ = ray.wait([*changes], num_returns=1, timeout=min(slot.health.remaining_s for slot in changes.values()))
            for ref in ready:
                self.finish(changes[ref])
            self.enforce_deadlines()

    def sleep(self) -> None:
        """Puts all healthy engines to sleep, concurrently, and waits for them; kills those that fail. The next swap wakes or restarts
        them."""
        started = [(slot, slot.begin_sleep()) for slot in self.slots if slot.health.state is State.HEALTHY]
        for slot, slept in started:
            try:
                slot.finish_sleep(slept)
            except EngineLostError as error:
                self.kill(slot, f"it did not fall asleep: {error}")

    def _members(self) -> list[EngineSlot]:
        """A retired engine is no longer part of the fleet."""
        return [slot for slot in self.slots if slot.health.state is not State.RETIRED]

    def _handle_refusal(self, slot: EngineSlot, target: UpdateRef, error: WeightMismatchError) -> None:
        if target is not self.target:
            return  # it is stale, and gets the current target next
        if target is not self._stable:
            self._roll_back()
            raise error
        self.kill(slot, str(error))  # others serve these weights, so this machine is at fault

    def _handle_failure(self, slot: EngineSlot, target: UpdateRef, reason: str) -> None:
        if target is not self.target or target is self._stable:
            self.kill(slot, reason)
            return
        self._kill_process(slot, reason)
        self._failures[slot.index] += 1
        if self._failures[slot.index] >= _SWAP_ATTEMPTS or slot.health.state is State.RETIRED:
            self._roll_back()
            raise FleetError(f"engine {slot.index} cannot be brought to {target.version}: {reason}")

    def _kill_process(self, slot: EngineSlot, reason: str) -> None:
        self._last_error = f"engine {slot.index}: {reason}"
        slot.kill(reason)

    def _update_stable(self) -> None:
        """The target becomes stable if the whole fleet serves it."""
        members = self._members()
        if self.target is not None and members and all(self.serves_target(slot) for slot in members):
            self._stable = self.target

    def _roll_back(self) -> None:
        if self.target is not self._stable:
            self.target = self._stable
            self.swaps = []
