"""Packs bundles onto nodes: pure arithmetic, before anything is reserved. A bundle fits on one node or not at all."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_ROUNDING = 1e-6
"""Ray counts resources in units of 1/10,000."""
_NAMES = ("CPU", "GPU")

Bundle = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class NodeResources:
    """What one node has."""

    name: str
    """For people: its address, or a name."""
    cpus: float
    """`inf`: as many as needed."""
    gpus: float = 0.0
    node_id: str = ""
    """Ray's id; empty for a node that does not exist yet."""

    @property
    def amounts(self) -> dict[str, float]:
        return {"CPU": self.cpus, "GPU": self.gpus}


@dataclass(frozen=True, slots=True)
class BundleKind:
    """Equal bundles of a plan, that follow each other."""

    bundle: Bundle
    count: int


class _Room:
    """What is still free on a node."""

    def __init__(self, node: NodeResources) -> None:
        self.total = node.amounts
        self.free = dict(self.total)
        self.num_bundles = 0

    def holds(self, bundle: Bundle) -> bool:
        return all(self.free[name] + _ROUNDING >= amount for name, amount in bundle.items())

    def take(self, bundle: Bundle) -> None:
        for name, amount in bundle.items():
            self.free[name] -= amount
        self.num_bundles += 1

    def share_with(self, bundle: Bundle) -> float:
        """The largest share of a resource that is used once the node holds `bundle`, 0 to 1."""
        return max(
            1 - (self.free[name] - amount) / self.total[name] if self.total[name] < math.inf else 0.0 for name, amount in bundle.items()
        )

    def capacity(self, bundle: Bundle, beside: Bundle | None = None) -> float:
        """How many of `bundle` fit, beside another bundle; `inf` if their number has no limit."""
        taken = beside or {}
        return capacity({name: free - taken.get(name, 0.0) for name, free in self.free.items()}, bundle)


def capacity(amounts: Mapping[str, float], bundle: Bundle) -> float:
    """How many of `bundle` fit into these amounts; `inf` if their number has no limit."""
    limited = [(amounts[name] + _ROUNDING) // amount for name, amount in bundle.items() if amounts[name] < math.inf]
    return min(limited, default=math.inf)


_Key = Callable[[_Room, Bundle, Bundle | None], tuple[float, ...]]
"""Orders nodes for a bundle, the best first, given the next kind of bundle."""


def pack(kinds: Sequence[BundleKind], nodes: Sequence[NodeResources], *, together: bool = False) -> tuple[int, ...] | None:
    """The index of the node of each bundle, or `None` if they do not fit.

    Args:
        kinds: in the order of the plan.
        nodes: where they may be.
        together: fill one node after the other, the largest first; otherwise spread them, if they fit that way, so that the loss of a node
            costs little. Exact for three kinds as in plans (of equal CPUs but for the last one, which needs one CPU), with whole amounts.
    """
    kinds = [kind for kind in kinds if kind.count]
    if any(_exceed(kinds, nodes, name) for name in _NAMES):
        return None
    if together:
        return _place(kinds, nodes, _fullest)
    return _place(kinds, nodes, _emptiest) or _place(kinds, nodes, _least_in_the_way)


def _exceed(kinds: Sequence[BundleKind], nodes: Sequence[NodeResources], name: str) -> bool:
    needed = sum(kind.bundle.get(name, 0.0) * kind.count for kind in kinds)
    return needed > sum(node.amounts[name] for node in nodes) + _ROUNDING


def _place(kinds: Sequence[BundleKind], nodes: Sequence[NodeResources], key: _Key) -> tuple[int, ...] | None:
    rooms = [_Room(node) for node in nodes]
    homes: list[int] = []
    for number, kind in enumerate(kinds):
        following = kinds[number + 1].bundle if number + 1 < len(kinds) else None
        heap = [(key(room, kind.bundle, following), index) for index, room in enumerate(rooms) if room.holds(kind.bundle)]
        heapq.heapify(heap)
        for _ in range(kind.count):
            if not heap:
                return None
            _, index = heapq.heappop(heap)
            rooms[index].take(kind.bundle)
            homes.append(index)
            if rooms[index].holds(kind.bundle):
                heapq.heappush(heap, (key(rooms[index], kind.bundle, following), index))
    return tuple(homes)


def _emptiest(room: _Room, bundle: Bundle, following: Bundle | None) -> tuple[float, ...]:
    return room.share_with(bundle), room.num_bundles


def _least_in_the_way(room: _Room, bundle: Bundle, following: Bundle | None) -> tuple[float, ...]:
    """First where it costs the fewest places for the next kind. The places of a node are a concave function of what is taken, so that
    taking the cheapest one after the other costs least in total."""
    cost = 0.0
    if following is not None and (before := room.capacity(following)) < math.inf:
        cost = before - room.capacity(following, beside=bundle)
    return cost, room.share_with(bundle), room.num_bundles


def _fullest(room: _Room, bundle: Bundle, following: Bundle | None) -> tuple[float, ...]:
    """First where something is already, then where most fit."""
    return -float(room.num_bundles > 0), -room.capacity(bundle), 0.0


def amounts_of(bundles: Sequence[Bundle]) -> dict[str, float]:
    """CPUs and GPUs of all bundles."""
    return {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in _NAMES}


def described(amounts: Mapping[str, float]) -> str:
    """CPUs and GPUs in words; CPUs that are as many as needed are left out."""
    return " and ".join(f"{amounts[name]:g} {name}(s)" for name in _NAMES if name in amounts and amounts[name] < math.inf)


def nodes_described(nodes: Sequence[NodeResources]) -> str:
    """Nodes in words, alike ones together: `4 nodes with 64 CPU(s) and 8 GPU(s) each`."""
    if len(nodes) == 1:
        return described(nodes[0].amounts)
    alike = Counter(described(node.amounts) for node in nodes)
    return " and ".join(f"{count} nodes with {text} each" if count > 1 else f"1 node with {text}" for text, count in alike.items())
