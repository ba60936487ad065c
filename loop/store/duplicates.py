"""The accepted records of a round that repeat others: part `duplicates`.

    part      int32    number of the part of records, `records-NUMBER`
    row       int32    row in it
    reason    string   `exact_duplicate` or `near_duplicate`
    repeats   string   the `record_id` of the earlier record, or `seed|IMAGE` for a sample of the seed data

A part of records never changes once it is written, and duplicates across shards are known only after the last one. Who reads the records of
a round therefore takes these verdicts along: a record in this part is rejected, and the counts of the round say so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from loop.store.commits import FileEntry, RoundCommit
from loop.store.documents import PartReceipt
from loop.store.reading import RunReader
from policies.records import Record

DUPLICATES = "duplicates"
_FILE = f"/parts/{DUPLICATES}.parquet"
SCHEMA = pa.schema([("part", pa.int32()), ("row", pa.int32()), ("reason", pa.string()), ("repeats", pa.string())])


@dataclass(frozen=True)
class DuplicateRows:
    """Rows of the parts of a round, ascending by part and row."""

    table: pa.Table
    """Of `SCHEMA`."""

    def of_part(self, number: int) -> pa.Table:
        """Those of the part `number`."""
        start, end = np.searchsorted(self.table["part"].to_numpy(), [number, number + 1])
        return self.table.slice(start, end - start)

    def rejected(self, number: int, records: Iterable[Record]) -> Iterable[Record]:
        """The records of the part `number`, the duplicates among them rejected."""
        found = {one["row"]: one for one in self.of_part(number).to_pylist()}
        for row, record in enumerate(records):
            one = found.get(row)
            yield record if one is None else replace(record.rejected(one["reason"]), reason_detail=f"repeats {one['repeats']}")


def duplicate_rows(reader: RunReader, part: PartReceipt | FileEntry | None) -> DuplicateRows:
    """The content of part `duplicates`; no rows where a round has none.

    Raises:
        DamagedFileError: it is missing or altered.
    """
    return DuplicateRows(SCHEMA.empty_table() if part is None else reader.read_part(part))


def committed_duplicates(reader: RunReader, commit: RoundCommit) -> DuplicateRows:
    """The duplicates of a committed round. Raises `DamagedFileError`."""
    return duplicate_rows(reader, next((file for file in commit.files if file.path.endswith(_FILE)), None))
