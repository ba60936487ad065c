"""The rows of a round that are trained on: part `selected`, an index of rows of the round's other parts.

    part                  int32   number of the part of records, `records-NUMBER`
    row                   int32   row in it
    question_type, answer_words, num_short_answers, has_original_answer    what mixing and statistics read, see `policies.columns`

Texts are not copied: they are read from the parts, one part at a time. One file is enough: 2.3 million rows of a round of 3 million
records take 5.3 MiB on disk (`benchmarks.scale`) and 32 bytes a row in memory. Runs of earlier versions stored the records themselves in
`selected`; they are read from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from loop.store.commits import FileEntry, RoundCommit
from loop.store.documents import PartReceipt
from loop.store.duplicates import DuplicateRows, committed_duplicates, duplicate_rows
from loop.store.reading import RunReader
from policies.columns import MIXING_COLUMNS, columns_to_read, compute, round_columns
from policies.records import RECORD_SCHEMA, Record, from_table

SELECTED = "selected"
_FILE = f"{SELECTED}.parquet"
_RECORDS = re.compile(r"/parts/records-(?P<number>\d+)(?:-(?P<revision>\w+))?\.parquet$")
_PLACE = ("part", "row")
_NUM_SAMPLED = 200
"""Rows to measure diversity on. Distinct-n falls with the number of texts, so the number is fixed."""
_ITSELF = -1
"""Part number of rows that `selected` holds itself."""


@dataclass(frozen=True)
class SelectedRows:
    """Rows of a round, in the order of its parts."""

    reader: RunReader
    files: Sequence[PartReceipt | FileEntry]
    """The parts of records by number; the last one is `selected`."""
    table: pa.Table
    """`part`, `row` and, where they are trained on, `policies.columns.MIXING_COLUMNS`."""

    def __len__(self) -> int:
        return self.table.num_rows

    def of_part(self, number: int) -> np.ndarray:
        """The rows of the part `number` that are trained on, ascending."""
        start, end = np.searchsorted(self._parts, [number, number + 1])
        return self._rows[start:end]

    def read(self, columns: Sequence[str], rows: np.ndarray | None = None) -> Iterator[pa.Table]:
        """Columns of the records at ascending, distinct positions `rows` of the table (all of them by default), part by part.

        Raises:
            DamagedFileError: a part is missing or altered.
        """
        parts, found = (places if rows is None else places[rows] for places in (self._parts, self._rows))
        starts = np.flatnonzero(np.diff(parts, prepend=_ITSELF - 1))
        ends = np.append(starts, len(parts))[1:]
        for start, end in zip(starts, ends, strict=True):
            records = self.reader.read_record_columns(self.files[int(parts[start])], columns)
            yield records.take(pa.array(found[start:end]))

    @cached_property
    def sample(self) -> tuple[list[str], list[str]]:
        """Questions and answers of up to `_NUM_SAMPLED` rows, evenly spread."""
        rows = np.arange(0, len(self), max(1, len(self) // _NUM_SAMPLED))[:_NUM_SAMPLED]
        tables = list(self.read(("question", "answer"), rows))
        questions, answers = ([text for table in tables for text in table[name].to_pylist()] for name in ("question", "answer"))
        return questions, answers

    @property
    def holds_records(self) -> bool:
        """Whether part `selected` holds the records themselves."""
        return len(self) > 0 and self._parts[0] == _ITSELF

    @cached_property
    def _parts(self) -> np.ndarray:
        return self.table["part"].to_numpy()

    @cached_property
    def _rows(self) -> np.ndarray:
        return self.table["row"].to_numpy()


def accepted_columns(
    reader: RunReader, parts: Sequence[PartReceipt], more: Sequence[str], duplicates: PartReceipt | None = None
) -> pa.Table:
    """`part`, `row` and the columns of `policies.columns` of all accepted records of a round but its duplicates.

    Raises:
        DamagedFileError: a part is missing or altered.
    """
    repeated = duplicate_rows(reader, duplicates)
    return pa.concat_tables([_accepted(reader, number, part, more, repeated) for number, part in enumerate(parts)])


def _accepted(reader: RunReader, number: int, part: PartReceipt, more: Sequence[str], repeated: DuplicateRows) -> pa.Table:
    records = reader.read_record_columns(part, columns_to_read(more))
    rows = np.setdiff1d(np.flatnonzero(records["accepted"].to_numpy()), repeated.of_part(number)["row"].to_numpy(), assume_unique=True)
    return _placed(number, rows, round_columns(records.take(pa.array(rows)), more))


def accepted_rows(reader: RunReader, parts: Sequence[PartReceipt]) -> SelectedRows:
    """All accepted records of a round, duplicates included. Raises `DamagedFileError`."""
    accepted = [np.flatnonzero(reader.read_record_columns(part, ("accepted",))["accepted"].to_numpy()) for part in parts]
    part = np.repeat(np.arange(len(parts), dtype=np.int32), [len(rows) for rows in accepted])
    return SelectedRows(reader, parts, pa.table({"part": part, "row": np.concatenate(accepted).astype(np.int32)}))


def _placed(number: int, rows: np.ndarray, columns: pa.Table) -> pa.Table:
    """The columns of these rows of the part `number`, behind `part` and `row`."""
    part = pa.array(np.full(len(rows), number, dtype=np.int32))
    return columns.add_column(0, "part", part).add_column(1, "row", pa.array(rows.astype(np.int32)))


def index_of(columns: pa.Table) -> pa.Table:
    """The content of part `selected` from the accepted columns of the chosen rows."""
    return columns.select([*_PLACE, *MIXING_COLUMNS])


def selected_rows(reader: RunReader, parts: Sequence[PartReceipt | FileEntry], selected: PartReceipt | FileEntry) -> SelectedRows:
    """Read part `selected` of a round whose parts of records are `parts`, in order.

    Raises:
        DamagedFileError: it is missing or altered.
    """
    table = reader.read_part(selected)
    if table.schema.names != [*_PLACE, *MIXING_COLUMNS]:
        records = reader.read_record_columns(selected, columns_to_read())
        table = index_of(_placed(_ITSELF, np.arange(records.num_rows), round_columns(records)))
    return SelectedRows(reader, [*parts, selected], table)


def committed_rows(reader: RunReader, commit: RoundCommit) -> SelectedRows:
    """The rows that a committed round was trained on. Raises `DamagedFileError`."""
    return selected_rows(reader, record_files(commit), commit.file(_FILE))


def records_of(reader: RunReader, commit: RoundCommit) -> Iterator[Record]:
    """The rows of `record_tables` as records; raises what it does."""
    for table in record_tables(reader, commit, RECORD_SCHEMA.names):
        yield from from_table(table)


def record_tables(reader: RunReader, commit: RoundCommit, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of all records of a committed round, part by part, duplicates rejected, marked if they were
    trained on. One part is in memory at a time.

    Raises:
        DamagedFileError: a part does not match the commit record.
        SchemaVersionError: a part was written in another version of the record schema.
    """
    trained = committed_rows(reader, commit) if any(file.path.endswith(_FILE) for file in commit.files) else None
    names = list(dict.fromkeys(["record_id", *columns]))
    stored = reader.read_record_columns(trained.files[-1], names) if trained is not None and trained.holds_records else None
    duplicates = committed_duplicates(reader, commit)
    for number, file in enumerate(record_files(commit)):
        records = duplicates.rejected(number, reader.read_record_columns(file, names))
        if stored is not None:
            records = _replaced(records, stored)
        elif trained is not None and "trained_on" in names:
            records = _marked(records, trained.of_part(number))
        yield records.select(list(columns))


def _marked(records: pa.Table, rows: np.ndarray) -> pa.Table:
    """The records, of which `rows` were trained on."""
    mask = np.zeros(records.num_rows, dtype=bool)
    mask[rows] = True
    place = records.schema.get_field_index("trained_on")
    return records.set_column(place, records.schema.field(place), pa.array(mask))


def _replaced(records: pa.Table, stored: pa.Table) -> pa.Table:
    """The records, as part `selected` holds those that it holds."""
    found = compute.index_in(records["record_id"], value_set=stored["record_id"])
    own = pa.array(np.arange(records.num_rows, dtype=np.int32))
    return pa.concat_tables([records, stored]).take(compute.coalesce(compute.add(found, records.num_rows), own))


def record_files(commit: RoundCommit) -> list[FileEntry]:
    """The parts of records of a committed round, in order. Parts `records-NUMBER` that were set aside because there is a
    `records-NUMBER-REVISION` of the same number are left out."""
    found = [(file, match) for file in commit.files if (match := _RECORDS.search(file.path))]
    revised = {match["number"] for _, match in found if match["revision"]}
    return [file for file, match in found if match["revision"] or match["number"] not in revised]


def replaced_files(commit: RoundCommit) -> list[FileEntry]:
    """The parts of records that `record_files` leaves out: what an older champion wrote, in place of which others count."""
    counted = {file.path for file in record_files(commit)}
    return [file for file in commit.files if _RECORDS.search(file.path) and file.path not in counted]
