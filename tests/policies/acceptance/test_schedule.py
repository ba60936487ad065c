from __future__ import annotations

import pytest

from policies.registry import UnknownPolicyError
from policies.schedule import SCHEDULE_POLICIES, START_POLICIES, STOP_POLICIES


def test_in_order_repeats_the_last_set_and_cycle_starts_over() -> None:
    in_order, cycle = SCHEDULE_POLICIES.build("in_order"), SCHEDULE_POLICIES.build("cycle")
    assert [in_order.image_set(index, 2) for index in (1, 2, 3, 4)] == [0, 1, 1, 1]
    assert [cycle.image_set(index, 2) for index in (1, 2, 3, 4)] == [0, 1, 0, 1]


@pytest.mark.parametrize("name", SCHEDULE_POLICIES.names())
@pytest.mark.parametrize(("round_index", "num_sets"), [(0, 2), (1, 0)])
def test_rounds_and_sets_count_from_one(name: str, round_index: int, num_sets: int) -> None:
    with pytest.raises(ValueError, match="expected 1 or more"):
        SCHEDULE_POLICIES.build(name).image_set(round_index, num_sets)


def test_a_candidate_starts_from_base_or_champion() -> None:
    assert START_POLICIES.build("base").start("seed", "best") == "seed"
    assert START_POLICIES.build("champion").start("seed", "best") == "best"


def test_the_loop_stops_after_its_rounds() -> None:
    policy = STOP_POLICIES.build("rounds")
    assert policy.stop([], 0) == "0 of 0 rounds are done"
    assert policy.stop(["baseline", "rejected"], 2) is None
    assert policy.stop(["baseline", "rejected", "rejected"], 2) == "2 of 2 rounds are done"


def test_the_loop_stops_after_rejections_in_a_row() -> None:
    policy = STOP_POLICIES.build("rounds", {"max_rejections_in_a_row": 2})
    assert policy.stop(["baseline", "rejected", "accepted", "rejected"], 9) is None
    reason = policy.stop(["baseline", "accepted", "rejected", "rejected"], 9)
    assert reason is not None
    assert "last 2 candidates were rejected" in reason


def test_zero_rejections_are_refused() -> None:
    with pytest.raises(UnknownPolicyError, match="expected 1 or more"):
        STOP_POLICIES.build("rounds", {"max_rejections_in_a_row": 0})
