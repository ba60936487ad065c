import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from cluster.errors import NotEnoughResourcesError
from cluster.planning.alternatives import difference, nearest
from cluster.planning.packing import NodeResources
from cluster.planning.request import ResourceRequest
from cluster.resources.plan import most_engines, plan_engines, plan_resources

REQUEST = ResourceRequest(num_engines=2, num_filters=3, trainer_ranks=2, cpus_per_actor=1, use_gpus=False, colocated=True)


def nodes(*amounts: tuple[float, float]) -> tuple[NodeResources, ...]:
    """CPUs and GPUs of each."""
    return tuple(NodeResources(f"node {number}", *each) for number, each in enumerate(amounts))


def test_colocated_actors_of_a_bundle_fit_into_it() -> None:
    plan = plan_resources(nodes((2, 0)), REQUEST)
    free = [1.0] * len(plan.bundles)
    for index in range(plan.num_engines):
        free[plan.engine_bundle(index)] -= plan.engine_cpus
    for bundle in plan.rank_bundles[: plan.trainer_ranks]:
        free[bundle] -= plan.trainer_cpus
    assert plan.bundles == ({"CPU": 1.0}, {"CPU": 1.0})
    assert sum(math.floor(amount / plan.filter_cpus + 1e-9) for amount in free) >= plan.num_filters, "they take what is left"


def test_colocated_gpus_are_whole_per_slot() -> None:
    plan = plan_resources(nodes((8, 2)), replace(REQUEST, use_gpus=True, cpus_per_actor=4))
    assert plan.bundles == ({"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0})
    assert plan.engine_gpus + plan.trainer_gpus <= 1


def test_disaggregated_actors_have_bundles_of_their_own() -> None:
    plan = plan_resources(nodes((16, 4)), replace(REQUEST, colocated=False, use_gpus=True, cpus_per_actor=2))
    assert [plan.engine_bundle(0), plan.engine_bundle(1), *plan.rank_bundles, *plan.filter_bundles] == list(range(7))
    assert plan.bundles == (*[{"CPU": 2.0, "GPU": 1.0}] * 4, *[{"CPU": 1.0}] * 3)
    assert plan.filter_cpus == 1.0


@pytest.mark.parametrize(
    ("request_", "cpus", "gpus", "expected"),
    [
        (
            replace(REQUEST, trainer_ranks=4),
            2,
            0,
            r"4 trainer rank\(s\).*need 4 CPU.*are 2 CPU.*It fits with trainer_ranks 2; or on",
        ),
        (replace(REQUEST, num_engines=3, trainer_ranks=4), 2, 0, "It fits with num_engines 2 and trainer_ranks 2;"),
        (replace(REQUEST, colocated=False), 4, 0, "need 7 CPU.*num_engines 1 and num_filters 1; or with colocated true"),
        (replace(REQUEST, use_gpus=True), 8, 0, "use_gpus false and engine.device cpu"),
        (replace(REQUEST, use_gpus=True), 8, 1, "num_engines 1 and trainer_ranks 1"),
        (replace(REQUEST, cpus_per_actor=4), 2, 0, "num_engines 1, trainer_ranks 1 and cpus_per_actor 2; or with cpus_per_actor 1"),
    ],
)
def test_a_request_that_does_not_fit_says_what_to_change(request_: ResourceRequest, cpus: float, gpus: float, expected: str) -> None:
    with pytest.raises(NotEnoughResourcesError, match=expected):
        plan_resources(nodes((cpus, gpus)), request_)


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="num_filters is 0"):
        plan_resources(nodes((2, 0)), replace(REQUEST, num_filters=0))


def test_engines_alone_have_bundles_of_their_own() -> None:
    assert plan_engines(nodes((4, 0)), 2, 2, 0).bundles == ({"CPU": 2.0}, {"CPU": 2.0})
    plan = plan_engines(nodes((8, 4)), 2, 1, 2)
    assert plan.bundles == ({"CPU": 1.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 2.0})
    assert (plan.engine_cpus, plan.engine_gpus, plan.engine_bundle(1), plan.trainer_ranks, plan.num_filters) == (1, 2, 1, 0, 0)


@pytest.mark.parametrize("counts", [(3, 1, 0), (1, 3, 0), (1, 1, 1)])
def test_engines_that_do_not_fit_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(NotEnoughResourcesError, match=r"there are 2 CPU\(s\) and 0 GPU\(s\)"):
        plan_engines(nodes((2, 0)), *counts)


@pytest.mark.parametrize("counts", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_counts_of_engines_that_make_no_sense_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected at least"):
        plan_engines(nodes((9, 9)), *counts)


# ---- nodes


def test_colocated_bundles_fill_one_node_after_the_other_and_others_are_spread() -> None:
    four = nodes(*[(8, 2)] * 4)
    assert plan_resources(four, replace(REQUEST, num_engines=4, use_gpus=True)).homes == (0, 0, 1, 1)
    assert plan_resources(four, replace(REQUEST, colocated=False, num_filters=4)).homes == (0, 1, 2, 3, 0, 1, 2, 3)
    assert plan_resources(nodes((math.inf, 2), (math.inf, 2)), replace(REQUEST, use_gpus=True)).homes == (0, 0), "as many CPUs as needed"


def test_a_tensor_parallel_engine_is_on_one_node() -> None:
    wide = ResourceRequest(
        num_engines=2, num_filters=1, trainer_ranks=2, cpus_per_actor=2, use_gpus=True, colocated=False, gpus_per_engine=4
    )
    assert plan_resources(nodes((32, 4), (32, 4), (32, 2)), wide).homes[:4] == (0, 1, 2, 2)
    with pytest.raises(NotEnoughResourcesError, match=r"there are 8 nodes with 32 CPU.* and 2 GPU.* each.*tensor_parallel_size 2"):
        plan_resources(nodes(*[(32, 2)] * 8), wide)


def fits_somehow(places: Sequence[NodeResources], bundles: Sequence[Mapping[str, float]]) -> bool:
    """Tries every node for every bundle."""
    if not bundles:
        return True
    first, *rest = bundles
    for index, node in enumerate(places):
        left = replace(node, cpus=node.cpus - first["CPU"], gpus=node.gpus - first.get("GPU", 0))
        if min(left.cpus, left.gpus) >= 0 and fits_somehow([*places[:index], left, *places[index + 1 :]], rest):
            return True
    return False


def test_packing_finds_a_place_whenever_there_is_one_and_only_what_fits_is_advised() -> None:
    draw, num_fitting, num_advised = random.Random(5), 0, 0
    for _ in range(400):
        places = nodes(*[(draw.randint(0, 6), draw.randint(0, 4)) for _ in range(draw.randint(1, 3))])
        request = ResourceRequest(
            draw.randint(1, 2), draw.randint(1, 2), draw.randint(1, 3), draw.randint(1, 2), draw.random() < 0.7, draw.random() < 0.3
        )  # fmt: skip
        if request.use_gpus and not request.colocated:
            request = replace(request, gpus_per_engine=draw.randint(1, 3))
        try:
            plan = plan_resources(places, request)
        except NotEnoughResourcesError:
            assert not fits_somehow(places, request.bundles)
            for other in nearest(places, request, lambda _: True):
                assert difference(other, request)
                assert fits_somehow(places, other.bundles)
                num_advised += 1
            continue
        num_fitting += 1
        for index, node in enumerate(places):
            own = [bundle for bundle, home in zip(plan.bundles, plan.homes, strict=True) if home == index]
            assert sum(bundle["CPU"] for bundle in own) <= node.cpus
            assert sum(bundle.get("GPU", 0) for bundle in own) <= node.gpus
    assert min(num_fitting, num_advised) > 50


def test_advice_is_what_the_config_accepts() -> None:
    request = replace(REQUEST, num_engines=8, trainer_ranks=8)
    with pytest.raises(NotEnoughResourcesError, match="num_engines 6 and trainer_ranks 4; or on a larger"):
        plan_resources(nodes((6, 0)), request, lambda other: 64 % other.trainer_ranks == 0)


def test_the_most_engines_leave_room_for_ranks_and_filters() -> None:
    assert most_engines(nodes((4, 0), (4, 0)), replace(REQUEST, colocated=False)) == 3
    assert most_engines(nodes((4, 0), (4, 0)), replace(REQUEST, cpus_per_actor=2)) == 4
    assert most_engines(nodes((1, 0)), replace(REQUEST, colocated=False)) == 0
