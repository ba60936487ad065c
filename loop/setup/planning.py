"""Which actors of a run fit on which node: of this machine, of the cluster that a config names, or of nodes that are assumed."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import psutil

from cluster.errors import NotEnoughResourcesError
from cluster.planning.packing import NodeResources, amounts_of, capacity, described
from cluster.planning.request import ResourceRequest
from cluster.resources.plan import ResourcePlan, most_engines, plan_resources
from loop.config.engine_config import ClusterConfig
from loop.config.run_config import EMBEDDED_MODELS, RunConfig
from loop.config.sets import image_paths
from loop.config.train_config import TrainCluster
from loop.errors import UserError
from loop.setup.assembly import resource_request

_NODES = re.compile(r"(?P<count>[1-9]\d*)x(?:(?P<cpus>\d+)c)?(?:(?P<gpus>\d+)g?)?")
THIS_MACHINE = "this machine"


@dataclass(frozen=True, slots=True)
class Available:
    """The nodes that a run can use."""

    nodes: tuple[NodeResources, ...]
    """What each has."""
    free: tuple[NodeResources, ...]
    """What of it nobody else has reserved."""
    where: str
    """In words."""
    is_cluster: bool = False
    """Whether nodes may join."""


@dataclass(frozen=True, slots=True)
class NodeShare:
    """What of a plan one node gets."""

    node: NodeResources
    engines: str
    """Numbers of engines such as `0-3, 8`; empty for none."""
    ranks: str
    filters: str
    free: NodeResources
    """What is left."""


def assumed_nodes(texts: Sequence[str], *, use_gpus: bool) -> tuple[NodeResources, ...]:
    """Nodes by values of `--assume-nodes`: `4x8` is 4 nodes with 8 GPUs each and as many CPUs as needed, `4x96c8g` gives them 96 CPUs,
    `2x16c` are 2 nodes with 16 CPUs and no GPU.

    Raises:
        UserError: a text is none of this, or says nothing of CPUs for a run without GPUs.
    """
    nodes: list[NodeResources] = []
    for text in texts:
        found = _NODES.fullmatch(text)
        if found is None or (found["cpus"] is None and found["gpus"] is None):
            raise UserError(f"--assume-nodes is {text!r}; expected nodes and what each has: 4x8 (8 GPUs), 4x96c8g (96 CPUs too) or 4x96c")
        if found["cpus"] is None and not use_gpus:
            raise UserError(f"--assume-nodes {text} names only GPUs, and this run uses none; say how many CPUs a node has, as in 4x16c")
        cpus = math.inf if found["cpus"] is None else int(found["cpus"])
        first = len(nodes) + 1
        nodes += [NodeResources(f"node {number}", cpus, int(found["gpus"] or 0)) for number in range(first, first + int(found["count"]))]
    return tuple(nodes)


def available_nodes(cluster: ClusterConfig | TrainCluster) -> Available:
    """The nodes of the cluster that the config or `RAY_ADDRESS` names, asked without joining it, or else this machine.

    Raises:
        AddressError: nothing answers at the address.
        TimeoutExceededError: the cluster had no node within `start_timeout_s` seconds.
    """
    from cluster.resources.address import cluster_address

    address = cluster_address(cluster.address)
    if address is None:
        here = (this_machine(cluster),)
        return Available(here, here, THIS_MACHINE)
    from cluster.resources.survey import survey

    found = survey(address, cluster.start_timeout_s)
    return Available(found.nodes, found.free, f"the cluster at {address}", is_cluster=True)


def this_machine(cluster: ClusterConfig | TrainCluster) -> NodeResources:
    """What a local Ray would have."""
    return NodeResources(THIS_MACHINE, cluster.num_cpus or psutil.cpu_count() or 1, _num_gpus() if cluster.use_gpus else 0)


def _num_gpus() -> int:
    import torch  # takes a second to import, and is only needed with GPUs

    return torch.cuda.device_count()


def planned(config: RunConfig, nodes: Sequence[NodeResources], *, is_cluster: bool = False) -> ResourcePlan:
    """The plan of a run on these nodes. With `num_engines: auto`, it has the engines for which there is room; on a cluster, a fixed number
    is lowered to those, down to `min_engines`, because the others may join.

    Raises:
        UserError: it does not fit; the message names what is needed, what there is, and the nearest that fits.
    """
    cluster, request = config.cluster, resource_request(config)
    try:
        if cluster.num_engines == "auto" and _is_limited(nodes, request):
            most = min(most_engines(nodes, request), cluster.max_engines or math.inf)
            request = replace(request, num_engines=max(int(most), request.num_engines))
        elif is_cluster and (most := most_engines(nodes, request)) >= cluster.min_engines:
            request = replace(request, num_engines=min(most, request.num_engines))
        return plan_resources(nodes, request, lambda other: _is_valid(config, other))
    except NotEnoughResourcesError as error:
        raise UserError(str(error)) from error


def _is_limited(nodes: Sequence[NodeResources], request: ResourceRequest) -> bool:
    """Whether these nodes have room for some number of engines only."""
    return all(capacity(node.amounts, request.kinds[0].bundle) < math.inf for node in nodes)


def planned_now(config: RunConfig, available: Available) -> ResourcePlan:
    """The plan of a run on what is free now, or, if it does not fit there, on what its nodes have. Raises what `planned` does."""
    if available.free != available.nodes:
        with suppress(UserError):
            return planned(config, available.free, is_cluster=available.is_cluster)
    return planned(config, available.nodes, is_cluster=available.is_cluster)


def _is_valid(config: RunConfig, other: ResourceRequest) -> bool:
    """Whether the config accepts these resources in place of its own: batches must be divisible by ranks, and the like."""
    document: dict[str, Any] = config.model_dump(mode="json")
    names = ("num_engines", "num_filters", "trainer_ranks", "cpus_per_actor", "use_gpus", "colocated")
    document["cluster"] |= {name: getattr(other, name) for name in names}
    if config.cluster.num_engines == "auto":
        document["cluster"]["num_engines"] = "auto"
        if other.num_engines < config.cluster.min_engines:
            return False
    if config.engine.kind == "vllm":
        document["engine"]["tensor_parallel_size"] = other.gpus_per_engine
    if config.cluster.use_gpus and not other.use_gpus:
        document["engine"]["device"] = "cpu"
    try:
        RunConfig.model_validate(document)
    except ValueError:  # pydantic's ValidationError is one
        return False
    return True


def node_shares(plan: ResourcePlan) -> Iterator[NodeShare]:
    """What each node gets, in the order of the nodes."""
    filters = {number: plan.filter_bundles[number % len(plan.filter_bundles)] for number in range(plan.num_filters)}
    for index, node in enumerate(plan.nodes):
        own = {bundle for bundle, home in enumerate(plan.homes) if home == index}
        taken = amounts_of([plan.bundles[bundle] for bundle in own])
        yield NodeShare(
            node,
            _ranges([number for number in range(plan.num_engines) if plan.engine_bundle(number) in own]),
            _ranges([number for number in range(plan.trainer_ranks) if plan.rank_bundles[number] in own]),
            _ranges([number for number, bundle in filters.items() if bundle in own]),
            NodeResources(node.name, node.cpus - taken["CPU"], node.gpus - taken["GPU"], node.node_id),
        )


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3, 8`: ascending numbers with neighbours together."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def plan_lines(config: RunConfig, plan: ResourcePlan) -> Iterator[str]:
    """The plan in words: actors, bundles, and their sum."""
    where = "colocated" if plan.colocated else "disaggregated"
    sleep = "; engines sleep while ranks train" if config.cluster.sleep_while_training else ""
    ahead = "; engines write the next round while ranks train" if config.overlap else ""
    yield f"{plan.num_engines} engine(s), {plan.trainer_ranks} trainer rank(s) and {plan.num_filters} filter(s), {where}{sleep}{ahead}"
    yield from _engine_lines(config, plan)
    bundles = Counter(tuple(sorted(bundle.items())) for bundle in plan.bundles)
    for bundle, count in bundles.items():
        yield f"{count} bundle(s) of {described(dict(bundle))}, each on one node"
    yield f"{described(amounts_of(plan.bundles))} in all"


def _engine_lines(config: RunConfig, plan: ResourcePlan) -> Iterator[str]:
    """Why the plan has so many engines, if the config does not say it."""
    cluster = config.cluster
    if cluster.num_engines == "auto":
        most = "" if cluster.max_engines is None else f" and at most {cluster.max_engines}"
        yield f"num_engines auto: engines as there is room, at least {cluster.min_engines}{most}; more join with nodes that join"
    elif plan.num_engines < cluster.num_engines:
        yield f"num_engines {cluster.num_engines}: the run begins with {plan.num_engines}, and the rest join when there is room"


def needs(config: RunConfig, plan: ResourcePlan) -> Iterator[str]:
    """What the nodes of a plan and the driver's machine need besides CPUs and GPUs, one line each."""
    used = {*plan.homes}
    each = "this machine" if len(used) == 1 else f"each of the {len(used)} nodes with actors"
    images = image_paths(config.data_sets)
    paths = {str(path) for section in config.data_sets for name in ("path", "images") if (path := getattr(section, name, None))}
    if config.model not in EMBEDDED_MODELS:
        yield f"the driver's machine: the model {config.model}"
    if read := sorted(paths - {*images}):
        yield f"the driver's machine: the data in {', '.join(read)}"
    if images:
        yield f"{each}: the images in {', '.join(images)}"
    if config.engine.kind == "vllm":
        yield f"{each}: vLLM"
    if len(used) > 1:
        yield f"{each}: the same versions of Python, Ray and this project, and a run folder that all of them and the driver see"
