"""Base of actors that are restarted in place: at most one process at a time, with the health over all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable

import psutil
from ray.actor import ActorHandle

from cluster.fleet.health import WITHOUT_PROCESS, ActorHealth, Event
from cluster.processes import ActorProcess

logger = logging.getLogger(__name__)

Spawn = Callable[[int], ActorHandle]
"""Makes the actor with this index, without waiting and with `max_restarts=0`: its supervisor restarts it, not Ray."""


class SupervisedActor:
    """A supervisor's view of one of its actors, for engines and the actors of pools."""

    def __init__(self, name: str, index: int, spawn: Spawn, health: ActorHealth) -> None:
        self.name = f"{name} {index}"
        self.index = index
        self.health = health
        self._spawn = spawn
        self._process: ActorProcess | None = None
        self._killed: list[psutil.Process] = []

    def killed_processes(self) -> list[psutil.Process]:
        """Processes on this machine that were killed and may not have exited yet."""
        self._killed = [process for process in self._killed if process.is_running()]
        return self._killed

    def _start_process(self, timeout_s: float) -> ActorProcess:
        """Makes an actor without waiting for it. Its state must be `restarting`."""
        if self.health.num_restarts:
            logger.warning("%s: restart %d", self.name, self.health.num_restarts)
        self._process = ActorProcess(self._spawn(self.index))
        self.health.expect_within(timeout_s)
        return self._process

    def _kill_process(self, reason: str, level: int) -> bool:
        """Kills the actor; returns False if it has no process."""
        if self.health.state in WITHOUT_PROCESS:
            return False
        logger.log(level, "%s is killed: %s", self.name, reason)
        self.health.record(Event.DIED)
        process = self._process.kill() if self._process else None
        if process is not None:
            self._killed.append(process)
        self._process = None
        return True
