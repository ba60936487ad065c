"""Reserves a plan's resources, each bundle as a Ray placement group of its own, with a bounded wait, and room for engines that join.

If a node is lost, Ray moves its groups to nodes with room, if there are any, and leaves all others where they are. Groups of one bundle
are spread: Ray places each where the largest share is free. Colocated bundles are packed, because the ranks in them talk to each other.

A group without room stays pending, and Ray places it as soon as there is some. Pending groups are what an autoscaling cluster adds nodes
for. They end with the driver, while a request by `ray.autoscaler.sdk` would outlive it and replace those of other drivers.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.errors import HOW_TO_RESUME, NotEnoughResourcesError
from cluster.planning.packing import amounts_of, capacity, described
from cluster.resources.nodes import LiveNodes, free_resources
from cluster.resources.plan import ResourcePlan
from cluster.resources.turns import is_taken, turn

log = logging.getLogger(__name__)

Admits = Callable[[str], bool]
"""Whether actors may run on the node with this id; see `cluster.resources.joining`."""

CheckPlacement = Callable[[], None]
"""Raises `NotEnoughResourcesError` if there is no room for what does not start, for code that starts actors or tasks."""

_POLL_S = 0.5

_QUIET_S = 10.0
"""Wait for room before it is shown, and at least as long for engines that the run can do without. Ray places a group in milliseconds, and
on a node that has just joined within a second or two."""

_PLACE_S = 2.0
"""Longest wait for a group on the node that has been chosen for it."""

_TRY_S = 10.0
"""How long a group stays pending for which a node had room, according to what it last told Ray."""

_MAX_LOOKS = 16
"""Pending groups that are looked at in one call, each in less than a millisecond."""


@dataclass(frozen=True, slots=True)
class EngineRange:
    """How many engines a run has, depending on the room that there is."""

    least: int
    """Engines that a run starts with at least."""
    most: int | None = None
    """Engines for which a run takes room; `None`: no limit."""
    is_asked_for: bool = False
    """Whether groups for `most` engines are kept pending, as a request to an autoscaling cluster; otherwise groups are only made where
    nodes have room."""


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Where one trainer rank runs."""

    node: str
    """Id of the node."""
    strategy: Any
    """Ray's scheduling strategy."""


class Placement:
    """A reserved plan. Its options are keyword arguments for `.options(...)` of an actor or task."""

    def __init__(self, plan: ResourcePlan, groups: list[PlacementGroup], engines: EngineRange, admits: Admits) -> None:
        """Takes over `groups`, one for each bundle of the plan; those of engines that join are appended."""
        self.plan = plan
        self.groups = groups
        self._engine_range = engines
        self._nodes = LiveNodes()
        self._admits = admits
        self._turn = count()
        # If colocated, engines that join bring room for ranks and filters.
        self._ranks = groups if plan.colocated else [groups[bundle] for bundle in plan.rank_bundles]
        self._filters = groups if plan.colocated else [groups[bundle] for bundle in plan.filter_bundles]
        engine_bundles = [plan.engine_bundle(index) for index in range(plan.num_engines)]
        self._others = [group for bundle, group in enumerate(groups) if bundle not in set(engine_bundles)]
        self._engines: list[PlacementGroup] = []
        self._pending = deque((groups[bundle], math.inf) for bundle in engine_bundles)
        """Groups of engines that have no place yet, and until when each stays pending."""

    @property
    def num_engines(self) -> int:
        """Number of engines that have had a place."""
        return len(self._engines)

    def engine_options(self, index: int) -> dict[str, Any]:
        return self._options(self.plan.engine_cpus, self.plan.engine_gpus, self._engines[index])

    def engine_home(self, index: int) -> str:
        """Id of the live node on which an engine can start or restart; empty while there is none."""
        return self._home(self._engines[index], after_fault=True)

    def find_places(self) -> int:
        """Number of engines that have a place, after those of new ones have been looked for. Waits for nothing: a few calls to Ray's GCS,
        each under a millisecond. A place for which there is room now is there in a later call."""
        self._take_places(_MAX_LOOKS)
        if not self._pending and (num_new := self._num_with_room()) and not is_taken():
            self._ask_for(num_new, time.monotonic() + _TRY_S)
        return self.num_engines

    def begin(self, timeout_s: float) -> None:
        """Waits until all bundles have a place, or after a while until a run can do without those that have none. Then finds places for all
        engines for which there is room now, or that are asked for.

        Raises:
            NotEnoughResourcesError: it cannot do without them, after `timeout_s` seconds.
        """
        self._await_places(timeout_s)
        self._take_places(len(self._pending))
        most = self._engine_range.most
        if self._engine_range.is_asked_for and most is not None:
            self._ask_for(most - self.plan.num_engines, math.inf)
        else:
            self._ask_for(self._num_with_room(), time.monotonic() + _TRY_S)
        deadline = time.monotonic() + _PLACE_S
        for group, _ in self._pending:
            group.wait(max(0.0, deadline - time.monotonic()))
        self._take_places(len(self._pending))

    def sender_options(self) -> dict[str, Any]:
        """Options of the actor that sends weights, beside the first rank, whose machine has the checkpoint."""
        group, _ = next(self._live(self._ranks), (self._ranks[0], ""))
        return self._options(0, self.plan.sender_gpus, group)

    def filter_options(self) -> dict[str, Any]:
        """Options of the next filter task: filters take turns on the bundles that have room for one."""
        groups, turn = self._filters, next(self._turn)
        in_turn = [groups[(turn + offset) % len(groups)] for offset in range(len(groups))]
        group, _ = next(self._live(in_turn), (in_turn[0], ""))
        return self._options(self.plan.filter_cpus, 0, group)

    def is_filter_stranded(self, options: dict[str, Any]) -> bool:
        """Whether no live node holds the bundle of a filter's options, while one holds another."""
        return not self._home(options["scheduling_strategy"].placement_group) and any(self._live(self._filters))

    def place_ranks(self, timeout_s: float) -> list[RankPlace]:
        """A place for each trainer rank; waits until there is room for all.

        Raises:
            NotEnoughResourcesError: there is none within `timeout_s` seconds.
        """
        deadline, num_ranks, is_shown = time.monotonic() + timeout_s, self.plan.trainer_ranks, False
        while len(found := [*islice(self._live(self._ranks), num_ranks)]) < num_ranks:
            if time.monotonic() >= deadline:
                raise NotEnoughResourcesError(self._shortage(num_ranks - len(found), num_ranks, "trainer rank", self._ranks))
            if not is_shown:
                log.warning("%d of %d trainer rank(s) wait for room, at most %g s", num_ranks - len(found), num_ranks, timeout_s)
                is_shown = True
            time.sleep(_POLL_S)
        return [RankPlace(node, _strategy(group)) for group, node in found]

    def is_lost(self, place: RankPlace) -> bool:
        """Whether the node of a rank that has failed is lost."""
        return not self._nodes.has(place.node, after_fault=True)

    def check_engines(self) -> None:
        """Raises `NotEnoughResourcesError`, with advice, if an engine has no room."""
        self._check(self._engines, self.num_engines, "engine")

    def check_filters(self) -> None:
        """Raises `NotEnoughResourcesError`, with advice, if no filter has room."""
        self._check(self._filters, 1, "filter")

    def _await_places(self, timeout_s: float) -> None:
        """See `begin`. An infeasible group never becomes ready and never fails by itself."""
        deadline, quiet_until = time.monotonic() + timeout_s, time.monotonic() + min(timeout_s, _QUIET_S)
        missing = self._without_place(self.groups, quiet_until)
        while missing and time.monotonic() < quiet_until:  # nodes that have just joined are checked
            time.sleep(_POLL_S)
            missing = self._without_place(missing)
        if missing and not self._can_do_without(missing):
            log.warning("waiting for room for %s, at most %g s: %s", self._described(missing), timeout_s, _describe_resources())
            while missing and not self._can_do_without(missing):
                if time.monotonic() >= deadline:
                    raise NotEnoughResourcesError(_explain(self.plan, timeout_s))
                time.sleep(_POLL_S)
                missing = self._without_place(missing)
        if missing:
            log.warning("the run begins without %s, and takes what joins: %s", self._described(missing), _describe_resources())

    def _without_place(self, groups: Sequence[PlacementGroup], until: float = 0.0) -> list[PlacementGroup]:
        """Those of the groups that have no place, at the latest at a monotonic time."""
        for group in groups:
            group.wait(max(0.0, until - time.monotonic()))
        return [group for group in groups if not self._home(group)]

    def _can_do_without(self, missing: Sequence[PlacementGroup]) -> bool:
        """Whether a run can begin while these groups have no place."""
        plan = self.plan
        placed = {bundle for bundle, group in enumerate(self.groups) if group not in missing}
        engines = (range(plan.num_engines), self._engine_range.least)
        others = ((plan.rank_bundles, plan.trainer_ranks), (plan.filter_bundles, min(1, plan.num_filters)))
        return all(len(placed.intersection(bundles)) >= num for bundles, num in (engines, *others))

    def _described(self, missing: Sequence[PlacementGroup]) -> str:
        """What the missing groups are for."""
        plan, numbers = self.plan, [self.groups.index(group) for group in missing]
        if plan.colocated:
            return f"{len(numbers)} of {len(self.groups)} bundle(s) of engine and trainer rank"
        kinds = {"engine": range(plan.num_engines), "trainer rank": plan.rank_bundles, "filter": plan.filter_bundles}
        counts = {name: (sum(number in bundles for number in numbers), len(bundles)) for name, bundles in kinds.items()}
        return " and ".join(f"{num} of {total} {name}(s)" for name, (num, total) in counts.items() if num)

    def _take_places(self, max_looks: int) -> None:
        """Gives engines the pending groups that have a place, of up to `max_looks` that it looks at."""
        for _ in range(min(max_looks, len(self._pending))):
            group, until = self._pending.popleft()
            if self._home(group):
                self._engines.append(group)
            elif time.monotonic() < until:
                self._pending.append((group, until))
            else:
                self.groups.remove(group)
                remove_placement_group(group)

    def _num_with_room(self) -> int:
        """Number of further engines for which nodes have room, unless there is none for ranks or filters: it would be theirs."""
        most = self._engine_range.most
        if most is not None and self.num_engines >= most:
            return 0
        bundle = self._engine_bundle
        by_node = {node: int(capacity({name: free.get(name, 0.0) for name in bundle}, bundle)) for node, free in free_resources().items()}
        num_fitting = sum(num for node, num in by_node.items() if num and self._admits(node))
        if not num_fitting or not all(map(self._home, self._others)):
            return 0
        return num_fitting if most is None else min(num_fitting, most - self.num_engines)

    def _ask_for(self, num_engines: int, until: float) -> None:
        for _ in range(num_engines):
            group = placement_group([self._engine_bundle])
            self.groups.append(group)
            self._pending.append((group, until))

    @property
    def _engine_bundle(self) -> dict[str, float]:
        return dict(self.plan.bundles[self.plan.engine_bundle(0)])

    def _check(self, groups: Sequence[PlacementGroup], num_needed: int, what: str) -> None:
        num_missing = num_needed - len([*islice(self._live(groups), num_needed)])
        if num_missing:
            raise NotEnoughResourcesError(self._shortage(num_missing, num_needed, what, groups))

    def _shortage(self, num_missing: int, num_needed: int, what: str, groups: Sequence[PlacementGroup]) -> str:
        return (
            f"a node is lost and the rest has no room for {num_missing} of {num_needed} {what}(s), each {groups[0].bundle_specs[0]}: "
            f"{_describe_resources()} What is reserved together must fit on one node. Bring the node back or add another one, then "
            f"{HOW_TO_RESUME}."
        )

    def _live(self, groups: Sequence[PlacementGroup]) -> Iterator[tuple[PlacementGroup, str]]:
        """The groups that a live node holds, with the id of that node."""
        return ((group, node) for group in groups if (node := self._home(group)))

    def _home(self, group: PlacementGroup, *, after_fault: bool = False) -> str:
        """Id of the live, admitted node that holds a group; empty while there is none. For `after_fault` see `LiveNodes.has`."""
        table = placement_group_table(group)
        node = table["bundles_to_node_id"][0] if table["state"] == "CREATED" else ""
        return node if node and self._nodes.has(node, after_fault=after_fault) and self._admits(node) else ""

    def _options(self, cpus: float, gpus: float, group: PlacementGroup) -> dict[str, Any]:
        return {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": _strategy(group)}


@contextmanager
def reserve(
    plan: ResourcePlan, timeout_s: float, engines: EngineRange | None = None, *, is_alone: bool = False, admits: Admits = lambda _: True
) -> Iterator[Placement]:
    """Reserves the plan's resources for the duration of a `with` block; actors and tasks in them end with it. Runs on the same cluster
    reserve one after the other.

    Args:
        plan: what is reserved.
        timeout_s: longest wait for other runs to reserve, and for resources.
        engines: if given, with how few of the plan's engines the block may begin, once the others have been waited for a while, and how
            many may join later; otherwise the block begins with all of the plan, and none join.
        is_alone: whether no other run can reserve on this cluster.
        admits: which nodes may be used.

    Raises:
        NotEnoughResourcesError: the resources were not free within `timeout_s` seconds.
    """
    groups: list[PlacementGroup] = []
    try:
        with nullcontext() if is_alone else turn(timeout_s):
            _make_groups(plan, groups, time.monotonic() + timeout_s)
            placement = Placement(plan, groups, engines or EngineRange(plan.num_engines, plan.num_engines), admits)
            placement.begin(timeout_s)
        yield placement
    finally:
        for group in groups:
            remove_placement_group(group)


def _make_groups(plan: ResourcePlan, groups: list[PlacementGroup], deadline: float) -> None:
    """Appends a group for each bundle; colocated ones on the node of the last one, if that has room. Ray offers no public way to pack
    groups of one bundle."""
    node, has_room = None, plan.colocated
    for bundle in plan.bundles:
        if has_room and groups:
            has_room = groups[-1].wait(max(0.0, min(_PLACE_S, deadline - time.monotonic())))
            node = placement_group_table(groups[-1])["bundles_to_node_id"][0] if has_room else None
        packed = {"strategy": "STRICT_PACK", "_soft_target_node_id": node} if plan.colocated else {}
        groups.append(placement_group([dict(bundle)], **packed))


def _strategy(group: PlacementGroup) -> PlacementGroupSchedulingStrategy:
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)


def _explain(plan: ResourcePlan, timeout_s: float) -> str:
    return (
        f"cannot reserve {list(plan.bundles)} within {timeout_s:g} s: {_describe_resources()} A bundle must fit on one node. Ask for fewer "
        f"engines or trainer ranks, wait for another job, or add nodes."
    )


def _describe_resources() -> str:
    total, free = ray.cluster_resources(), ray.available_resources()
    return f"the cluster has {_amounts(total)}, of which {_amounts(free)} are free."


def _amounts(resources: Mapping[str, float]) -> str:
    return described(amounts_of([resources]))
