"""Asks a running cluster for its nodes, without joining it: nothing is started there, and this machine need not be a node of it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace

from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.autoscaler.v2.schema import NodeInfo
from ray.autoscaler.v2.sdk import get_cluster_status

from cluster.errors import TimeoutExceededError
from cluster.planning.packing import NodeResources
from cluster.resources.address import ClusterAddress, answered

_POLL_S = 0.5
_NODE_CHARS = 8
"""Of a node's id, where several nodes have one address."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The nodes of a cluster."""

    nodes: tuple[NodeResources, ...]
    """What each has."""
    free: tuple[NodeResources, ...]
    """What of it nobody has reserved, in the same order."""


def survey(address: ClusterAddress, timeout_s: float) -> Survey:
    """The live nodes of the cluster at an address.

    Raises:
        AddressError: nothing answers there, or the cluster refuses this process.
        TimeoutExceededError: the cluster had no node with CPUs within `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = answered(address, lambda: _ask(address.value, max(1, round(deadline - time.monotonic()))), deadline)
        if any(node.cpus for node in found.nodes):
            return found
        if time.monotonic() >= deadline:
            raise TimeoutExceededError(
                f"the Ray cluster at {address} has {len(found.nodes)} live node(s) and no CPU after {timeout_s:g} s; look at `ray status`"
            )
        time.sleep(_POLL_S)


def _ask(address: str, timeout_s: int) -> Survey:
    status = get_cluster_status(canonicalize_bootstrap_address_or_die(address), timeout_s)
    nodes = sorted([*status.active_nodes, *status.idle_nodes], key=lambda node: (node.ip_address, node.node_id or ""))
    count = Counter(node.ip_address for node in nodes)
    names = [
        f"{node.ip_address} ({(node.node_id or '')[:_NODE_CHARS]})" if count[node.ip_address] > 1 else node.ip_address for node in nodes
    ]
    totals = tuple(map(_resources_of, nodes, names))
    return Survey(totals, tuple(map(_free_of, nodes, totals)))


def _resources_of(node: NodeInfo, name: str) -> NodeResources:
    total = node.total_resources()
    return NodeResources(name, total.get("CPU", 0.0), total.get("GPU", 0.0), node.node_id or "")


def _free_of(node: NodeInfo, total: NodeResources) -> NodeResources:
    free = node.available_resources()
    return replace(total, cpus=free.get("CPU", 0.0), gpus=free.get("GPU", 0.0))
