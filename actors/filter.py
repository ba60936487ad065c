"""The filter: a CPU actor that runs a shard through the chain of filter policies and writes its part file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa

from actors.images import Oracle
from actors.shards import Shard, ShardImages, ShardResult, timed
from policies.filtering.chain import FilterChain
from policies.records import Record, from_table, to_table


class PartWriter(Protocol):
    """Writes a finished shard durably, then returns its receipt."""

    def __call__(self, round_index: int, name: str, records: pa.Table, extra: dict[str, object]) -> Any: ...


@dataclass(frozen=True, slots=True)
class FilteredShard:
    """The report on a finished shard to the driver; the records are in its part file."""

    name: str
    part: Any
    """The receipt of its part file, as returned by `PartWriter`."""
    num_records: int
    num_accepted: int
    seconds: dict[str, float]


class FilterWorker:
    """A thin shell around a `FilterChain`; the driver runs it as a Ray actor."""

    def __init__(self, chain: FilterChain, write_part: PartWriter) -> None:
        self._chain = chain
        self._write_part = write_part

    def filter(self, shard: Shard, corrected: ShardResult) -> FilteredShard:
        """Filter the shard and write its part; a second call writes the same bytes.

        Raises:
            PolicyError: the code of a filter raised an error.
        """
        seconds = dict(corrected.seconds)
        with timed(seconds, "filter"):
            result = self._chain.apply(from_table(corrected.records), ShardImages(shard.source).open)
            records = [_audited(record, shard.source) for record in result.records]
            counts = [list(count) for count in result.counts]
            accepted = sum(record.accepted for record in records)
            part = self._write_part(shard.round, shard.name, to_table(records), {"filters": counts, "seconds": corrected.seconds})
        return FilteredShard(shard.name, part, len(records), accepted, seconds)


def _audited(record: Record, source: object) -> Record:
    """Note whether the answers are correct, if the source knows; after the verdict, so it decides nothing."""
    if not isinstance(source, Oracle) or not record.question:
        return record
    return replace(
        record,
        original_correct=source.is_correct(record.image_id, record.question, record.original_answer),
        answer_correct=source.is_correct(record.image_id, record.question, record.answer),
    )
