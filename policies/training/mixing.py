"""Mixing: build the training set of a round from seed data and generated records.

Real data stays in the mix and generated data accumulates: replacing either each round makes errors grow (Gerstgrasser et al.
2024, arXiv 2404.01413).

A mix names rows; the texts of the drawn rows are read afterwards. So a policy decides over millions of records by a few columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa

from policies.checks import check_at_least, check_choice, check_share
from policies.errors import PolicyError, running
from policies.registry import Registry


class Form(IntEnum):
    """What a sample is made from a row."""

    SEED = 0
    """A sample of the seed data, as it is."""
    VIG = 1
    """Instruction -> question and answer."""
    VIC = 2
    """Question -> answer."""


@dataclass(frozen=True, slots=True)
class Mix:
    """A training set in training order. All arrays are [samples]."""

    source: np.ndarray
    """0 is the seed data, k the k-th table of generated records."""
    row: np.ndarray
    """Row of the source."""
    form: np.ndarray
    """A `Form`."""
    draw: np.ndarray
    """0..1: which of a record's short answers a VIC sample has, see `policies.generation.knowledge.drawn_answer`."""


class MixingPolicy(Protocol):
    """Builds a training set."""

    def mix(self, seed_samples: pa.Table, generated: Sequence[pa.Table], num_samples: int, seed: int) -> Mix:
        """`num_samples` samples; the same arguments give the same mix.

        Args:
            seed_samples: the labelled data; its column is `question_type`.
            generated: selected records of each round to use, oldest first, the current round last, with the columns
                `policies.columns.MIXING_COLUMNS`.
            num_samples: number of samples that the trainer uses.
            seed: of the drawing.
        """
        ...


MIXING_POLICIES: Registry[MixingPolicy] = Registry("mixing policy", MixingPolicy)


def mixed(policy: MixingPolicy, seed_samples: pa.Table, generated: Sequence[pa.Table], num_samples: int, seed: int) -> Mix:
    """The mix of a policy, checked.

    Raises:
        PolicyError: the policy raised an error, or returned something other than `num_samples` existing rows.
    """
    label = f"mixing policy {type(policy).__name__!r}"
    with running(label):
        mix = policy.mix(seed_samples, generated, num_samples, seed)
        arrays = [np.asarray(one) for one in (mix.source, mix.row, mix.form, mix.draw)]
    if problem := _problem(arrays, [seed_samples.num_rows, *(table.num_rows for table in generated)], num_samples):
        raise PolicyError(label, f"returned {problem}")
    return Mix(*arrays)


def _problem(arrays: Sequence[np.ndarray], sizes: Sequence[int], num_samples: int) -> str:
    """What is wrong with the arrays of a mix over sources of these sizes; empty if nothing."""
    if lengths := sorted({len(one) for one in arrays} - {num_samples}):
        return f"arrays of {lengths} samples; expected {num_samples}"
    source, row, form, draw = arrays
    if not all(np.issubdtype(one.dtype, np.integer) for one in (source, row, form)):
        return f"source, row and form of types {source.dtype}, {row.dtype}, {form.dtype}; expected integers"
    if ((source < 0) | (source >= len(sizes))).any():
        return f"a source outside of 0..{len(sizes) - 1}"
    if ((row < 0) | (row >= np.asarray(sizes)[source])).any():
        return "a row that its source does not have"
    if ((form == Form.SEED) != (source == 0)).any() or not np.isin(form, list(Form)).all():
        return "a form that does not fit its source; expected Form.SEED for source 0, and Form.VIG or Form.VIC otherwise"
    if not ((draw >= 0) & (draw < 1)).all():
        return "a draw outside of 0..1"
    return ""


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

    def mix(self, seed_samples: pa.Table, generated: Sequence[pa.Table], num_samples: int, seed: int) -> Mix:
        """See `MixingPolicy.mix`.

        Raises:
            ValueError: `num_samples` is negative, or seed samples are needed and there are none.
        """
        check_at_least("num_samples", num_samples, 0)
        rng = np.random.default_rng(seed)
        pool = _Pool(generated)
        newest = np.arange(pool.starts[-2], pool.starts[-1]) if generated else np.arange(0)
        older = np.arange(pool.starts[-2]) if generated and self.accumulate else np.arange(0)
        num_seed = round(num_samples * self.seed_share) if len(older) or len(newest) else num_samples
        if num_seed and not seed_samples.num_rows:
            raise ValueError(f"{num_seed} of {num_samples} samples should be seed data, but there is none; give some, or seed_share 0")
        records = self._draw_records(older, newest, pool.types, num_samples - num_seed, rng)
        form = np.repeat([Form.VIG, Form.VIC], [num_vig := round(len(records) * self.vig_share), len(records) - num_vig])
        has_choice = (form == Form.VIC) & (pool.num_short_answers[records] > 0)
        draw = np.zeros(len(records))
        draw[has_choice] = rng.random(int(has_choice.sum()))
        seeds = self._draw(np.arange(seed_samples.num_rows), _type_numbers([seed_samples]), num_seed, rng)
        source, row = pool.place(records)
        order = rng.permutation(num_samples)
        no_source = np.zeros(num_seed, dtype=np.int64)
        return Mix(
            np.concatenate([no_source, source])[order], np.concatenate([seeds, row])[order],
            np.concatenate([no_source + Form.SEED, form])[order], np.concatenate([np.zeros(num_seed), draw])[order],
        )  # fmt: skip

    def _draw_records(self, older: np.ndarray, newest: np.ndarray, types: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
        if self.newest_share is None or not len(older) or not len(newest):
            return self._draw(np.concatenate([older, newest]), types, num, rng)
        num_newest = round(num * self.newest_share)
        drawn = [self._draw(older, types, num - num_newest, rng), self._draw(newest, types, num_newest, rng)]
        return _shuffled(np.concatenate(drawn), rng)

    def _draw(self, rows: np.ndarray, types: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
        return _draw(rows, num, rng) if self.balance == "size" else _draw_by_type(rows, types[rows], num, rng)


class _Pool:
    """The generated records of all rounds, numbered one after the other."""

    def __init__(self, generated: Sequence[pa.Table]) -> None:
        self.starts = np.cumsum([0, *(table.num_rows for table in generated)])
        """First number of each table, and the number of records."""
        self.types = _type_numbers(generated)
        self.num_short_answers = np.concatenate([table["num_short_answers"].to_numpy() for table in generated] or [np.arange(0)])

    def place(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source and row of records."""
        source = np.searchsorted(self.starts, records, side="right")
        return source, records - self.starts[source - 1]


def _type_numbers(tables: Sequence[pa.Table]) -> np.ndarray:
    """The question types of all rows as numbers in the order of their names."""
    columns = [table["question_type"].cast(pa.string()) for table in tables]
    encoded = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()).dictionary_encode().combine_chunks()
    names = encoded.dictionary.to_pylist()
    place = {name: number for number, name in enumerate(sorted(names))}
    return np.array([place[name] for name in names], dtype=np.int64)[encoded.indices.to_numpy()]


def _draw(rows: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """`num` rows in shuffled passes over all of them: no row is repeated before each has been used once."""
    passes: list[np.ndarray] = []
    missing = num
    while missing > 0:
        passes.append(_shuffled(rows, rng)[:missing])
        missing -= len(passes[-1])
    return np.concatenate(passes) if passes else rows[:0]


def _draw_by_type(rows: np.ndarray, types: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """`num` rows, of each question type a share proportional to the square root of how many there are; each type as `_draw` does."""
    by_type = [rows[types == number] for number in np.unique(types)]
    counts = _apportioned([len(group) ** 0.5 for group in by_type], num)
    drawn = [_draw(group, count, rng) for group, count in zip(by_type, counts, strict=True)]
    return _shuffled(np.concatenate([rows[:0], *drawn]), rng)


def _apportioned(weights: Sequence[float], num: int) -> list[int]:
    """Whole numbers that add up to `num`, as close to the weights' shares as possible (largest remainders)."""
    exact = [num * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: num - sum(counts)]:
        counts[index] += 1
    return counts


def _shuffled(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rows[rng.permutation(len(rows))]
