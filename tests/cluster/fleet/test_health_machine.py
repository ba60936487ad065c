"""Whatever happens to an engine, in whatever order: the promises of its state machine hold."""

import math

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from hypothesis.strategies import floats, integers, sampled_from

from cluster.fleet.health import DOWN, WITHOUT_PROCESS, EngineHealth, Event, IllegalTransitionError, RestartBudget, State

MAX_PER_ENGINE, MAX_TOTAL, NUM_ENGINES = 2, 3, 2


class Engines(RuleBasedStateMachine):
    """Engines that share a budget, on a clock that only the rules move."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.budget = RestartBudget(MAX_PER_ENGINE, MAX_TOTAL)
        self.engines = [EngineHealth(self.budget, lambda: self.now, joins=bool(number)) for number in range(NUM_ENGINES)]
        self.deadlines = [math.inf] * NUM_ENGINES
        self.is_attested = [False] * NUM_ENGINES
        """Whether a swap was completed since the engine last lost its weights."""

        self.num_charged = 0
        """Restarts that a refill does not give back any more."""

    def is_restart_left(self, engine: int) -> bool:
        health = self.engines[engine]
        return not health.is_on_probation and health.num_restarts < MAX_PER_ENGINE and self.budget.num_left > 0

    @rule(engine=sampled_from(range(NUM_ENGINES)), event=sampled_from(Event))
    def something_happens(self, engine: int, event: Event) -> None:
        health = self.engines[engine]
        before, restarts, is_restart_left = health.state, health.num_restarts, self.is_restart_left(engine)
        was_on_probation = health.is_on_probation
        try:
            after = health.record(event)
        except IllegalTransitionError:
            assert (health.state, health.num_restarts) == (before, restarts), "what cannot happen changes nothing"
            assert event is not Event.DIED or before in WITHOUT_PROCESS, "anything that lives can die"
            return
        if before in (State.STALE, State.RESTARTING):
            assert (after is State.HEALTHY) == (event is Event.SWAP_COMPLETED)
        if before is State.ASLEEP:
            assert event in (Event.SWAP_BEGAN, Event.DIED)
        assert (before is State.RETIRED) == (event is Event.REFILLED), "a retired engine stays retired until a refill"
        if event is Event.DIED:
            assert after is State.DEAD
        elif after is State.RETIRED:
            assert before in DOWN
            assert (event, is_restart_left) == (Event.RESTARTS_USED_UP, False)
        if before in DOWN and after not in WITHOUT_PROCESS:
            assert after is State.RESTARTING
            may_start = {Event.MOVE_BEGAN: True, Event.RESTART_BEGAN: is_restart_left, Event.JOIN_BEGAN: was_on_probation}
            assert may_start[event]
        assert health.num_restarts == restarts + (event is Event.RESTART_BEGAN)
        if event is Event.SWAP_COMPLETED:
            assert before is State.STALE
            self.is_attested[engine] = True
        elif event in (Event.SWAP_BEGAN, Event.SLEEP_BEGAN, Event.DIED):
            self.is_attested[engine] = False
        if event in (Event.DIED, Event.SWAP_COMPLETED):
            self.deadlines[engine] = math.inf

    @rule(engine=sampled_from(range(NUM_ENGINES)), num_events=integers(1, 4))
    def it_dies_and_comes_back(self, engine: int, num_events: int) -> None:
        for event in (Event.DIED, Event.RESTART_BEGAN, Event.STARTED, Event.SWAP_COMPLETED)[:num_events]:
            self.something_happens(engine, event)

    @rule(engine=sampled_from(range(NUM_ENGINES)), seconds=floats(0, 100))
    def something_is_expected(self, engine: int, seconds: float) -> None:
        self.engines[engine].expect_within(seconds)
        self.deadlines[engine] = self.now + seconds

    @rule(engine=sampled_from(range(NUM_ENGINES)))
    def nothing_is_expected(self, engine: int) -> None:
        self.engines[engine].expect_nothing()
        self.deadlines[engine] = math.inf

    @rule(seconds=floats(0, 50))
    def time_passes(self, seconds: float) -> None:
        before = [(health.remaining_s, health.is_overdue) for health in self.engines]
        self.now += seconds
        for health, (remaining_s, was_overdue) in zip(self.engines, before, strict=True):
            assert health.remaining_s <= remaining_s, "a deadline comes closer"
            assert health.is_overdue or not was_overdue, "an overdue engine stays overdue"

    @precondition(lambda self: any(health.state in DOWN for health in self.engines))
    @rule(lost_node=sampled_from(["", "a", "b"]))
    def the_supervisor_looks_after_engines_without_process(self, lost_node: str) -> None:
        for engine, health in enumerate(self.engines):
            if health.state in DOWN:
                joins = health.is_on_probation and health.state is State.UNPLACED
                may_restart = joins or (self.budget.allows_move_from(lost_node) if lost_node else self.is_restart_left(engine))
                assert health.restart_or_retire(lost_node) is (State.RESTARTING if may_restart else State.RETIRED)
        assert not any(health.state in DOWN for health in self.engines)

    @rule()
    def a_round_is_committed(self) -> None:
        self.num_charged = self.budget.num_restarts
        self.budget.refill()
        for health in self.engines:
            health.refill()

    @invariant()
    def work_comes_from_attested_weights(self) -> None:
        for health, is_attested in zip(self.engines, self.is_attested, strict=True):
            assert is_attested == (health.state in (State.HEALTHY, State.DRAINING, State.SUSPECT))

    @invariant()
    def restarts_are_bounded(self) -> None:
        num_since_refill = self.budget.num_restarts - self.num_charged
        assert sum(health.num_restarts for health in self.engines) <= num_since_refill == MAX_TOTAL - self.budget.num_left <= MAX_TOTAL
        assert max(health.num_restarts for health in self.engines) <= MAX_PER_ENGINE

    @invariant()
    def deadlines_follow_the_clock(self) -> None:
        for health, deadline in zip(self.engines, self.deadlines, strict=True):
            assert (health.remaining_s, health.is_overdue) == (max(0.0, deadline - self.now), self.now >= deadline)

    @invariant()
    def an_engine_is_out_of_service_while_it_cannot_work(self) -> None:
        for health in self.engines:
            assert health.out_of_service_s == 0 or health.state in (State.RESTARTING, State.STALE, *WITHOUT_PROCESS)


def test_an_engine_keeps_its_promises_whatever_happens() -> None:
    run_state_machine_as_test(Engines, settings=settings(max_examples=100, stateful_step_count=60, deadline=None))
