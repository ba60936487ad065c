"""Plans which actor gets which CPUs and GPUs, and on which node: pure arithmetic, before any actor starts.

Colocated: generation and training alternate, so an engine, a trainer rank and the filters share one bundle (some CPUs, and one
GPU if GPUs are used), each with a fraction of it. Disaggregated: every actor has its own resources. A bundle is on one node, so that the
GPUs of a tensor-parallel engine are, too.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.errors import NotEnoughResourcesError
from cluster.planning.alternatives import Accepts, difference, nearest
from cluster.planning.packing import NodeResources, amounts_of, capacity, described, nodes_described
from cluster.planning.request import ResourceRequest

ENGINE_SHARE = 0.5
TRAINER_SHARE = 0.4
FILTER_SHARE = 0.1
"""Shares of a colocated bundle; they sum to one. Ray uses them only for placement: it neither pins nor throttles."""

SENDER_SHARE = 0.1
"""Share of the first trainer rank's GPU for the actor that sends weights from there."""

_RAY_RESOLUTION = 10_000
"""Ray counts resources in units of 1/10,000."""


@dataclass(frozen=True, slots=True)
class ResourcePlan:
    """Resources of each actor, and the bundles that hold them."""

    num_engines: int
    engine_cpus: float
    engine_gpus: float
    num_filters: int
    filter_cpus: float
    trainer_ranks: int
    trainer_cpus: float
    trainer_gpus: float
    sender_gpus: float
    colocated: bool
    bundles: tuple[dict[str, float], ...]
    nodes: tuple[NodeResources, ...] = ()
    """Of the plan."""
    homes: tuple[int, ...] = ()
    """Index of the node of each bundle, by which `vigc plan` shows what fits where; a run reserves bundles where there is room then."""

    def engine_bundle(self, index: int) -> int:
        assert 0 <= index < self.num_engines
        return index

    @property
    def rank_bundles(self) -> range:
        """The bundles with room for a trainer rank; if colocated, there may be more of them than ranks."""
        return range(len(self.bundles)) if self.colocated else range(self.num_engines, self.num_engines + self.trainer_ranks)

    @property
    def filter_bundles(self) -> range:
        """The bundles with room for a filter, or several."""
        return range(len(self.bundles)) if self.colocated else range(self.num_engines + self.trainer_ranks, len(self.bundles))


def plan_resources(nodes: Sequence[NodeResources], requested: ResourceRequest, accepts: Accepts = lambda _: True) -> ResourcePlan:
    """Fits a request onto nodes.

    Args:
        nodes: the resources of each node that can be used.
        requested: what a run needs.
        accepts: whether another request would be accepted in place of this one, for the advice if it does not fit.

    Raises:
        ValueError: a count is below one.
        NotEnoughResourcesError: it does not fit; the message says what was requested, what there is, and the nearest requests that fit.
    """
    for name in ("num_engines", "num_filters", "trainer_ranks", "cpus_per_actor", "gpus_per_engine"):
        if getattr(requested, name) < 1:
            raise ValueError(f"{name} is {getattr(requested, name)}; expected at least 1")
    if requested.colocated and requested.gpus_per_engine > 1:
        raise ValueError(f"{requested.gpus_per_engine} GPUs per engine cannot be shared with trainer ranks; do not colocate them")
    return _planned(nodes, requested, accepts)


def plan_engines(nodes: Sequence[NodeResources], num_engines: int, cpus_per_engine: int, gpus_per_engine: int) -> ResourcePlan:
    """Plans only engines, each with its own resources.

    Raises:
        ValueError: a count is below one; `gpus_per_engine` may be 0.
        NotEnoughResourcesError: see `plan_resources`.
    """
    for name, value, least in (
        ("num_engines", num_engines, 1),
        ("cpus_per_engine", cpus_per_engine, 1),
        ("gpus_per_engine", gpus_per_engine, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}")
    return _planned(nodes, ResourceRequest(num_engines, 0, 0, cpus_per_engine, gpus_per_engine > 0, False, max(1, gpus_per_engine)))


def plan_ranks(nodes: Sequence[NodeResources], num_ranks: int, cpus_per_rank: int, *, use_gpus: bool) -> ResourcePlan:
    """Plans only trainer ranks, with one GPU each if `use_gpus`.

    Raises:
        ValueError: a count is below one.
        NotEnoughResourcesError: see `plan_resources`.
    """
    if min(num_ranks, cpus_per_rank) < 1:
        raise ValueError(f"{num_ranks} trainer ranks with {cpus_per_rank} CPU(s) each were asked for; expected at least 1 of both")
    return _planned(nodes, ResourceRequest(0, 0, num_ranks, cpus_per_rank, use_gpus, False))


def most_engines(nodes: Sequence[NodeResources], requested: ResourceRequest) -> int:
    """The largest number of engines that fit beside the ranks and filters of a request, whatever its own number; 0 if none does."""
    places, engine = tuple(nodes), requested.kinds[0].bundle
    most = int(sum(capacity(node.amounts, engine) for node in places))
    return bisect_left(range(1, most + 1), True, key=lambda number: replace(requested, num_engines=number).packed(places) is None)


def _planned(nodes: Sequence[NodeResources], requested: ResourceRequest, accepts: Accepts = lambda _: True) -> ResourcePlan:
    plan = _colocated(requested) if requested.colocated else _disaggregated(requested)
    homes = requested.packed(tuple(nodes))
    if homes is None:
        raise NotEnoughResourcesError(_explain(tuple(nodes), requested, accepts))
    return replace(plan, nodes=tuple(nodes), homes=homes)


def _colocated(requested: ResourceRequest) -> ResourcePlan:
    num_bundles = max(requested.num_engines, requested.trainer_ranks)
    cpus, gpus = requested.cpus_per_actor, float(requested.use_gpus)
    filters_per_bundle = math.ceil(requested.num_filters / num_bundles)
    return ResourcePlan(
        num_engines=requested.num_engines,
        engine_cpus=ENGINE_SHARE * cpus,
        engine_gpus=ENGINE_SHARE * gpus,
        num_filters=requested.num_filters,
        filter_cpus=math.floor(FILTER_SHARE * cpus / filters_per_bundle * _RAY_RESOLUTION) / _RAY_RESOLUTION,
        trainer_ranks=requested.trainer_ranks,
        trainer_cpus=TRAINER_SHARE * cpus,
        trainer_gpus=TRAINER_SHARE * gpus,
        sender_gpus=SENDER_SHARE * gpus,
        colocated=True,
        bundles=requested.bundles,
    )


def _disaggregated(requested: ResourceRequest) -> ResourcePlan:
    cpus, gpus = requested.cpus_per_actor, float(requested.use_gpus)
    return ResourcePlan(
        num_engines=requested.num_engines,
        engine_cpus=cpus,
        engine_gpus=gpus * requested.gpus_per_engine,
        num_filters=requested.num_filters,
        filter_cpus=1,
        trainer_ranks=requested.trainer_ranks,
        trainer_cpus=cpus,
        trainer_gpus=(1 - SENDER_SHARE) * gpus,
        sender_gpus=SENDER_SHARE * gpus,
        colocated=False,
        bundles=requested.bundles,
    )


def _explain(nodes: tuple[NodeResources, ...], requested: ResourceRequest, accepts: Accepts) -> str:
    counts = {"engine": requested.num_engines, "trainer rank": requested.trainer_ranks, "filter": requested.num_filters}
    *others, last = [f"{count} {name}(s)" for name, count in counts.items() if count]
    actors = " and ".join(filter(None, [", ".join(others), last]))
    mode = f", {'colocated' if requested.colocated else 'disaggregated'}" if others else ""
    each = ", ".join(dict.fromkeys(f"{described(kind.bundle)}" for kind in requested.kinds if kind.count))
    fitting = [difference(one, requested) for one in nearest(nodes, requested, accepts)]
    remedy = f"It fits with {'; or with '.join(fitting)}; or on a larger cluster." if fitting else "Add nodes, or use a larger cluster."
    return (
        f"{actors}{mode}, {requested.cpus_per_actor} CPU(s) per actor, need {described(amounts_of(requested.bundles))}, in bundles of "
        f"{each}, each on one node; there are {nodes_described(nodes)}. {remedy}"
    )
