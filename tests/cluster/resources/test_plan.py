import math
from dataclasses import replace

import pytest

from cluster.errors import NotEnoughResourcesError
from cluster.resources.plan import ResourceRequest, most_engines, num_copies, plan_engines, plan_resources

REQUEST = ResourceRequest(num_engines=2, num_filters=3, trainer_ranks=2, cpus_per_actor=1, use_gpus=False, colocated=True)


def test_colocated_actors_of_a_bundle_fit_into_it() -> None:
    plan = plan_resources(2, 0, REQUEST)
    free = [1.0] * len(plan.bundles)
    for index in range(plan.num_engines):
        free[plan.engine_bundle(index)] -= plan.engine_cpus
    for bundle in plan.rank_bundles[: plan.trainer_ranks]:
        free[bundle] -= plan.trainer_cpus
    assert plan.bundles == ({"CPU": 1.0}, {"CPU": 1.0})
    assert sum(math.floor(amount / plan.filter_cpus + 1e-9) for amount in free) >= plan.num_filters, "they take what is left"


def test_colocated_gpus_are_whole_per_slot() -> None:
    plan = plan_resources(8, 2, replace(REQUEST, use_gpus=True, cpus_per_actor=4))
    assert plan.bundles == ({"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0})
    assert plan.engine_gpus + plan.trainer_gpus <= 1


def test_disaggregated_actors_have_bundles_of_their_own() -> None:
    plan = plan_resources(16, 4, replace(REQUEST, colocated=False, use_gpus=True, cpus_per_actor=2))
    assert [plan.engine_bundle(0), plan.engine_bundle(1), *plan.rank_bundles, *plan.filter_bundles] == list(range(7))
    assert plan.bundles == (*[{"CPU": 2.0, "GPU": 1.0}] * 4, *[{"CPU": 1.0}] * 3)
    assert plan.filter_cpus == 1.0


@pytest.mark.parametrize(
    ("request_", "cpus", "gpus", "expected"),
    [
        (replace(REQUEST, trainer_ranks=4), 2, 0, r"4 trainer rank\(s\).*need 4 CPU.*there are 2 CPU.*Set trainer_ranks to at most 2"),
        (replace(REQUEST, num_engines=3, trainer_ranks=4), 2, 0, "Set num_engines and trainer_ranks to at most 2"),
        (replace(REQUEST, colocated=False), 4, 0, "need 7 CPU.*Colocate"),
        (replace(REQUEST, use_gpus=True), 8, 0, "Turn GPUs off"),
        (replace(REQUEST, use_gpus=True), 8, 1, "Set num_engines and trainer_ranks to at most 1"),
        (replace(REQUEST, cpus_per_actor=4), 2, 0, "Lower cpus_per_actor to at most 2"),
    ],
)
def test_a_request_that_does_not_fit_says_what_to_change(request_: ResourceRequest, cpus: float, gpus: float, expected: str) -> None:
    with pytest.raises(NotEnoughResourcesError, match=expected):
        plan_resources(cpus, gpus, request_)


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="num_filters is 0"):
        plan_resources(2, 0, replace(REQUEST, num_filters=0))


def test_engines_alone_have_bundles_of_their_own() -> None:
    assert plan_engines(4, 0, 2, 2, 0).bundles == ({"CPU": 2.0}, {"CPU": 2.0})
    plan = plan_engines(8, 4, 2, 1, 2)
    assert plan.bundles == ({"CPU": 1.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 2.0})
    assert (plan.engine_cpus, plan.engine_gpus, plan.engine_bundle(1), plan.trainer_ranks, plan.num_filters) == (1, 2, 1, 0, 0)


@pytest.mark.parametrize("counts", [(3, 1, 0), (1, 3, 0), (1, 1, 1)])
def test_engines_that_do_not_fit_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(NotEnoughResourcesError, match=r"there are 2 CPU\(s\) and 0 GPU\(s\)"):
        plan_engines(2, 0, *counts)


@pytest.mark.parametrize("counts", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_counts_of_engines_that_make_no_sense_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected at least"):
        plan_engines(9, 9, *counts)


@pytest.mark.parametrize(
    ("request_", "cpus", "gpus", "limit", "expected"),
    [
        (REQUEST, 2, 0, None, 2),
        (REQUEST, 7, 0, None, 7),
        (REQUEST, 7, 0, 5, 5),
        (replace(REQUEST, cpus_per_actor=4, use_gpus=True), 64, 8, None, 8),
        (replace(REQUEST, cpus_per_actor=4, use_gpus=True), math.inf, 8, None, 8),
        (replace(REQUEST, colocated=False), 16, 0, None, 11),
        (replace(REQUEST, colocated=False, use_gpus=True, gpus_per_engine=2), 64, 9, None, 3),
    ],
)
def test_as_many_engines_as_fit_beside_ranks_and_filters(
    request_: ResourceRequest, cpus: float, gpus: float, limit: int | None, expected: int
) -> None:
    assert most_engines(cpus, gpus, request_, limit) == expected


def test_a_bundle_fits_into_what_a_node_has_free_of_each_resource() -> None:
    assert num_copies({"CPU": 4.0, "GPU": 1.0}, {"CPU": 15.9, "GPU": 8.0, "memory": 1e9}) == 3
    assert num_copies({"CPU": 4.0, "GPU": 1.0}, {"CPU": 64.0}) == 0
    assert num_copies({"CPU": 0.3}, {"CPU": 3 * 0.3}) == 3
