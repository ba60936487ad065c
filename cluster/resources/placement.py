"""Reserves a plan's resources as one Ray placement group, with a bounded wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.errors import HOW_TO_RESUME, NotEnoughResourcesError
from cluster.resources.plan import ResourcePlan

CheckPlacement = Callable[[], None]
"""`Placement.check`, for code that starts actors in it."""


_ANY_BUNDLE = -1


@dataclass(frozen=True, slots=True)
class Placement:
    """A reserved plan. Its methods return the keyword arguments for `.options(...)` of an actor or task."""

    plan: ResourcePlan
    group: PlacementGroup

    def engine_options(self, index: int) -> dict[str, Any]:
        return self._options(self.plan.engine_cpus, self.plan.engine_gpus, self.plan.engine_bundle(index))

    def sender_options(self) -> dict[str, Any]:
        return self._options(0, self.plan.sender_gpus, self.plan.sender_bundle)

    def filter_options(self) -> dict[str, Any]:
        return self._options(self.plan.filter_cpus, 0, _ANY_BUNDLE)

    def check(self) -> None:
        """Check that the plan's resources are still reserved. If a node is lost, Ray moves its bundles to other nodes with room.

        Raises:
            NotEnoughResourcesError: they currently are not.
        """
        if placement_group_table(self.group)["state"] != "CREATED":
            raise NotEnoughResourcesError(
                f"a node is lost and the rest has no room for {list(self.plan.bundles)}: {_describe_resources()} A bundle must fit on one "
                f"node. Bring the node back or add another one, then {HOW_TO_RESUME}."
            )

    def _options(self, cpus: float, gpus: float, bundle: int) -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)
        return {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": strategy}


@contextmanager
def reserve(plan: ResourcePlan, timeout_s: float) -> Iterator[Placement]:
    """Reserves the plan's resources for the duration of a `with` block, packed on as few nodes as possible; actors in the group end
    with it.

    Raises:
        NotEnoughResourcesError: the resources were not free within `timeout_s` seconds.
    """
    group = placement_group([dict(bundle) for bundle in plan.bundles], strategy="PACK")
    try:
        # An infeasible group never becomes ready and never fails by itself.
        if not group.wait(timeout_s):
            raise NotEnoughResourcesError(_explain(plan, timeout_s))
        yield Placement(plan, group)
    finally:
        remove_placement_group(group)


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
