"""Mixing: build the training set of a round from seed data and generated records.

Real data stays in the mix and generated data accumulates: replacing either each round makes errors grow (Gerstgrasser et al.
2024, arXiv 2404.01413).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np

from policies.checks import check_at_least, check_choice, check_share
from policies.generation.instructions import vig_target
from policies.generation.knowledge import drawn_answer, vic_prompt
from policies.records import Record, TrainingSample
from policies.registry import Registry

T = TypeVar("T", TrainingSample, Record)


class MixingPolicy(Protocol):
    """Builds a training set."""

    def mix(
        self, seed_samples: Sequence[TrainingSample], generated: Sequence[Sequence[Record]], num_samples: int, seed: int
    ) -> list[TrainingSample]:
        """`num_samples` samples in training order; the same arguments give the same list.

        Args:
            seed_samples: the labelled data.
            generated: selected records of each round to use, oldest first, the current round last.
            num_samples: number of samples that the trainer uses.
            seed: of the drawing.
        """
        ...


MIXING_POLICIES: Registry[MixingPolicy] = Registry("mixing policy", MixingPolicy)


@MIXING_POLICIES.register("replay")
@dataclass(frozen=True, kw_only=True)
class Replay:
    """A share of seed data beside generated data; only seed data while nothing is generated.

    Options:
        seed_share: share of the samples that is seed data.
        accumulate: use generated data of every round; off, only of the newest.
        newest_share: share of the generated samples from the newest round; None weights rounds by their size.
        vig_share: share of the generated samples made into VIG samples (instruction -> question and answer); the others are
            VIC samples (question -> answer).
        balance: how often each question type is drawn, in the seed data and in the generated data alike: by its "size", or by the
            square root ("sqrt") of it, which is how VIGC draws from its sets (arXiv 2308.12714): a rare type is then seen more
            often than its share, a frequent one less.
    """

    seed_share: float = 0.5
    accumulate: bool = True
    newest_share: float | None = None
    vig_share: float = 0.3
    balance: Literal["size", "sqrt"] = "size"

    def __post_init__(self) -> None:
        check_choice("balance", self.balance, ("size", "sqrt"))
        check_share("seed_share", self.seed_share)
        check_share("vig_share", self.vig_share)
        if self.newest_share is not None:
            check_share("newest_share", self.newest_share)
            if not self.accumulate:
                raise ValueError(f"newest_share is {self.newest_share} with accumulate off; expected one of the two, all is newest then")

    def mix(
        self, seed_samples: Sequence[TrainingSample], generated: Sequence[Sequence[Record]], num_samples: int, seed: int
    ) -> list[TrainingSample]:
        """See `MixingPolicy.mix`.

        Raises:
            ValueError: `num_samples` is negative, or seed samples are needed and there are none.
        """
        check_at_least("num_samples", num_samples, 0)
        rng = np.random.default_rng(seed)
        older = [record for records in generated[:-1] for record in records] if self.accumulate else []
        newest = list(generated[-1]) if generated else []
        num_seed = round(num_samples * self.seed_share) if older or newest else num_samples
        if num_seed and not seed_samples:
            raise ValueError(f"{num_seed} of {num_samples} samples should be seed data, but there is none; give some, or seed_share 0")
        records = self._draw_records(older, newest, num_samples - num_seed, rng)
        num_vig = round(len(records) * self.vig_share)
        samples = [*map(_vig_sample, records[:num_vig]), *(_vic_sample(record, rng) for record in records[num_vig:])]
        return _shuffled([*self._draw(seed_samples, num_seed, rng), *samples], rng)

    def _draw_records(self, older: Sequence[Record], newest: Sequence[Record], num: int, rng: np.random.Generator) -> list[Record]:
        if self.newest_share is None or not older or not newest:
            return self._draw([*older, *newest], num, rng)
        num_newest = round(num * self.newest_share)
        return _shuffled([*self._draw(older, num - num_newest, rng), *self._draw(newest, num_newest, rng)], rng)

    def _draw(self, items: Sequence[T], num: int, rng: np.random.Generator) -> list[T]:
        return _draw(items, num, rng) if self.balance == "size" else _draw_by_type(items, num, rng)


def _draw(items: Sequence[T], num: int, rng: np.random.Generator) -> list[T]:
    """`num` items in shuffled passes over all of them: no item is repeated before each has been used once."""
    drawn: list[T] = []
    while len(drawn) < num:
        drawn += _shuffled(items, rng)[: num - len(drawn)]
    return drawn


def _draw_by_type(items: Sequence[T], num: int, rng: np.random.Generator) -> list[T]:
    """`num` items, of each question type a share proportional to the square root of how many there are; each type as `_draw` does."""
    types = sorted({item.question_type for item in items})
    by_type = [[item for item in items if item.question_type == question_type] for question_type in types]
    counts = _apportioned([len(group) ** 0.5 for group in by_type], num)
    drawn = [_draw(group, count, rng) for group, count in zip(by_type, counts, strict=True)]
    return _shuffled([item for group in drawn for item in group], rng)


def _apportioned(weights: Sequence[float], num: int) -> list[int]:
    """Whole numbers that add up to `num`, as close to the weights' shares as possible (largest remainders)."""
    exact = [num * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: num - sum(counts)]:
        counts[index] += 1
    return counts


def _shuffled(items: Sequence[T], rng: np.random.Generator) -> list[T]:
    return [items[index] for index in rng.permutation(len(items))]


def _vig_sample(record: Record) -> TrainingSample:
    turn = (record.instruction, vig_target(record.question, record.answer))
    return TrainingSample(record.image_id, (turn,), record.record_id, record.question_type)


def _vic_sample(record: Record, rng: np.random.Generator) -> TrainingSample:
    turn = (vic_prompt(record.question_type, record.question), drawn_answer(record, rng))
    return TrainingSample(record.image_id, (turn,), record.record_id, record.question_type)
