import math

import pytest

from cluster.fleet.health import EngineHealth, Event, IllegalTransitionError, RestartBudget, State


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def healthy(budget: RestartBudget | None = None, clock: Clock | None = None) -> EngineHealth:
    health = EngineHealth(budget or RestartBudget(3, 16), clock or Clock())
    health.record(Event.STARTED)
    health.record(Event.SWAP_COMPLETED)
    return health


def test_only_a_completed_swap_makes_a_stale_engine_healthy() -> None:
    for event in Event:
        health = EngineHealth(RestartBudget(3, 16), Clock())
        assert health.record(Event.STARTED) is State.STALE
        try:
            after = health.record(event)
        except IllegalTransitionError:
            after = health.state
        assert (after is State.HEALTHY) == (event is Event.SWAP_COMPLETED)


def test_an_engine_drains_is_swapped_and_is_healthy_again() -> None:
    clock = Clock()
    health = healthy(clock=clock)
    events = (Event.DRAIN_BEGAN, Event.TASK_OK, Event.SWAP_BEGAN, Event.SWAP_COMPLETED)
    assert [health.record(event) for event in events] == [State.DRAINING, State.DRAINING, State.STALE, State.HEALTHY]
    with pytest.raises(IllegalTransitionError, match="healthy"):
        health.record(Event.SWAP_BEGAN)
    health.record(Event.DRAIN_BEGAN)
    assert [health.record(event) for event in (Event.WORK_ABANDONED, Event.ANSWERED)] == [State.SUSPECT, State.HEALTHY]


def test_time_out_of_service_counts_attempts_and_restarts_but_not_the_draining() -> None:
    clock = Clock()
    health = EngineHealth(RestartBudget(3, 16), clock)
    for event, at in ((Event.STARTED, 2), (Event.SWAP_COMPLETED, 3), (Event.DRAIN_BEGAN, 4)):
        clock.now = at
        health.record(event)
        assert health.out_of_service_s == (2 if event is Event.STARTED else 0)
    for event, at in ((Event.SWAP_BEGAN, 10), (Event.DIED, 11), (Event.RESTART_BEGAN, 12), (Event.STARTED, 15)):
        clock.now = at
        health.record(event)
        assert health.out_of_service_s == at - 10
    health.record(Event.SWAP_COMPLETED)
    assert health.out_of_service_s == 0


def test_an_engine_that_sleeps_wakes_by_a_swap_or_dies() -> None:
    clock = Clock()
    health = healthy(clock=clock)
    events = (Event.SLEEP_BEGAN, Event.SWAP_BEGAN, Event.SWAP_COMPLETED)
    assert [health.record(event) for event in events] == [State.ASLEEP, State.STALE, State.HEALTHY]
    health.record(Event.SLEEP_BEGAN)
    for event in (Event.SLEEP_BEGAN, Event.TASK_OK, Event.SWAP_COMPLETED, Event.DRAIN_BEGAN):
        with pytest.raises(IllegalTransitionError, match="asleep"):
            health.record(event)
    clock.now = 100
    assert health.out_of_service_s == 0, "nobody wanted it to work"
    health.record(Event.SWAP_BEGAN)
    clock.now = 103
    assert health.out_of_service_s == 3
    assert health.record(Event.DIED) is State.DEAD


def test_a_dead_engine_comes_back_through_restart_start_and_swap_only() -> None:
    health = healthy()
    states = [health.record(event) for event in (Event.DIED, Event.RESTART_BEGAN, Event.STARTED, Event.SWAP_COMPLETED)]
    assert states == [State.DEAD, State.RESTARTING, State.STALE, State.HEALTHY]
    assert health.num_restarts == 1


def test_a_suspect_engine_answers_or_dies() -> None:
    health = healthy()
    assert health.record(Event.WORK_ABANDONED) is State.SUSPECT
    assert health.record(Event.ANSWERED) is State.HEALTHY
    assert health.record(Event.MISSED_DEADLINE) is State.SUSPECT
    assert health.record(Event.DIED) is State.DEAD


@pytest.mark.parametrize("event", [Event.SWAP_COMPLETED, Event.TASK_OK, Event.STARTED, Event.DIED, Event.ANSWERED])
def test_a_dead_engine_does_nothing(event: Event) -> None:
    health = healthy()
    health.record(Event.DIED)
    with pytest.raises(IllegalTransitionError, match="dead"):
        health.record(event)


def test_restarts_are_bounded_per_engine_and_in_total() -> None:
    budget = RestartBudget(max_per_engine=2, max_total=3)
    first, second = healthy(budget), healthy(budget)
    for health, num_allowed in ((first, 2), (second, 1)):
        for _ in range(num_allowed):
            health.record(Event.DIED)
            health.record(Event.RESTART_BEGAN)
        health.record(Event.DIED)
        assert health.restart_or_retire() is State.RETIRED
    assert budget.num_restarts == 3


def test_a_dead_engine_retires_when_others_have_used_up_the_restarts_of_the_fleet() -> None:
    budget = RestartBudget(max_per_engine=2, max_total=1)
    first, second = healthy(budget), healthy(budget)
    assert [first.record(Event.DIED), second.record(Event.DIED)] == [State.DEAD, State.DEAD]
    with pytest.raises(IllegalTransitionError, match="a restart is left: 0 used by this engine, 0 in total"):
        second.record(Event.RESTARTS_USED_UP)
    assert first.restart_or_retire() is State.RESTARTING
    with pytest.raises(IllegalTransitionError, match="no restart left: 0 used by this engine, 1 in total"):
        second.record(Event.RESTART_BEGAN)
    assert second.restart_or_retire() is State.RETIRED


def test_a_lost_node_counts_once_for_all_its_engines_and_against_none_of_them() -> None:
    budget = RestartBudget(max_per_engine=1, max_total=1)
    engines = [healthy(budget) for _ in range(3)]
    for health in engines:
        health.record(Event.DIED)
    states = [health.restart_or_retire(lost_node="a") for health in engines]
    assert (states, budget.num_restarts) == ([State.RESTARTING] * 3, 1)
    assert [health.num_restarts for health in engines] == [0] * 3
    engines[0].record(Event.DIED)
    assert not engines[0].may_restart()
    assert engines[0].may_restart(lost_node="a")
    assert engines[0].restart_or_retire(lost_node="b") is State.RETIRED, "the fleet has used up its restart"


def test_an_engine_without_room_waits_for_it_and_then_restarts() -> None:
    health = healthy()
    health.record(Event.DIED)
    assert health.record(Event.ROOM_LOST) is State.UNPLACED
    for event in (Event.STARTED, Event.SWAP_COMPLETED, Event.SWAP_BEGAN, Event.DIED):
        with pytest.raises(IllegalTransitionError, match="unplaced"):
            health.record(event)
    assert health.restart_or_retire(lost_node="a") is State.RESTARTING


def test_a_refill_gives_back_the_restarts_of_the_fleet_and_of_an_engine() -> None:
    budget = RestartBudget(max_per_engine=1, max_total=1)
    health = healthy(budget)
    for _ in range(3):
        health.record(Event.DIED)
        assert health.restart_or_retire() is State.RESTARTING
        budget.refill()
        health.refill()
    assert budget.num_restarts == 3


def test_a_refill_brings_a_retired_engine_back_with_one_start_that_is_charged_to_nobody() -> None:
    budget = RestartBudget(max_per_engine=1, max_total=1)
    health = healthy(budget)
    for num_restarts in (1, 2):
        health.record(Event.DIED)
        assert health.restart_or_retire() is State.RESTARTING
        health.record(Event.DIED)
        assert health.restart_or_retire() is State.RETIRED
        budget.refill()
        health.refill()
        for _ in range(2):
            assert health.restart_or_retire() is State.RESTARTING
            health.record(Event.DIED)
            assert health.restart_or_retire() is State.RETIRED, "its start has failed"
            health.refill()
        assert health.restart_or_retire() is State.RESTARTING
        health.record(Event.STARTED)
        health.record(Event.SWAP_COMPLETED)
        assert budget.num_restarts == num_restarts


@pytest.mark.parametrize("event", [event for event in Event if event is not Event.REFILLED])
def test_nothing_happens_to_a_retired_engine_before_a_refill(event: Event) -> None:
    health = healthy(RestartBudget(max_per_engine=0, max_total=16))
    health.record(Event.DIED)
    assert health.restart_or_retire() is State.RETIRED
    with pytest.raises(IllegalTransitionError, match="retired"):
        health.record(event)
    assert health.state is State.RETIRED


def test_deadlines_follow_the_clock_and_end_with_the_engine() -> None:
    clock = Clock()
    health = healthy(clock=clock)
    assert health.remaining_s == math.inf
    health.expect_within(5)
    clock.now = 4
    assert (health.remaining_s, health.is_overdue) == (1, False)
    clock.now = 6
    assert (health.remaining_s, health.is_overdue) == (0, True)
    health.record(Event.DIED)
    assert not health.is_overdue
