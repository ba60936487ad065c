"""The records that a page shows, with their pictures and what is known about their answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from actors.images import ImageSource
from loop.gallery.corrections import Segment, segments
from loop.gallery.sampling import draw, read_columns
from loop.gallery.thumbnails import Picture, pictures
from loop.store.commits import RoundCommit
from loop.store.reading import RunReader
from loop.store.selected import record_tables, replaced_files
from policies.columns import compute
from policies.records import RECORD_SCHEMA, Record, from_table

_MAX_CHARACTERS = 3000
"""Of a text on a page; the rest of it is counted. A model that repeats itself would fill the page."""
_REPLACED_COLUMNS = ("record_id", "question", "answer", "corrector_weight_version")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a corrected answer."""

    text: str
    logprob: float | None
    """Summed over its tokens, nats."""
    gain: float | None
    """What the image adds, nats per token."""

    @property
    def probability(self) -> float | None:
        return None if self.logprob is None else math.exp(min(0.0, self.logprob))


@dataclass(frozen=True, slots=True)
class Earlier:
    """What the previous champion answered to the same question."""

    answer: str
    weight_version: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A record on a page."""

    record: Record
    picture: Picture
    segments: list[Segment]
    """The answer with what correction changed; empty if there are not two answers."""
    earlier: Earlier | None = None
    stratum: str = ""
    """See `loop.gallery.sampling.Draw`."""
    stratum_size: int = 1

    @property
    def confidence(self) -> float | None:
        """Geometric mean of the probabilities of the answer's tokens."""
        mean = self.record.mean_logprob
        return None if mean is None else math.exp(min(0.0, mean))

    @property
    def num_changed_words(self) -> int:
        return sum(one.num_words for one in self.segments if one.kind != "same")

    @property
    def verdict(self) -> str:
        return "accepted" if self.record.accepted else "rejected"

    @property
    def sentences(self) -> list[Sentence]:
        """The sentences of the answer with what was measured of each."""
        record = self.record
        scores, gains = (_filled(values, len(record.sentences)) for values in (record.sentence_logprobs, record.sentence_gains))
        return [Sentence(shown(text), *rest) for text, *rest in zip(record.sentences, scores, gains, strict=True)]


@dataclass(frozen=True, slots=True)
class RoundSamples:
    """The sample of a round."""

    samples: list[Sample]
    num_records: int
    """Of the whole round."""
    problem: str = ""
    """Why none is shown, where the round is damaged."""

    @property
    def problems(self) -> list[str]:
        """Why pictures are missing, one line for each image that cannot be read."""
        return list(dict.fromkeys(one.picture.problem for one in self.samples if one.record.image_id and one.picture.problem))

    @property
    def num_without_picture(self) -> int:
        return sum(bool(one.picture.problem) for one in self.samples)


def _filled(values: tuple[float, ...], num: int) -> list[float | None]:
    """As many values as there are sentences; None where nothing was measured."""
    return list(values) if len(values) == num else [None] * num


def shown(text: str) -> str:
    """A text as a page shows it: its start, if it is very long."""
    more = len(text) - _MAX_CHARACTERS
    return text if more <= 0 else f"{text[:_MAX_CHARACTERS]} … ({more:,} more characters)"


def read_samples(reader: RunReader, commit: RoundCommit, images: ImageSource, num_samples: int) -> RoundSamples:
    """At most `num_samples` records of a committed round, in order. Its parts are read one by one.

    Raises:
        DamagedFileError: a part does not match the commit record.
        SchemaVersionError: a part was written in another version of the record schema.
    """
    columns = read_columns(reader, commit)
    drawn = draw(columns, num_samples, commit.round)
    records = list(_records_at(record_tables(reader, commit, RECORD_SCHEMA.names), drawn.rows))
    found = pictures(images, (record.image_id for record in records))
    earlier = _earlier(reader, commit, records)
    samples = [
        Sample(record, found[record.image_id], _segments(record), earlier.get(record.record_id), stratum, int(size))
        for record, stratum, size in zip(records, drawn.strata, drawn.stratum_sizes, strict=True)
    ]
    return RoundSamples(samples, len(columns))


def _records_at(tables: Iterable[pa.Table], rows: np.ndarray) -> Iterator[Record]:
    """The records at ascending rows over all tables."""
    first = 0
    for table in tables:
        start, end = np.searchsorted(rows, [first, first + table.num_rows])
        if start < end:
            yield from from_table(table.take(pa.array(rows[start:end] - first)))
        first += table.num_rows


def _segments(record: Record) -> list[Segment]:
    if not record.original_answer.strip() or not record.answer.strip():
        return []
    return segments(shown(record.original_answer), shown(record.answer))


def _earlier(reader: RunReader, commit: RoundCommit, records: Iterable[Record]) -> dict[str, Earlier]:
    """The answers of the previous champion by record id. The store has them where the new champion corrected its stale records again."""
    questions = {record.record_id: record.question for record in records}
    found: dict[str, Earlier] = {}
    for file in replaced_files(commit):
        table = reader.read_record_columns(file, _REPLACED_COLUMNS)
        wanted = table.filter(compute.is_in(table["record_id"], value_set=pa.array(questions, pa.string())))
        for row in wanted.to_pylist():
            if row["question"] and row["question"] == questions[row["record_id"]]:
                found[row["record_id"]] = Earlier(row["answer"], row["corrector_weight_version"])
    return found
