import logging
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import ray
from ray.util import placement_group_table

from cluster.errors import NotEnoughResourcesError
from cluster.planning.packing import NodeResources
from cluster.planning.request import ResourceRequest
from cluster.resources.connect import ClusterInfo
from cluster.resources.joining import NodeGate
from cluster.resources.placement import EngineRange, reserve
from cluster.resources.plan import plan_resources
from tests.cluster.workers import wait_while

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


ONE = replace(REQUEST, num_engines=1, num_filters=1, trainer_ranks=1)


@pytest.mark.parametrize("num_planned", [1, 2])
def test_a_run_begins_with_what_has_room_and_more_engines_join_when_there_is(
    cluster: ClusterInfo, caplog: pytest.LogCaptureFixture, num_planned: int
) -> None:
    """With `auto` (planned for one), groups are made where there is room; a fixed number of two is asked for from the start."""
    plan = plan_resources(cluster.nodes, replace(ONE, num_engines=num_planned))
    wait_while(lambda: ray.available_resources().get("CPU") != cluster.cpus)  # of earlier tests
    engines = EngineRange(1, most=2, is_asked_for=num_planned == 2)
    with ExitStack() as others:
        others.enter_context(reserve(plan_resources(cluster.nodes, ONE), 30, is_alone=True))
        with reserve(plan, 1, engines, is_alone=True) as placement:
            assert placement.num_engines == placement.find_places() == 1
            assert ("the run begins without 1 of 2 bundle(s)" in caplog.text) == (num_planned == 2)
            others.close()
            wait_while(lambda: placement.find_places() < 2)
            assert placement.engine_home(1) == placement.engine_home(0) != ""
            assert len(placement.groups) == placement.find_places() == 2, "no more than the limit"
    with reserve(plan, 30, EngineRange(1), is_alone=True) as placement:
        assert placement.num_engines == 2, "as many as there is room for"


def test_a_node_that_joins_is_used_once_a_check_on_it_has_found_nothing(cluster: ClusterInfo, caplog: pytest.LogCaptureFixture) -> None:
    plan, [node] = plan_resources(cluster.nodes, ONE), cluster.nodes
    fine, bad = NodeGate(lambda: "", []), NodeGate(lambda: "/data/photos cannot be read there", [])
    assert not fine.admits(node.node_id), "its check has only begun"
    with reserve(plan, 30, is_alone=True, admits=fine.admits) as placement:
        assert placement.engine_home(0) == node.node_id
    with pytest.raises(NotEnoughResourcesError, match="within 3 s"), reserve(plan, 3, is_alone=True, admits=bad.admits):
        pass
    assert f"node {node.node_id[:12]} has joined and is not used: /data/photos cannot be read there" in caplog.text
    assert NodeGate(lambda: "bad", [node.node_id]).admits(node.node_id), "it was there from the start"


def test_of_two_runs_that_reserve_at_once_one_gets_all_and_the_other_waits_for_it(
    cluster: ClusterInfo, caplog: pytest.LogCaptureFixture
) -> None:
    """Each needs all there is. Without an order, each would get one of the two bundles and wait for the other until its time is over."""
    plan, both, order = plan_resources(cluster.nodes, REQUEST), threading.Barrier(2), list[str]()

    def run(name: str) -> None:
        both.wait(30)
        with reserve(plan, 30):
            order.extend([name, name])
            time.sleep(1)

    runs = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    with caplog.at_level(logging.WARNING):
        for one in runs:
            one.start()
        for one in runs:
            one.join(60)
    assert order in (["a", "a", "b", "b"], ["b", "b", "a", "a"])
    assert "another run on this cluster reserves its resources; waiting for it, at most 30 s" in caplog.text
