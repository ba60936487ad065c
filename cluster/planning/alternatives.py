"""The requests nearest to one that does not fit. Each has been packed onto the nodes before it is named."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace

from cluster.planning.packing import NodeResources
from cluster.planning.request import ResourceRequest

Accepts = Callable[[ResourceRequest], bool]
"""Whether a request could take the place of another one, such as in the config that it comes from."""

_COUNTS = "num_filters", "num_engines", "trainer_ranks"
"""In the order in which they are lowered: fewer filters or engines change nothing but the time."""
_KEYS = {"gpus_per_engine": "tensor_parallel_size"}
"""Config keys of fields that are named differently."""


def nearest(nodes: tuple[NodeResources, ...], requested: ResourceRequest, accepts: Accepts) -> list[ResourceRequest]:
    """Requests that fit, one for each way to change the given one: fewer actors, fewer CPUs for each, fewer GPUs for each engine, shared
    bundles. Empty if nothing fits."""
    held = _held(nodes, requested)
    counts = [[replace(held, **{name: number}) for number in range(getattr(held, name), 0, -1)] for name in _COUNTS]
    ways = [
        [*counts, _fewer_actors(held)],
        [[replace(requested, cpus_per_actor=cpus) for cpus in range(requested.cpus_per_actor - 1, 0, -1)]],
        [[replace(requested, gpus_per_engine=size) for size in _smaller_sizes(requested)]],
        [[] if requested.colocated or _num_gpus(requested) > 1 else [replace(requested, colocated=True)]],
    ]
    found = [next((one for path in way if (one := _first(path, nodes, accepts))), None) for way in ways]
    return list(dict.fromkeys(_grown(one, held, nodes, accepts) if one is found[0] else one for one in found if one is not None))


def difference(other: ResourceRequest, requested: ResourceRequest) -> str:
    """The keys in which another request differs, with its values: `num_engines 3 and trainer_ranks 3`."""
    names = [field.name for field in fields(ResourceRequest) if getattr(other, field.name) != getattr(requested, field.name)]
    changes = [f"{_KEYS.get(name, name)} {str(getattr(other, name)).lower()}" for name in names]
    if "use_gpus" in names:
        changes.append("engine.device cpu")
    return " and ".join(filter(None, [", ".join(changes[:-1]), changes[-1]]))


def _first(path: Sequence[ResourceRequest], nodes: tuple[NodeResources, ...], accepts: Accepts) -> ResourceRequest | None:
    """The first that fits and would be accepted, of requests that need less and less."""
    start = bisect_left(path, True, key=lambda one: one.packed(nodes) is not None)
    return next((one for one in path[start:] if accepts(one) and one.packed(nodes) is not None), None)


def _held(nodes: tuple[NodeResources, ...], requested: ResourceRequest) -> ResourceRequest:
    """The request with bundles that a node holds: without GPUs if there are none, with fewer GPUs or CPUs for each otherwise."""
    gpus = max((node.gpus for node in nodes), default=0)
    held = replace(requested, use_gpus=requested.use_gpus and gpus >= 1)
    if _num_gpus(held) > gpus:
        held = replace(held, gpus_per_engine=next(size for size in _smaller_sizes(held) if size <= gpus))
    wide = [node.cpus for node in nodes if node.gpus >= _num_gpus(held)]
    cpus = max(wide, default=0)
    return replace(held, cpus_per_actor=max(1, math.floor(cpus))) if cpus < held.cpus_per_actor else held


def _num_gpus(requested: ResourceRequest) -> int:
    return requested.use_gpus * requested.gpus_per_engine


def _smaller_sizes(requested: ResourceRequest) -> Iterator[int]:
    """Numbers of GPUs on which weights that are cut for more of them can be cut as well."""
    size = _num_gpus(requested)
    return (smaller for smaller in range(size - 1, 0, -1) if size % smaller == 0)


def _fewer_actors(requested: ResourceRequest) -> list[ResourceRequest]:
    """At most so many of each kind."""
    return [
        replace(requested, **{name: min(number, getattr(requested, name)) for name in _COUNTS})
        for number in range(max(getattr(requested, name) for name in _COUNTS), 0, -1)
    ]


def _grown(found: ResourceRequest, held: ResourceRequest, nodes: tuple[NodeResources, ...], accepts: Accepts) -> ResourceRequest:
    """As many actors of each kind as still fit."""
    for name in reversed(_COUNTS):
        more = [replace(found, **{name: number}) for number in range(getattr(held, name), getattr(found, name), -1)]
        found = _first(more, nodes, accepts) or found
    return found
