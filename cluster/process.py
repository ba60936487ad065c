"""One life of an actor, from its making to its end, and the process of it that runs on this machine."""

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

_OF_NO_ACTOR = (OutOfMemoryError, NodeDiedError, WorkerCrashedError, ActorUnschedulableError, ActorPlacementGroupRemoved)
"""Ends of an actor that Ray reports without its name, now and for every later call."""

READY_S = 1.0
"""Enough to fetch what is there already."""


class ActorLife:
    """An actor that is killed in the end. Its process is looked up early: its id alone may be another's later."""

    def __init__(self, handle: ActorHandle) -> None:
        self.handle = handle
        self.constructed: ray.ObjectRef = handle.__ray_call__.remote(_whereabouts)
        """Its node and process, when it is constructed; an error where that fails."""
        self._process: psutil.Process | None = None

    def locate(self, node_id: str, pid: int) -> None:
        """Looks up the process: what `constructed` holds. Elsewhere than on this machine its raylet alone sees to its end."""
        if node_id == ray.get_runtime_context().get_node_id():
            with suppress(psutil.NoSuchProcess):
                self._process = psutil.Process(pid)

    def owns(self, error: RayError) -> bool:
        """Whether `error`, of a call that involved no other actor, says that this one is dead or out of reach."""
        if isinstance(error, RayActorError):
            return error.actor_id == self.handle._actor_id.hex()
        return isinstance(error, _OF_NO_ACTOR)

    def end(self) -> psutil.Process | None:
        """Kills the actor without waiting; returns its process, if it came up on this machine."""
        if self._process is None and ray.wait([self.constructed], timeout=0)[0]:
            try:
                self.locate(*ray.get(self.constructed, timeout=READY_S))
            except RayError as error:
                logger.debug("an actor had no process: %s", error)
        ray.kill(self.handle)
        return self._process


def await_end(processes: Sequence[psutil.Process], timeout_s: float, what: str) -> None:
    """Waits until processes that were killed are gone.

    Raises:
        TimeoutExceededError: some are still there after `timeout_s` seconds.
    """
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    if alive:
        raise TimeoutExceededError(f"{what} processes {[process.pid for process in alive]} are still there after {timeout_s:g} s")


def _whereabouts(_actor: Any) -> tuple[str, int]:
    return ray.get_runtime_context().get_node_id(), os.getpid()
