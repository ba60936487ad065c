"""The keys by which duplicates are found, as a column of a part of records.

They are made where a shard is filtered, so that a search over many rounds reads 8 bytes and 4 per band of each record instead of its texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from policies.filtering.near_duplicates import TextKeys, TextSimilarity, packed_bytes
from policies.records import DUPLICATE_KEYS, Record


def with_keys(table: pa.Table, records: Sequence[Record], similarity: TextSimilarity) -> pa.Table:
    """The table of records with the column `DUPLICATE_KEYS`, which is null where a record is rejected."""
    rows = [row for row, record in enumerate(records) if record.accepted]
    packed = TextKeys.of(similarity, [(records[row].question, records[row].answer) for row in rows]).packed
    column: list[bytes | None] = [None] * len(records)
    for row, keys in zip(rows, packed, strict=True):
        column[row] = keys.tobytes()
    return table.append_column(DUPLICATE_KEYS, pa.array(column, pa.binary(packed_bytes(similarity))))


def keys_of(column: pa.ChunkedArray) -> TextKeys:
    """The keys in a column without nulls."""
    width = column.type.byte_width
    arrays = [
        np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * width :][: len(chunk) * width] for chunk in column.chunks if len(chunk)
    ]
    return TextKeys.unpacked(np.concatenate([np.zeros(0, np.uint8), *arrays]).reshape(-1, width))
