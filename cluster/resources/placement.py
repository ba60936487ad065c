"""Reserves a plan's resources, each bundle as a Ray placement group of its own, with a bounded wait.

If a node is lost, Ray moves its groups to nodes with room, if there are any, and leaves all others where they are. Groups of one bundle
are spread: Ray places each where the largest share is free. Colocated bundles are packed, because the ranks in them talk to each other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.errors import HOW_TO_RESUME, NotEnoughResourcesError
from cluster.resources.nodes import LiveNodes
from cluster.resources.plan import ResourcePlan

log = logging.getLogger(__name__)

CheckPlacement = Callable[[], None]
"""Raises `NotEnoughResourcesError` if there is no room for what does not start, for code that starts actors or tasks."""

_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Where one trainer rank runs."""

    node: str
    """Id of the node."""
    strategy: Any
    """Ray's scheduling strategy."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A reserved plan. Its options are keyword arguments for `.options(...)` of an actor or task."""

    plan: ResourcePlan
    groups: Sequence[PlacementGroup]
    """Of each bundle."""
    _nodes: LiveNodes = field(default_factory=LiveNodes)
    _turn: Iterator[int] = field(default_factory=count)

    def engine_options(self, index: int) -> dict[str, Any]:
        return self._options(self.plan.engine_cpus, self.plan.engine_gpus, self.plan.engine_bundle(index))

    def engine_home(self, index: int) -> str:
        """Id of the live node on which an engine can run; empty while there is none."""
        return self._home(self.plan.engine_bundle(index))

    def sender_options(self) -> dict[str, Any]:
        """Options of the actor that sends weights, beside the first rank, whose machine has the checkpoint."""
        bundle, _ = next(self._live(self.plan.rank_bundles), (self.plan.rank_bundles[0], ""))
        return self._options(0, self.plan.sender_gpus, bundle)

    def filter_options(self) -> dict[str, Any]:
        """Options of the next filter task: filters take turns on the bundles that have room for one."""
        bundles, turn = self.plan.filter_bundles, next(self._turn)
        in_turn = [bundles[(turn + offset) % len(bundles)] for offset in range(len(bundles))]
        bundle, _ = next(self._live(in_turn), (in_turn[0], ""))
        return self._options(self.plan.filter_cpus, 0, bundle)

    def is_filter_stranded(self, options: dict[str, Any]) -> bool:
        """Whether no live node holds the bundle of a filter's options, while one holds another."""
        bundle = self.groups.index(options["scheduling_strategy"].placement_group)
        return not self._home(bundle) and any(self._live(self.plan.filter_bundles))

    def place_ranks(self, timeout_s: float) -> list[RankPlace]:
        """A place for each trainer rank; waits until there is room for all.

        Raises:
            NotEnoughResourcesError: there is none within `timeout_s` seconds.
        """
        deadline, num_ranks, is_shown = time.monotonic() + timeout_s, self.plan.trainer_ranks, False
        while len(found := dict(islice(self._live(self.plan.rank_bundles), num_ranks))) < num_ranks:
            if time.monotonic() >= deadline:
                raise NotEnoughResourcesError(self._shortage(num_ranks - len(found), num_ranks, "trainer rank", self.plan.rank_bundles))
            if not is_shown:
                log.warning("%d of %d trainer rank(s) wait for room, at most %g s", num_ranks - len(found), num_ranks, timeout_s)
                is_shown = True
            time.sleep(_POLL_S)
        return [RankPlace(node, self._strategy(bundle)) for bundle, node in found.items()]

    def is_lost(self, place: RankPlace) -> bool:
        """Whether the node of a rank is lost."""
        return not self._nodes.has(place.node)

    def check_engines(self) -> None:
        """Raises `NotEnoughResourcesError`, with advice, if an engine has no room."""
        self._check(range(self.plan.num_engines), self.plan.num_engines, "engine")

    def check_filters(self) -> None:
        """Raises `NotEnoughResourcesError`, with advice, if no filter has room."""
        self._check(self.plan.filter_bundles, 1, "filter")

    def _check(self, bundles: Sequence[int], num_needed: int, what: str) -> None:
        num_missing = num_needed - len([*islice(self._live(bundles), num_needed)])
        if num_missing:
            raise NotEnoughResourcesError(self._shortage(num_missing, num_needed, what, bundles))

    def _shortage(self, num_missing: int, num_needed: int, what: str, bundles: Sequence[int]) -> str:
        return (
            f"a node is lost and the rest has no room for {num_missing} of {num_needed} {what}(s), each {self.plan.bundles[bundles[0]]}: "
            f"{_describe_resources()} What is reserved together must fit on one node. Bring the node back or add another one, then "
            f"{HOW_TO_RESUME}."
        )

    def _live(self, bundles: Sequence[int]) -> Iterator[tuple[int, str]]:
        """The bundles that a live node holds, with the id of that node."""
        return ((bundle, node) for bundle in bundles if (node := self._home(bundle)))

    def _home(self, bundle: int) -> str:
        """Id of the live node that holds a bundle; empty while there is none."""
        table = placement_group_table(self.groups[bundle])
        node = table["bundles_to_node_id"][0] if table["state"] == "CREATED" else ""
        return node if node and self._nodes.has(node) else ""

    def _options(self, cpus: float, gpus: float, bundle: int) -> dict[str, Any]:
        return {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": self._strategy(bundle)}

    def _strategy(self, bundle: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self.groups[bundle], placement_group_bundle_index=0)


@contextmanager
def reserve(plan: ResourcePlan, timeout_s: float) -> Iterator[Placement]:
    """Reserves the plan's resources for the duration of a `with` block; actors and tasks in them end with it.

    Raises:
        NotEnoughResourcesError: the resources were not free within `timeout_s` seconds.
    """
    groups: list[PlacementGroup] = []
    deadline = time.monotonic() + timeout_s
    try:
        for bundle in plan.bundles:
            groups.append(_packed(bundle, groups, deadline) if plan.colocated else placement_group([dict(bundle)]))
        # An infeasible group never becomes ready and never fails by itself.
        if not all(group.wait(max(0.0, deadline - time.monotonic())) for group in groups):
            raise NotEnoughResourcesError(_explain(plan, timeout_s))
        yield Placement(plan, groups)
    finally:
        for group in groups:
            remove_placement_group(group)


def _packed(bundle: Mapping[str, float], groups: Sequence[PlacementGroup], deadline: float) -> PlacementGroup:
    """A group on the node of the last one, if that has room. Ray offers no public way to pack groups of one bundle."""
    node = None
    if groups and groups[-1].wait(max(0.0, deadline - time.monotonic())):
        node = placement_group_table(groups[-1])["bundles_to_node_id"][0]
    return placement_group([dict(bundle)], strategy="STRICT_PACK", _soft_target_node_id=node)


def _explain(plan: ResourcePlan, timeout_s: float) -> str:
    return (
        f"cannot reserve {list(plan.bundles)} within {timeout_s:g} s: {_describe_resources()} A bundle must fit on one node. Ask for fewer "
        f"engines or trainer ranks, wait for another job, or add nodes."
    )


def _describe_resources() -> str:
    total, free = ray.cluster_resources(), ray.available_resources()
    return f"the cluster has {_amounts(total)}, of which {_amounts(free)} are free."


def _amounts(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPU(s) and {resources.get('GPU', 0):g} GPU(s)"
