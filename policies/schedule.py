"""Schedule: which images a round draws from, which checkpoint it trains from, and when the loop stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol, TypeVar

from policies.checks import check_at_least
from policies.registry import Registry

T = TypeVar("T")


class SchedulePolicy(Protocol):
    """Orders the image sets over the rounds."""

    def image_set(self, round_index: int, num_sets: int) -> int:
        """Index (from 0) of the image set that round `round_index` (from 1) draws from, of `num_sets` sets."""
        ...


class StartPolicy(Protocol):
    """Chooses the checkpoint that a candidate is trained from."""

    def start(self, base: T, champion: T) -> T:
        """One of the two checkpoints: the run's seed model, or the current champion."""
        ...


class StopPolicy(Protocol):
    """Ends the loop."""

    def stop(self, states: Sequence[str], num_rounds: int) -> str | None:
        """Why the loop ends now, or None to go on. With `overlap` it is also asked whether the loop would end after a round that is not
        decided yet, so the answer may depend on the arguments alone.

        Args:
            states: state of every committed round in order: `baseline`, `accepted` or `rejected`.
            num_rounds: how many rounds the config asks for, the baseline not counted.
        """
        ...


SCHEDULE_POLICIES: Registry[SchedulePolicy] = Registry("schedule policy", SchedulePolicy)
START_POLICIES: Registry[StartPolicy] = Registry("start policy", StartPolicy)
STOP_POLICIES: Registry[StopPolicy] = Registry("stop policy", StopPolicy)


@SCHEDULE_POLICIES.register("in_order")
class InOrder:
    """One set after the other; the last one repeats."""

    def image_set(self, round_index: int, num_sets: int) -> int:
        _check(round_index, num_sets)
        return min(round_index, num_sets) - 1


@SCHEDULE_POLICIES.register("cycle")
class Cycle:
    """One set after the other, then again from the first."""

    def image_set(self, round_index: int, num_sets: int) -> int:
        _check(round_index, num_sets)
        return (round_index - 1) % num_sets


@START_POLICIES.register("base")
class StartFromBase:
    """Every candidate is trained from the seed model: errors of earlier rounds persist only in the data."""

    def start(self, base: T, champion: T) -> T:
        return base


@START_POLICIES.register("champion")
class StartFromChampion:
    """Every candidate is trained from the champion."""

    def start(self, base: T, champion: T) -> T:
        return champion


@STOP_POLICIES.register("rounds")
@dataclass(frozen=True, kw_only=True)
class StopAfterRounds:
    """Stop after the rounds asked for, or earlier after `max_rejections_in_a_row` candidates in a row were rejected."""

    max_rejections_in_a_row: int | None = None

    def __post_init__(self) -> None:
        if self.max_rejections_in_a_row is not None:
            check_at_least("max_rejections_in_a_row", self.max_rejections_in_a_row, 1)

    def stop(self, states: Sequence[str], num_rounds: int) -> str | None:
        num_done = sum(state != "baseline" for state in states)
        if num_done >= num_rounds:
            return f"{num_done} of {num_rounds} rounds are done"
        num_rejected = sum(1 for _ in takewhile(lambda state: state == "rejected", reversed(states)))
        if self.max_rejections_in_a_row is not None and num_rejected >= self.max_rejections_in_a_row:
            return f"the last {num_rejected} candidates were rejected (max_rejections_in_a_row is {self.max_rejections_in_a_row})"
        return None


def _check(round_index: int, num_sets: int) -> None:
    check_at_least("round_index", round_index, 1)
    check_at_least("num_sets", num_sets, 1)
