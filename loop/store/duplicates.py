"""The accepted records of a round that repeat others: part `duplicates`.

    part      int32    number of the part of records, `records-NUMBER`
    row       int32    row in it
    reason    string   `exact_duplicate` or `near_duplicate`
    repeats   string   the `record_id` of the earlier record, or `seed|IMAGE` for a sample of the seed data

A part of records never changes once it is written, and duplicates across shards are known only after the last one. Who reads the records of
a round therefore takes these verdicts along: a record in this part is rejected, and the counts of the round say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from loop.store.commits import FileEntry, RoundCommit
from loop.store.documents import PartReceipt
from loop.store.reading import RunReader

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

    def rejected(self, number: int, records: pa.Table) -> pa.Table:
        """Columns of the records of the part `number`, the duplicates among them rejected as `Record.rejected` does."""
        found = self.of_part(number)
        rows = found["row"].to_numpy()
        details = [f"repeats {name}" for name in found["repeats"].to_pylist()]
        values = {
            "accepted": [False] * len(rows),
            "reasons": [[reason] for reason in found["reason"].to_pylist()],
            "reason_detail": details,
        }
        for name, changed in values.items():
            if name in records.schema.names:
                records = _with_values(records, name, rows, changed)
        return records


def _with_values(table: pa.Table, name: str, rows: np.ndarray, values: list[Any]) -> pa.Table:
    """The table with other values in some rows of a column."""
    place = table.schema.get_field_index(name)
    column = table.column(place)
    order = np.arange(len(column))
    order[rows] = len(column) + np.arange(len(rows))
    changed = pa.chunked_array([*column.chunks, pa.array(values, column.type)]).take(pa.array(order))
    return table.set_column(place, table.schema.field(place), changed)


def duplicate_rows(reader: RunReader, part: PartReceipt | FileEntry | None) -> DuplicateRows:
    """The content of part `duplicates`; no rows where a round has none.

    Raises:
        DamagedFileError: it is missing or altered.
    """
    return DuplicateRows(SCHEMA.empty_table() if part is None else reader.read_part(part))


def committed_duplicates(reader: RunReader, commit: RoundCommit) -> DuplicateRows:
    """The duplicates of a committed round. Raises `DamagedFileError`."""
    return duplicate_rows(reader, next((file for file in commit.files if file.path.endswith(_FILE)), None))
