"""Choose which records of a round are shown: some of every kind, and a random sample of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest

import numpy as np
import pyarrow as pa

from loop.gallery.corrections import num_changed_words
from loop.store.commits import RoundCommit
from loop.store.reading import RunReader
from loop.store.selected import record_tables
from policies.columns import compute, mean_logprobs

_COLUMNS = ("accepted", "reasons", "answer_logprob", "answer_num_tokens", "original_answer", "answer")


@dataclass(frozen=True)
class RoundColumns:
    """What a sample is chosen by: a row per record, in the order of the round's parts."""

    accepted: np.ndarray
    """bool"""
    confidence: np.ndarray
    """Mean log-probability per token of the answer, nats; NaN where it was not measured."""
    num_changed_words: np.ndarray
    rows_by_reason: dict[str, np.ndarray]
    """Rows that were rejected for a reason; one may have several."""

    def __len__(self) -> int:
        return len(self.accepted)


def read_columns(reader: RunReader, commit: RoundCommit) -> RoundColumns:
    """The columns of all records of a round, read part by part: about 20 bytes a record stay in memory.

    Raises:
        DamagedFileError: a part does not match the commit record.
        SchemaVersionError: a part was written in another version of the record schema.
    """
    accepted, confidence, changed = [np.empty(0, bool)], [np.empty(0, np.float32)], [np.empty(0, np.int32)]
    by_reason: dict[str, list[np.ndarray]] = {}
    first = 0
    for table in record_tables(reader, commit, _COLUMNS):
        accepted.append(table["accepted"].to_numpy())
        confidence.append(mean_logprobs(table, "answer").astype(np.float32))
        changed.append(_num_changed_words(table))
        for name, rows in _rows_by_reason(table["reasons"].combine_chunks()).items():
            by_reason.setdefault(name, []).append(first + rows)
        first += table.num_rows
    rows_by_reason = {name: np.concatenate(rows) for name, rows in sorted(by_reason.items())}
    return RoundColumns(np.concatenate(accepted), np.concatenate(confidence), np.concatenate(changed), rows_by_reason)


def _num_changed_words(table: pa.Table) -> np.ndarray:
    pairs = zip(table["original_answer"].to_pylist(), table["answer"].to_pylist(), strict=True)
    return np.fromiter((num_changed_words(before, after) for before, after in pairs), np.int32, table.num_rows)


def _rows_by_reason(reasons: pa.ListArray) -> dict[str, np.ndarray]:
    rows, names = compute.list_parent_indices(reasons).to_numpy(), compute.list_flatten(reasons).dictionary_encode()
    codes = names.indices.to_numpy()
    return {name: rows[codes == code] for code, name in enumerate(names.dictionary.to_pylist())}


@dataclass(frozen=True)
class Draw:
    """The rows that are shown, and how many records of the round each of them stands for."""

    rows: np.ndarray
    """Ascending."""
    strata: list[str]
    """Of each row: `accepted`, or the reason against it, from whose records it was drawn at random. Empty for a row that is shown because
    it is an extreme: it stands for itself."""
    stratum_sizes: np.ndarray
    """Records of each row's stratum, without extremes that are shown; 1 for an extreme."""


def draw(columns: RoundColumns, num: int, seed: int) -> Draw:
    """At most `num` rows, ascending; the same ones for the same columns and seed.

    Half of them are drawn in turn from accepted records, from those of every reason, and from the least confident, the most confident
    and the most corrected ones, so that each kind is shown however rare it is. The rest is a random sample of all records. All random
    draws follow one order, so that within a stratum they are a simple random sample of what is no extreme.
    """
    if len(columns) <= num:
        return _weighed(columns, np.arange(len(columns)), set())
    shuffled = np.random.default_rng(seed).permutation(len(columns))
    taken, extremes = _some_of_each(columns, num, shuffled)
    rows = np.sort(np.fromiter(islice(_distinct([*taken, *shuffled.tolist()]), num), np.int64, num))
    return _weighed(columns, rows, extremes)


def _some_of_each(columns: RoundColumns, num: int, shuffled: np.ndarray) -> tuple[list[int], set[int]]:
    """Rows of every kind in turn, and those of them that are extremes."""
    kinds = [one[:num].tolist() for one in _kinds(columns, shuffled)]
    first_extreme = 1 + len(columns.rows_by_reason)
    most = min(num, max(num // 2, len(kinds)))
    taken: dict[int, None] = {}
    extremes: set[int] = set()
    for kind, row in _in_turn(kinds):
        if row not in taken and len(taken) == most:
            break
        taken[row] = None
        if kind >= first_extreme:
            extremes.add(row)
    return list(taken), extremes


def _weighed(columns: RoundColumns, rows: np.ndarray, extremes: set[int]) -> Draw:
    names = ["accepted", *columns.rows_by_reason]
    stratum = np.zeros(len(columns), np.int32)
    for number, found in enumerate(columns.rows_by_reason.values(), start=1):
        stratum[found] = number
    at_random = np.ones(len(columns), bool)
    at_random[list(extremes)] = False
    sizes = np.bincount(stratum[at_random], minlength=len(names))
    strata = [names[stratum[row]] if at_random[row] else "" for row in rows]
    return Draw(rows, strata, np.where(at_random[rows], sizes[stratum[rows]], 1))


def _kinds(columns: RoundColumns, shuffled: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of each kind, those to show first at the front."""
    place = np.argsort(shuffled)
    for rows in (np.flatnonzero(columns.accepted), *columns.rows_by_reason.values()):
        yield rows[np.argsort(place[rows])]
    measured = np.flatnonzero(~np.isnan(columns.confidence))
    by_confidence = measured[np.argsort(columns.confidence[measured], kind="stable")]
    yield by_confidence
    yield by_confidence[::-1]
    by_change = np.argsort(-columns.num_changed_words, kind="stable")
    yield by_change[columns.num_changed_words[by_change] > 0]


def _in_turn(kinds: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """The first row of every kind, then the second of every kind, and so on; each with the number of its kind."""
    for rows in zip_longest(*kinds):
        yield from ((kind, row) for kind, row in enumerate(rows) if row is not None)


def _distinct(rows: Iterable[int]) -> Iterator[int]:
    return iter(dict.fromkeys(rows))
