"""The filter: runs a shard through the chain of filter policies and writes its part file. A Ray task without state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa

from actors.images import Oracle
from actors.shards import Shard, ShardImages
from policies.counts import RecordCounts
from policies.errors import running
from policies.filtering.chain import FilterChain
from policies.filtering.near_duplicates import TextSimilarity
from policies.filtering.stored_keys import with_keys
from policies.records import Record, from_table, to_table

Score = Callable[[Record], float | None]
"""`policies.training.selection.SelectionPolicy.score`."""


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
    chain: FilterChain,
    score: Score,
    similarity: TextSimilarity | None,
    write_part: PartWriter,
    shard: Shard,
    seconds: Mapping[str, float],
    records: pa.Table,
) -> FilteredShard:
    """Filter the records of a shard, score those that are kept, and write its part, with the `seconds` that they took so far. A second
    call writes the same bytes. With a `similarity` the part has the keys by which duplicates are found.

    Raises:
        PolicyError: the code of a filter or of the selection policy raised an error.
    """
    result = chain.apply(from_table(records), ShardImages(shard.source).open)
    with running("the score of the selection policy"):
        scored = [replace(record, score=score(record)) if record.accepted else record for record in result.records]
    judged = [_audited(record, shard.source) for record in scored]
    counts = RecordCounts.of(judged)
    extra = {"filters": [list(count) for count in result.counts], "seconds": dict(seconds), "counts": counts.stored}
    table = to_table(judged) if similarity is None else with_keys(to_table(judged), judged, similarity)
    return FilteredShard(write_part(shard.round, shard.name, table, extra), counts.generated, counts.accepted)


def _audited(record: Record, source: object) -> Record:
    """Note whether the answers are correct, if the source knows; after the verdict, so it decides nothing."""
    if not isinstance(source, Oracle) or not record.question:
        return record
    return replace(
        record,
        original_correct=source.is_correct(record.image_id, record.question, record.original_answer),
        answer_correct=source.is_correct(record.image_id, record.question, record.answer),
    )
