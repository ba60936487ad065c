"""Which nodes of the cluster can be used right now. Ray takes seconds to a minute of missed heartbeats to declare a node dead; until then
it would start actors there, which then fail with the node."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from typing import Any

import ray
from ray._private.state import available_resources_per_node

_FRESH_S = 1.0
_CONNECT_S = 1.0
"""A node that is off does not refuse a connection; within a cluster, one that is on accepts it in milliseconds."""


class LiveNodes:
    """Answers from what was asked within the last second, so that the actors of a lost node do not ask one after the other."""

    def __init__(self, list_nodes: Callable[[], list[dict[str, Any]]] = ray.nodes, clock: Callable[[], float] = time.monotonic) -> None:
        self._list_nodes = list_nodes
        self._clock = clock
        self._answers: dict[str, tuple[float, bool]] = {}

    def has(self, node_id: str, *, after_fault: bool = False) -> bool:
        """Whether Ray lists the node as alive and its raylet accepts connections. Waits for at most a second.

        With `after_fault`, an actor has just died there: that the node was alive a moment ago says nothing, and it is asked again.
        """
        asked_at, is_alive = self._answers.get(node_id, (-math.inf, False))
        if self._clock() - asked_at > _FRESH_S or (after_fault and is_alive):
            is_alive = any(node["NodeID"] == node_id and node["Alive"] and _accepts(node) for node in self._list_nodes())
            self._answers[node_id] = (self._clock(), is_alive)
        return is_alive


def free_resources() -> dict[str, dict[str, float]]:
    """What each node has free, by its id, as the nodes have last told Ray (every 100 ms). Ray has no public call for it."""
    return available_resources_per_node()


def _accepts(node: dict[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=_CONNECT_S).close()
    except OSError:  # refused, unreachable, or too late
        return False
    return True
