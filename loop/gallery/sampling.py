"""Choose which records of a round are shown: some of every kind, and a random sample of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest

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


def choose(columns: RoundColumns, num: int, seed: int) -> np.ndarray:
    """At most `num` rows, ascending; the same ones for the same columns and seed.

    Half of them are drawn in turn from accepted records, from those of every reason, and from the least confident, the most confident
    and the most corrected ones, so that each kind is shown however rare it is. The rest is a random sample of all records.
    """
    if len(columns) <= num:
        return np.arange(len(columns))
    shuffled = np.random.default_rng(seed).permutation(len(columns))
    kinds = [one[:num].tolist() for one in _kinds(columns, shuffled)]
    taken = list(islice(_distinct(_in_turn(kinds)), min(num, max(num // 2, len(kinds)))))
    return np.sort(np.fromiter(islice(_distinct([*taken, *shuffled.tolist()]), num), np.int64, num))


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


def _in_turn(kinds: Sequence[Sequence[int]]) -> Iterator[int]:
    """The first of every kind, then the second of every kind, and so on."""
    return (row for row in chain.from_iterable(zip_longest(*kinds)) if row is not None)


def _distinct(rows: Iterable[int]) -> Iterator[int]:
    return iter(dict.fromkeys(rows))
