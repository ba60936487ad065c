"""Tracks and kills Ray actors with their operating system processes, for all supervisors."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil
import ray
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorPlacementGroupRemoved,
    ActorUnschedulableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from cluster.errors import TimeoutExceededError

logger = logging.getLogger(__name__)

_ERRORS_WITHOUT_ACTOR_ID = (OutOfMemoryError, NodeDiedError, WorkerCrashedError, ActorUnschedulableError, ActorPlacementGroupRemoved)
"""Errors by which Ray reports some deaths of an actor, for the running and all later calls, without naming the actor."""

READY_S = 1.0
"""Timeout for fetching a result that is ready."""


class ActorProcess:
    """A Ray actor that its supervisor kills. The process is looked up early, because its id may be reused later."""

    def __init__(self, handle: ActorHandle) -> None:
        self.handle = handle
        self.location: ray.ObjectRef = handle.__ray_call__.remote(_location)
        """Node id and process id. Ready when the actor is constructed; an error if the construction fails."""
        self._process: psutil.Process | None = None

    def locate(self, node_id: str, pid: int) -> None:
        """Looks up the process at a `location`. Ignores processes on other machines, which their raylet handles."""
        if node_id == ray.get_runtime_context().get_node_id():
            with suppress(psutil.NoSuchProcess):
                self._process = psutil.Process(pid)

    def owns(self, error: RayError) -> bool:
        """Whether `error`, from a call that involved no other actor, means that this actor is dead or unreachable."""
        if isinstance(error, RayActorError):
            return error.actor_id == self.handle._actor_id.hex()
        return isinstance(error, _ERRORS_WITHOUT_ACTOR_ID)

    def kill(self) -> psutil.Process | None:
        """Kills the actor without waiting; returns its process if it was started on this machine."""
        if self._process is None and ray.wait([self.location], timeout=0)[0]:
            try:
                self.locate(*ray.get(self.location, timeout=READY_S))
            except RayError as error:
                logger.debug("an actor had no process: %s", error)
        ray.kill(self.handle)
        return self._process


def await_exit(processes: Sequence[psutil.Process], timeout_s: float, what: str) -> None:
    """Waits until killed processes have exited.

    Raises:
        TimeoutExceededError: some are still running after `timeout_s` seconds.
    """
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    if alive:
        raise TimeoutExceededError(f"{what} processes {[process.pid for process in alive]} are still there after {timeout_s:g} s")


def _location(_actor: Any) -> tuple[str, int]:
    return ray.get_runtime_context().get_node_id(), os.getpid()
