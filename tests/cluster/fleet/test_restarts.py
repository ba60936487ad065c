"""What becomes of engines whose node is lost: pure decisions, on a clock that the tests move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cluster.errors import FleetError, NotEnoughResourcesError
from cluster.fleet.health import EngineHealth, Event, RestartBudget, State
from cluster.fleet.restarts import ROOM_POLL_S, Restarts, Rooms
from cluster.fleet.roster import Roster
from cluster.fleet.slot import EngineSlot, Timeouts


class Cluster:
    """Engines that serve, each at its node of `homes`, which tests change as Ray would. Nothing is started."""

    def __init__(self, homes: list[str], *, min_engines: int = 1, max_restarts: int = 16) -> None:
        self.now = 100.0
        self.homes = homes
        self.budget = RestartBudget(3, max_restarts)
        rooms = Rooms(lambda index: self.homes[index], no_room, min_engines, max_wait_s=30.0, num_places=lambda: len(self.homes))
        slots = [self.slot(index) for index in range(len(homes))]
        self.roster = Roster(slots, lambda _: None)
        self.restarts = Restarts(self.roster, rooms, self.clock, lambda index: self.slot(index, joins=True))
        for slot, home in zip(slots, homes, strict=True):
            slot.home = home
            self.serve(slot)

    def slot(self, index: int, *, joins: bool = False) -> EngineSlot:
        never: Callable[[int], Any] = None  # type: ignore[assignment]
        return EngineSlot(index, never, EngineHealth(self.budget, self.clock, joins=joins), Timeouts(1, 1, 1))

    def clock(self) -> float:
        return self.now

    def serve(self, slot: EngineSlot) -> None:
        slot.health.record(Event.STARTED)
        slot.health.record(Event.SWAP_COMPLETED)

    def lose(self, *indices: int, home: str = "") -> None:
        for index in indices:
            self.homes[index] = home
            self.roster.slots[index].health.record(Event.DIED)

    def started(self) -> list[tuple[int, str]]:
        return [(slot.index, home) for slot, home in self.restarts.startable()]


def no_room() -> None:
    raise NotEnoughResourcesError("no room")


def test_the_engines_of_a_lost_node_move_and_count_once() -> None:
    cluster = Cluster(["a", "b", "a", "a"])
    cluster.lose(0, 2, 3, home="b")
    assert cluster.started() == [(0, "b"), (2, "b"), (3, "b")]
    assert cluster.budget.num_restarts == 1
    assert cluster.restarts.take_incidents()[0] == "engine 0 moves from the lost node a to b; 4 of 4 engine(s) are in the fleet"


def test_an_engine_that_dies_while_its_node_lives_restarts_there_and_counts() -> None:
    cluster = Cluster(["a", "a"])
    for _ in range(2):
        cluster.lose(0, 1, home="a")
        assert cluster.started() == [(0, "a"), (1, "a")]
        for slot in cluster.roster.slots:
            cluster.serve(slot)
    assert cluster.budget.num_restarts == 4
    assert cluster.restarts.take_incidents() == []


def test_the_fleet_goes_on_without_engines_that_have_no_room_until_they_have() -> None:
    cluster = Cluster(["a", "b", "a"])
    cluster.lose(0, 2)
    assert cluster.started() == []
    cluster.restarts.require_enough()
    assert (cluster.roster.num_members, cluster.roster.count(State.UNPLACED)) == (1, 2)
    cluster.homes[2] = "c"
    assert cluster.started() == [], "they are not asked for all the time"
    cluster.now += ROOM_POLL_S
    assert cluster.started() == [(2, "c")]
    assert [line.partition(";")[2] for line in cluster.restarts.take_incidents()] == [
        " 2 of 3 engine(s) are in the fleet", " 1 of 3 engine(s) are in the fleet", " 2 of 3 engine(s) are in the fleet"
    ]  # fmt: skip


def test_too_few_engines_with_room_are_waited_for_no_longer_than_allowed() -> None:
    cluster = Cluster(["a", "b"], min_engines=2)
    cluster.lose(0)
    assert cluster.started() == []
    cluster.restarts.require_enough()
    cluster.now += 30
    cluster.restarts.require_enough()
    cluster.now += 1
    with pytest.raises(NotEnoughResourcesError, match="no room"):
        cluster.restarts.require_enough()
    cluster.homes[0] = "b"
    assert cluster.started() == [(0, "b")]
    cluster.restarts.require_enough()


def test_a_fleet_with_too_few_engines_for_good_ends_at_once() -> None:
    cluster = Cluster(["a", "b", "b"], min_engines=2, max_restarts=0)
    cluster.restarts.last_error = "engine 0: out of memory"
    for index in (0, 1):
        cluster.restarts.require_enough()
        cluster.lose(index, home="b" if index else "a")
        cluster.restarts.retire_if_used_up(cluster.roster.slots[index])
    assert cluster.restarts.take_incidents()[0] == (
        "engine 0 is out of service until a round is committed, because no restart is left (its last error: engine 0: out of memory); "
        "2 of 3 engine(s) are in the fleet"
    )
    with pytest.raises(FleetError, match=r"2 of 3 engine\(s\) are lost, fewer than 2 remain and no restart is left; .* out of memory"):
        cluster.restarts.require_enough()


def test_an_engine_joins_where_there_is_room_once_all_others_have_theirs() -> None:
    cluster = Cluster(["a", "b"])
    cluster.lose(0)
    assert cluster.started() == []
    cluster.homes += ["c"]
    cluster.now += ROOM_POLL_S
    assert cluster.started() == [], "the room may be what engine 0 waits for"
    cluster.homes[0] = "c"
    cluster.now += ROOM_POLL_S
    assert cluster.started() == [(0, "c")]
    cluster.now += ROOM_POLL_S
    assert cluster.started() == [(2, "c")]
    assert cluster.restarts.take_incidents()[-1] == "engine 2 joins on node c; 3 of 3 engine(s) are in the fleet"
    assert cluster.budget.num_restarts == 1, "of the node that is lost"


def test_an_engine_that_joins_and_fails_costs_no_restart_and_comes_back_after_a_refill() -> None:
    cluster = Cluster(["a", "a"], max_restarts=1)
    joining = cluster.slot(2, joins=True)
    cluster.homes.append("b")
    cluster.roster.add(joining)
    for verb in ("joins", "is back"):
        cluster.now += ROOM_POLL_S
        assert cluster.started() == [(2, "b")]
        joining.home = "b"
        assert f"engine 2 {verb} on node b" in cluster.restarts.take_incidents()[-1]
        joining.health.record(Event.DIED)
        cluster.restarts.retire_if_used_up(joining)
        assert (joining.health.state, cluster.budget.num_left) == (State.RETIRED, 1)
        assert (
            "engine 2 is out of service until a round is committed, because it has not come to serve"
            in (cluster.restarts.take_incidents()[-1])
        )
        joining.health.refill()
    cluster.now += ROOM_POLL_S
    assert cluster.started() == [(2, "b")]
    cluster.serve(joining)
    cluster.lose(2, home="b")
    assert cluster.started() == [(2, "b")]
    assert cluster.budget.num_left == 0, "what has served is restarted like the others"
