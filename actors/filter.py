"""The filter: runs a shard through the chain of filter policies and writes its part file. A Ray task without state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa

from actors.images import Oracle
from actors.shards import Shard, ShardImages
from policies.filtering.chain import FilterChain
from policies.records import Record, from_table, to_table


class PartWriter(Protocol):
    """Writes a finished shard durably, then returns its receipt."""

    def __call__(self, round_index: int, name: str, records: pa.Table, extra: dict[str, object]) -> Any: ...


@dataclass(frozen=True, slots=True)
class FilteredShard:
    """The report on a finished shard to the driver; the records are in its part file."""

    part: Any
    """The receipt of its part file, as returned by `PartWriter`."""
    num_records: int
    num_accepted: int


def filter_shard(
    chain: FilterChain, write_part: PartWriter, shard: Shard, seconds: Mapping[str, float], records: pa.Table
) -> FilteredShard:
    """Filter the records of a shard and write its part, with the `seconds` that they took so far; a second call writes the same bytes.

    Raises:
        PolicyError: the code of a filter raised an error.
    """
    result = chain.apply(from_table(records), ShardImages(shard.source).open)
    judged = [_audited(record, shard.source) for record in result.records]
    counts = [list(count) for count in result.counts]
    part = write_part(shard.round, shard.name, to_table(judged), {"filters": counts, "seconds": dict(seconds)})
    return FilteredShard(part, len(judged), sum(record.accepted for record in judged))


def _audited(record: Record, source: object) -> Record:
    """Note whether the answers are correct, if the source knows; after the verdict, so it decides nothing."""
    if not isinstance(source, Oracle) or not record.question:
        return record
    return replace(
        record,
        original_correct=source.is_correct(record.image_id, record.question, record.original_answer),
        answer_correct=source.is_correct(record.image_id, record.question, record.answer),
    )
