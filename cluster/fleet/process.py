"""An actor's life, from its making to its end, with its process on this machine; and the place of one actor after another."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
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
from cluster.fleet.health import EngineHealth, Event, State

logger = logging.getLogger(__name__)

_OF_NO_ACTOR = (OutOfMemoryError, NodeDiedError, WorkerCrashedError, ActorUnschedulableError, ActorPlacementGroupRemoved)
"""Ends of an actor that Ray reports without its name, now and for every later call."""

READY_S = 1.0
"""Enough to fetch what is there already."""

Spawn = Callable[[int], ActorHandle]
"""Makes the actor for the place of this index, without waiting for it and with `max_restarts=0`: whoever has the place restarts."""


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


class ActorPlace:
    """Where one actor lives after the other, with their health. Engines and the actors of pools have a place each."""

    def __init__(self, name: str, index: int, spawn: Spawn, health: EngineHealth) -> None:
        self.name = f"{name} {index}"
        self.index = index
        self.health = health
        self._spawn = spawn
        self._life: ActorLife | None = None
        self._killed: list[psutil.Process] = []

    def killed_processes(self) -> list[psutil.Process]:
        """Processes of killed actors on this machine that may still be going down."""
        self._killed = [process for process in self._killed if process.is_running()]
        return self._killed

    def _begin_life(self, timeout_s: float) -> ActorLife:
        """Makes an actor without waiting for it; where one has died it is a restart, at the cost of its budget."""
        if self.health.state is State.DEAD:
            self.health.record(Event.RESTART_BEGAN)
            logger.warning("%s: restart %d", self.name, self.health.num_restarts)
        self._life = ActorLife(self._spawn(self.index))
        self.health.expect_within(timeout_s)
        return self._life

    def _end_life(self, reason: str, level: int) -> bool:
        """Kills the actor; False where it is dead already."""
        if self.health.state is State.DEAD:
            return False
        logger.log(level, "%s is killed: %s", self.name, reason)
        self.health.record(Event.DIED)
        process = self._life.end() if self._life else None
        if process is not None:
            self._killed.append(process)
        self._life = None
        return True


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
