"""Ends the driver when its Ray node is lost. A driver cannot continue without its node, but Ray lets it wait for minutes or ends it
without a message. A thread watches the node and ends the driver promptly with a clear error."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
import ray
from ray.exceptions import RayError

from cluster.errors import HOW_TO_RESUME

logger = logging.getLogger(__name__)

_POLL_S = 2.0

_MAX_STOPPED_S = 30.0
"""A stopped server may continue, as with Ctrl-Z and `fg`."""

_SERVERS = ("gcs_server", "raylet")


@contextmanager
def watched(is_local: bool) -> Iterator[None]:
    """Ends this process with exit code 1 when its Ray node is lost: its own local Ray, or a node of a cluster.

    Exits without cleanup: calls to Ray could then block forever, and a run survives the death of its driver. The processes of a
    local Ray are killed first.
    """
    over = threading.Event()
    lost = LocalServers().lost if is_local else _lost_node
    thread = threading.Thread(target=_watch, args=(over, lost), name="ray-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_POLL_S)


def _watch(over: threading.Event, lost: Callable[[], str]) -> None:
    while not over.wait(_POLL_S):
        if reason := lost():
            logger.critical("NodeLostError: %s; %s", reason, HOW_TO_RESUME)
            logging.shutdown()
            os._exit(1)


class LocalServers:
    """The servers of a Ray that this process has started, and all their child processes."""

    def __init__(self) -> None:
        self._servers = {child: child.name() for child in psutil.Process().children() if child.name() in _SERVERS}
        self._family: set[psutil.Process] = set(self._servers)
        self._running_at = dict.fromkeys(self._servers, time.monotonic())

    def lost(self) -> str:
        """If a server is lost, kills all other processes and returns which one and why; empty while all run."""
        for server, name in self._servers.items():
            status = _status(server)
            if status != psutil.STATUS_STOPPED:
                self._running_at[server] = time.monotonic()
            stopped_s = time.monotonic() - self._running_at[server]
            if status == psutil.STATUS_DEAD or stopped_s > _MAX_STOPPED_S:
                self._kill_all()
                return f"{name} (process {server.pid}) of the local Ray {'has died' if status == psutil.STATUS_DEAD else 'stands still'}"
            with suppress(psutil.NoSuchProcess):
                self._family |= set(server.children(recursive=True))
        return ""

    def _kill_all(self) -> None:
        for process in self._family:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _status(process: psutil.Process) -> str:
    """Status of a process; `STATUS_DEAD` if it has ended or only waits to be reaped."""
    try:
        status = process.status() if process.is_running() else psutil.STATUS_DEAD
    except psutil.NoSuchProcess:
        return psutil.STATUS_DEAD
    return psutil.STATUS_DEAD if status == psutil.STATUS_ZOMBIE else status


def _lost_node() -> str:
    own = ray.get_runtime_context().get_node_id()
    try:
        nodes = ray.nodes()
    except RayError as error:
        logger.warning("the Ray cluster does not list its nodes: %s", error)  # if this persists, Ray ends this process
        return ""
    is_alive = any(node["Alive"] for node in nodes if node["NodeID"] == own)
    return "" if is_alive else f"the cluster has declared the Ray node of this driver dead ({own[:12]})"
