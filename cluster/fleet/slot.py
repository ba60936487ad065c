"""The driver's side of one engine of the fleet: its process, its health, and the weights that it has attested."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import psutil
import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from actors.engines.base import Attestation, WeightUpdate
from actors.engines.errors import UnfitModelError, WeightMismatchError
from cluster.errors import EngineLostError, short_message
from cluster.fleet.health import WITHOUT_PROCESS, EngineHealth, Event
from cluster.fleet.weights import UpdateRef
from cluster.processes import READY_S, ActorProcess

logger = logging.getLogger(__name__)

Spawn = Callable[[int], ActorHandle]
"""Makes the engine with this index, without waiting and with `max_restarts=0`: the fleet restarts it, not Ray."""

_PRELOADING = "preloading"
"""Ray's concurrency group of one thread, separate from all other calls."""


class EngineWorker(Protocol):
    """Interface of an engine actor beside its task methods. Calls are served one at a time, in order, and `preload` concurrently."""

    def start(self) -> None:
        """Loads the model. Safe to call twice."""
        ...

    def preload(self, update: WeightUpdate) -> None:
        """See `actors.engines.base.Engine.preload`."""
        ...

    def swap(self, update: WeightUpdate) -> Attestation:
        """See `actors.engines.base.Engine.swap`."""
        ...

    def sleep(self) -> None:
        """See `actors.engines.base.Engine.sleep`."""
        ...

    def ping(self) -> str:
        """The weight version being served; empty before the first swap and while asleep."""
        ...


def engine_actor(worker: type[EngineWorker], **options: Any) -> Any:
    """The actor class of an engine worker, with a thread for its `preload`. `options` are Ray's."""
    options["concurrency_groups"] = {_PRELOADING: 1}
    return ray.remote(**options)(worker)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits on waits, in seconds."""

    task_s: float
    """From when a task becomes the oldest on its engine."""
    start_s: float
    """From requesting an engine's process until its model is loaded."""
    swap_s: float
    """For one swap, and for going to sleep."""


@dataclass(frozen=True, slots=True)
class EngineSwap:
    """A completed swap: an engine now serves other weights."""

    engine: int
    attestation: Attestation
    out_of_service_s: float
    """From the end of its last task, its death or its waking until it was healthy again, including attempts and restarts."""


@dataclass(frozen=True, slots=True)
class _Change:
    target: UpdateRef
    swapped: ray.ObjectRef
    loaded: ray.ObjectRef | None
    """For a new process; `None` if a running engine is swapped."""


class EngineSlot:
    """Starts, swaps and kills the engine of one place in the fleet, which has at most one process at a time. A start or a swap is a
    change: begin it, then finish it once `changed` is ready. Every wait is bounded. Every failure except a refused update or model is an
    `EngineLostError`, after which the caller must kill the engine."""

    def __init__(self, index: int, spawn: Spawn, health: EngineHealth, timeouts: Timeouts) -> None:
        """`spawn` makes actors of an `engine_actor` class."""
        self.index = index
        self.health = health
        self.serving: UpdateRef | None = None
        self.home = ""
        """Node of its last process."""
        self._spawn = spawn
        self._process: ActorProcess | None = None
        self._killed: list[psutil.Process] = []
        self._timeouts = timeouts
        self._change: _Change | None = None

    @property
    def handle(self) -> ActorHandle:
        return self._running.handle

    @property
    def _running(self) -> ActorProcess:
        assert self._process is not None, f"engine {self.index} has no actor"
        return self._process

    @property
    def is_changing(self) -> bool:
        """Whether a start or a swap is in progress."""
        return self._change is not None

    @property
    def changing_to(self) -> UpdateRef:
        assert self._change is not None, f"engine {self.index} is neither starting nor swapping"
        return self._change.target

    @property
    def changed(self) -> ray.ObjectRef:
        """Ready when the start or swap has succeeded or failed."""
        assert self._change is not None, f"engine {self.index} is neither starting nor swapping"
        return self._change.swapped

    def launch(self, target: UpdateRef, home: str) -> None:
        """Begins to start a new engine with `target` on the node `home`. Its state must be `restarting`."""
        if self.home == home and not self.health.is_on_probation:
            logger.warning("engine %d: restart %d", self.index, self.health.num_restarts)
        self.home = home
        self._process = ActorProcess(self._spawn(self.index))
        self.health.expect_within(self._timeouts.start_s + self._timeouts.swap_s)
        handle: Any = self._process.handle
        # An actor runs its calls in this order, so the last one is ready after all of them.
        loaded = handle.start.remote()
        self._change = _Change(target, handle.swap.remote(target.ref), loaded)

    def preload(self, target: UpdateRef) -> None:
        """Has the running engine load and verify `target` while it finishes its tasks. Only the swap waits for this, within its own
        deadline, and raises its errors. Ray sends calls in the order of submission, so preloading begins when the arguments of all
        earlier calls are ready."""
        self.handle.preload.options(concurrency_group=_PRELOADING).remote(target.ref)

    def begin_swap(self, target: UpdateRef) -> None:
        """Begins to swap the running engine to `target`. The driver must have no task on it."""
        self.health.record(Event.SWAP_BEGAN)
        self.health.expect_within(self._timeouts.swap_s)
        self._change = _Change(target, self.handle.swap.remote(target.ref), None)

    def begin_sleep(self) -> ray.ObjectRef:
        """Begins to put the running engine to sleep, which releases its device's memory; returns a reference that is ready when it
        sleeps. The driver must have no task on it. The next swap wakes it."""
        self.health.record(Event.SLEEP_BEGAN)
        self.health.expect_within(self._timeouts.swap_s)
        self.serving = None
        return self.handle.sleep.remote()

    def finish_sleep(self, slept: ray.ObjectRef) -> None:
        """Waits until the engine sleeps.

        Raises:
            EngineLostError: it failed, or not in time; its weights are unknown.
        """
        remaining_s = self.health.remaining_s
        self.health.expect_nothing()
        self._get(slept, remaining_s)

    def finish_change(self) -> EngineSwap:
        """Waits for the start or swap in progress, and admits the engine.

        Raises:
            WeightMismatchError: the engine refuses the update; it is stale and may be swapped again.
            UnfitModelError: the engine refuses the model, as every other one would.
            EngineLostError: it did not start or swap in time, failed, or attests other weights; its weights are unknown.
        """
        change = self._change
        assert change is not None, f"engine {self.index} is neither starting nor swapping"
        if change.loaded is not None:
            self._running.locate(*self._get(self._running.location, self.health.remaining_s))
            self._get(change.loaded, self.health.remaining_s)
            self.health.record(Event.STARTED)
        remaining_s = self.health.remaining_s
        self._change = None
        self.health.expect_nothing()
        attestation: Attestation = self._get(change.swapped, remaining_s)
        if (attestation.version, attestation.digest) != (change.target.version, change.target.digest):
            raise EngineLostError(
                f"engine {self.index} was told to serve {change.target.version} ({change.target.digest[:12]}) "
                f"and attests {attestation.version} ({attestation.digest[:12]})"
            )
        swap = EngineSwap(self.index, attestation, self.health.out_of_service_s)
        self.serving = change.target
        self.health.record(Event.SWAP_COMPLETED)
        return swap

    def answers(self, timeout_s: float) -> bool:
        """Whether the engine finishes everything queued on it within `timeout_s` seconds."""
        try:
            self._get(self.handle.ping.remote(), timeout_s)
        except EngineLostError as error:
            logger.warning("%s", error)
            return False
        return True

    def kill(self, reason: str, level: int = logging.WARNING) -> None:
        """Kills the engine's process. Does nothing if there is none."""
        if self.health.state in WITHOUT_PROCESS:
            return
        logger.log(level, "engine %d is killed: %s", self.index, reason)
        self.health.record(Event.DIED)
        process = self._process.kill() if self._process else None
        if process is not None:
            self._killed.append(process)
        self._process = self._change = self.serving = None

    def killed_processes(self) -> list[psutil.Process]:
        """Processes on this machine that were killed and may not have exited yet."""
        self._killed = [process for process in self._killed if process.is_running()]
        return self._killed

    def owns(self, error: RayError) -> bool:
        """Whether `error` means that this engine is dead or unreachable."""
        return self._process is not None and self._process.owns(error)

    def _get(self, ref: ray.ObjectRef, timeout_s: float) -> Any:
        try:
            return ray.get(ref, timeout=max(timeout_s, READY_S))
        except GetTimeoutError as error:
            raise EngineLostError(f"engine {self.index} did not answer within {timeout_s:.1f} s") from error
        except RayTaskError as error:
            if isinstance(error.cause, WeightMismatchError):
                raise WeightMismatchError(f"engine {self.index}: {error.cause}") from error
            if isinstance(error.cause, UnfitModelError):
                raise UnfitModelError(str(error.cause)) from error
            raise EngineLostError(f"engine {self.index}: {short_message(error.cause)}") from error
        except RayError as error:
            raise EngineLostError(f"engine {self.index}: {short_message(error)}") from error
