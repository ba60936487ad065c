import time
from dataclasses import replace
from typing import Any

import pytest
import ray
from ray.util import placement_group_table

from cluster.errors import NotEnoughResourcesError
from cluster.planning.packing import NodeResources
from cluster.planning.request import ResourceRequest
from cluster.resources.connect import ClusterInfo
from cluster.resources.placement import reserve
from cluster.resources.plan import plan_resources

REQUEST = ResourceRequest(num_engines=2, num_filters=2, trainer_ranks=2, cpus_per_actor=1, use_gpus=False, colocated=True)


class Echo:
    def say(self, word: str) -> str:
        return word


def test_all_actors_of_a_colocated_plan_run_at_once(cluster: ClusterInfo) -> None:
    plan = plan_resources(cluster.nodes, REQUEST)
    actor: Any = ray.remote(Echo)
    with reserve(plan, timeout_s=30) as placement:
        trainer = {"num_cpus": plan.trainer_cpus, "scheduling_strategy": placement.place_ranks(0)[0].strategy}
        options = [placement.engine_options(0), trainer, placement.filter_options(), placement.engine_options(1)]
        actors = [actor.options(**option).remote() for option in options]
        calls = [each.say.remote("here") for each in actors]
        assert ray.get(calls, timeout=60) == ["here"] * 4
    deadline = time.monotonic() + 10
    while {placement_group_table(group)["state"] for group in placement.groups} != {"REMOVED"}:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_plan_that_cannot_be_met_fails_in_time_and_says_why(cluster: ClusterInfo) -> None:
    plan = plan_resources([NodeResources("assumed", 64)], replace(REQUEST, num_engines=8))
    started = time.monotonic()
    with pytest.raises(NotEnoughResourcesError, match=r"within 1 s: the cluster has 2 CPU.*Ask for fewer"), reserve(plan, timeout_s=1):
        pass
    assert time.monotonic() - started < 10
