from typing import Any

import pytest

from cluster.planning.packing import NodeResources
from loop.config.run_config import parse_config
from loop.errors import UserError
from loop.setup.planning import plan_lines, planned
from tests.loop.run.small_run import CONFIG


def num_engines(cpus: int, *, is_cluster: bool = False, **cluster: Any) -> int:
    """Engines that are planned on two nodes with so many CPUs each."""
    config = parse_config({**CONFIG, "cluster": {"trainer_ranks": 1, **cluster}})
    return planned(config, [NodeResources(name, cpus) for name in "ab"], is_cluster=is_cluster).num_engines


def test_auto_is_as_many_engines_as_the_nodes_have_room_for() -> None:
    assert num_engines(4, num_engines="auto") == 8
    assert num_engines(4, num_engines="auto", cpus_per_actor=3) == 2
    assert num_engines(4, num_engines="auto", colocated=False) == 6, "beside a rank and a filter"
    assert num_engines(4, num_engines="auto", max_engines=3) == 3
    with pytest.raises(UserError, match="5 engine"):
        num_engines(2, num_engines="auto", min_engines=5)


def test_a_fixed_number_may_be_short_of_room_on_a_cluster_alone() -> None:
    assert num_engines(4, is_cluster=True, num_engines=12) == 8
    assert num_engines(4, is_cluster=True, num_engines=6) == 6
    for options in ({"is_cluster": True, "min_engines": 9}, {}):
        with pytest.raises(UserError, match="12 engine"):
            num_engines(4, num_engines=12, **options)


def test_a_plan_says_why_it_has_another_number_of_engines_than_the_config() -> None:
    nodes = [NodeResources("a", 4)]
    for keys, line in (
        (
            {"num_engines": "auto", "max_engines": 9},
            "num_engines auto: engines as there is room, at least 1 and at most 9; more join with ",
        ),
        ({"num_engines": 6}, "num_engines 6: the run begins with 4, and the rest join when there is room"),
    ):
        config = parse_config({**CONFIG, "cluster": {"trainer_ranks": 1, **keys}})
        assert any(one.startswith(line) for one in plan_lines(config, planned(config, nodes, is_cluster=True)))
