"""Read images from the cells of tables: Parquet files, and the Arrow files that `datasets` saves to disk.

An image's id is `FILE/ROW`, or `FILE/ROW#PLACE` in a row with several. Rows are read in small groups, so memory does not grow with the
table.
"""

from __future__ import annotations

import io
import json
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from actors.images import BadImageError
from loop.bounded import run_with_limits
from loop.errors import UserError, one_line, printable
from loop.sources.decoding import MAX_FILE_BYTES, check_limit, decoded
from loop.sources.reading.places import ACCESS_ERRORS, Place, stored_files

_ROWS_AT_ONCE = 8
_STREAM_BYTES = 1 << 20
_KEPT_BATCHES = 2
"""Threads that open images in order ask for neighbouring rows in any order: the batch before the last one is kept as well."""
_OPEN_FILES = 8
"""Number of files that a source keeps open."""
_reading = threading.Lock()
"""Held while a cell is read: an open file has one position. Images are decoded outside of it."""
_MAX_STATE_BYTES = 1 << 24
_MAX_READ_S, _MAX_READ_BYTES = 600.0, 1 << 30
"""Bounds on checking the Arrow files of a dataset, without the mapped files themselves."""
_DICT_FILE, _STATE_FILE = "dataset_dict.json", "state.json"


class TableReader(Protocol):
    """One column of one file, row by row. It raises only what is in `ACCESS_ERRORS`."""

    def __init__(self, place: Place, name: str, column: str) -> None: ...

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def num_rows(self) -> int: ...

    def cell(self, row: int) -> Any:
        """The value of the column in a row, as Python objects."""
        ...


class TableImages:
    """The images of a column: encoded bytes, a struct with `bytes` as `datasets` stores images, or a list of one of these.

    It is pickled without the numbers of rows, which are read again on demand, and without open files.
    """

    def __init__(self, place: Place, names: Sequence[str], reader: type[TableReader], column: str, limit: int | None = None) -> None:
        """Args:
            place: the folder that the files are in.
            names: the files, in the order of the ids.
            reader: class that opens one of them.
            column: holds the images.
            limit: number of rows to take, from the first; None takes all.

        Raises:
            UserError: a file cannot be read or has no such column, there are no rows, or a limit is invalid.
        """
        check_limit(limit)
        self.place, self.column = place, column
        self.limit = limit
        self.names = tuple(names)
        self._reader = reader
        self._counts: dict[str, int] | None = None
        self._open_files: OrderedDict[str, TableReader] = OrderedDict()
        if not any(self._rows().values()):
            raise UserError(f"the tables of {place.address} hold no rows; expected at least one image in column {column!r}")

    def image_ids(self) -> list[str]:
        return list(islice((f"{name}/{row}" for name, num_rows in self._rows().items() for row in range(num_rows)), self.limit))

    def open(self, image_id: str) -> Image.Image:
        return decoded(io.BytesIO(_encoded(self._cell(image_id), printable(image_id))), image_id)

    def read_file(self, image_id: str) -> tuple[str, bytes]:
        cell = self._cell(image_id)
        return _file_name(cell) or image_id, _encoded(cell, printable(image_id))

    def _cell(self, image_id: str) -> Any:
        name, _, numbers = image_id.rpartition("/")
        row, mark, place = numbers.partition("#")
        if name not in self.names or not _is_number(row) or (mark and not _is_number(place)):
            raise BadImageError(f"{printable(image_id)}: is not a row", f"of {self.place.address}")
        try:
            with _reading:
                cell = self._file(name).cell(int(row))
        except ACCESS_ERRORS as error:
            with _reading:
                self._open_files.pop(name, None)
            where = f"from {self.place.address}: {printable(one_line(error))}"
            raise BadImageError(f"{printable(image_id)}: cannot be read", where) from error
        return _image_at(cell, int(place), printable(image_id)) if mark else cell

    def _rows(self) -> dict[str, int]:
        """Rows of each file, up to the one that holds the last image."""
        if self._counts is None:
            counts, num_rows = {}, 0
            for name in self.names:
                if self.limit is not None and num_rows >= self.limit:
                    break
                counts[name] = self._checked(name).num_rows
                num_rows += counts[name]
            self._counts = counts
        return self._counts

    def _checked(self, name: str) -> TableReader:
        try:
            reader = self._reader(self.place, name, self.column)
        except ACCESS_ERRORS as error:
            where = f"{self.place.address}/{name}"
            raise UserError(f"table {where} cannot be read: {printable(one_line(error))}; restore it or take it out") from error
        fields = {field.name: field.type for field in reader.schema}
        if self.column not in fields or not _holds_images(fields[self.column]):
            found = f"is {fields[self.column]}" if self.column in fields else "does not exist"
            fitting = [field for field, kind in fields.items() if _holds_images(kind)]
            raise UserError(
                f"column {self.column!r} of {self.place.address}/{name} {found}; expected encoded images, which are in "
                f"{fitting or f'none of its columns {list(fields)}'}"
            )
        return reader

    def _file(self, name: str) -> TableReader:
        if name not in self._open_files:
            self._open_files[name] = self._reader(self.place, name, self.column)
        self._open_files.move_to_end(name)
        if len(self._open_files) > _OPEN_FILES:
            self._open_files.popitem(last=False)
        return self._open_files[name]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_counts": None, "_open_files": OrderedDict()}


class ParquetReader:
    """A Parquet file. Rows are decoded in order from the start of a row group: reading forward is cheap, going back is not."""

    def __init__(self, place: Place, name: str, column: str) -> None:
        self._file = pq.ParquetFile(place.open(name), buffer_size=_STREAM_BYTES)  # with a buffer it reads pages instead of whole columns
        self._column = column
        self._starts = np.cumsum([0, *(self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups))])
        self._rest: Iterator[pa.RecordBatch] = iter(())
        self._group = -1
        self._next = 0
        """First row that is still to be decoded."""
        self._batches: deque[tuple[int, pa.RecordBatch]] = deque(maxlen=_KEPT_BATCHES)
        """The last batches, each with its first row."""

    @property
    def schema(self) -> pa.Schema:
        return self._file.schema_arrow

    @property
    def num_rows(self) -> int:
        return int(self._starts[-1])

    def cell(self, row: int) -> Any:
        if row >= self.num_rows:
            raise ValueError(f"there are {self.num_rows} rows")
        for start, batch in self._batches:
            if start <= row < start + batch.num_rows:
                return batch.column(0)[row - start].as_py()
        return self._decoded_up_to(row).as_py()

    def _decoded_up_to(self, row: int) -> pa.Scalar:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if group != self._group or row < self._next:
            self._rest = self._file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[self._column])
            self._group, self._next = group, int(self._starts[group])
        while row >= self._next:
            batch = next(self._rest, None)
            if batch is None:
                self._group = -1
                raise ValueError("its row group ends early")
            self._batches.append((self._next, batch))
            self._next += batch.num_rows
        start, batch = self._batches[-1]
        return batch.column(0)[row - start]


class ArrowReader:
    """A file of Arrow's stream format, as `datasets` writes it, mapped into memory. Keeps 16 bytes per batch."""

    def __init__(self, place: Place, name: str, column: str) -> None:
        self._stream = pa.memory_map(str(place.path / name))
        self.schema = pa.ipc.read_schema(pa.ipc.read_message(self._stream))
        self._column = column
        self._offsets: list[int] = []
        starts = [0]
        while True:
            offset = self._stream.tell()
            try:
                message = pa.ipc.read_message(self._stream)
            except EOFError:
                break
            if message.type != "record batch":
                raise ValueError(f"it holds a {message.type}, which is not read here")
            self._offsets.append(offset)
            starts.append(starts[-1] + pa.ipc.read_record_batch(message, self.schema).num_rows)
        self._starts = np.array(starts)
        self._batch: tuple[int, pa.Array] | None = None

    @property
    def num_rows(self) -> int:
        return int(self._starts[-1])

    def batch_starts(self) -> list[int]:
        """The first row of every batch that has any."""
        return sorted({int(start) for start in self._starts[:-1] if start < self.num_rows})

    def cell(self, row: int) -> Any:
        if row >= self.num_rows:
            raise ValueError(f"there are {self.num_rows} rows")
        batch = int(np.searchsorted(self._starts, row, side="right")) - 1
        if self._batch is None or self._batch[0] != batch:
            self._stream.seek(self._offsets[batch])
            column = pa.ipc.read_record_batch(pa.ipc.read_message(self._stream), self.schema).column(self._column)
            column.validate(full=True)  # nothing else checks its offsets against its data
            self._batch = batch, column
        return self._batch[1][row - int(self._starts[batch])].as_py()


def parquet_images(path: str | Path, column: str = "image", limit: int | None = None) -> TableImages:
    """The images of a Parquet file, or of all files below a folder that end in `.parquet`.

    Raises:
        UserError: see `stored_files` and `TableImages`.
    """
    place, names = stored_files(path, (".parquet",), "Parquet set")
    return TableImages(place, names, ParquetReader, column, limit)


def saved_images(path: str | Path, split: str | None = None, column: str = "image", limit: int | None = None) -> TableImages:
    """The images of a dataset that `datasets.Dataset.save_to_disk` wrote, or of a split of a saved `DatasetDict`.

    Raises:
        UserError: the folder holds no such dataset or not that split, or is not on a local filesystem; or see `TableImages`.
    """
    place = Place.of(path, "dataset")
    if place.local is None:
        raise UserError(f"dataset {path} is not a local folder; copy it here, or save it with to_parquet and use the kind parquet")
    if split is not None:
        place = _split_of(place, split, str(path))
    state = _json_object(place, _STATE_FILE)
    if state is None:
        splits = _json_object(place, _DICT_FILE)
        hint = f"name one of its splits {splits.get('splits')} as `split`" if splits else "expected a folder that save_to_disk has written"
        raise UserError(f"dataset {path} holds no {_STATE_FILE}; {hint}")
    if state.get("_indices_data_files"):
        raise UserError(f"dataset {path} was saved with a selection of its rows; save the result of its flatten_indices() instead")
    entries = state.get("_data_files")
    names = [str(one.get("filename", "")) for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    if not names or not all(name and name.isprintable() and "/" not in name for name in names):
        raise UserError(f"{place.address}/{_STATE_FILE} lists no data files; expected a folder that save_to_disk has written")
    paths = [place.path / name for name in names]
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()]
    _refuse_deadly(place, tuple(states), column)
    return TableImages(place, names, ArrowReader, column, limit)


@lru_cache(maxsize=256)
def _refuse_deadly(place: Place, states: tuple[tuple[str, int, int], ...], column: str) -> None:
    """Read all metadata of the files in a separate process, once for each state of them (name, size in bytes, time of the last change):
    pyarrow trusts it, and damaged bytes can crash the process that reads them.

    Raises:
        UserError: they crashed it.
    """

    def read() -> None:
        for name, *_ in states:
            with suppress(*ACCESS_ERRORS):  # the next reader reports what is wrong
                reader = ArrowReader(place, name, column)
                for row in reader.batch_starts():
                    with suppress(*ACCESS_ERRORS):
                        reader.cell(row)

    run_with_limits(f"dataset {place.address}", read, _MAX_READ_S, sum(size for _, size, _ in states) + _MAX_READ_BYTES)


def _split_of(place: Place, split: str, path: str) -> Place:
    found = (_json_object(place, _DICT_FILE) or {}).get("splits")
    if not isinstance(found, list) or split not in found or "/" in split or split == "..":
        raise UserError(f"dataset {path} has no split {split!r}; it has {found if isinstance(found, list) else 'none'}")
    return Place(str(place.path / split))


def _json_object(place: Place, name: str) -> dict[str, Any] | None:
    """A small JSON file of a folder; None if there is none, or it is not an object."""
    try:
        with place.open(name) as stream:
            value = json.loads(stream.read(_MAX_STATE_BYTES))
    except FileNotFoundError:
        return None
    except (*ACCESS_ERRORS, RecursionError) as error:
        raise UserError(f"{place.address}/{name} cannot be read: {printable(one_line(error))}; restore it") from error
    return value if isinstance(value, dict) else None


def _image_at(cell: Any, place: int, name: str) -> Any:
    """One of the several images in a cell."""
    images = [image for image in cell if image is not None] if isinstance(cell, list) else []
    if place >= len(images):
        raise BadImageError(f"{name}: the row holds {len(images)} images")
    return images[place]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 16


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_images(kind.value_type)
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _file_name(value: Any) -> str:
    """The file name of the image in a cell; empty if it has none."""
    first = value[0] if isinstance(value, list) and value else value
    path = first.get("path") if isinstance(first, dict) else None
    return PurePosixPath(path.replace("\\", "/")).name if isinstance(path, str) else ""


def _encoded(value: Any, name: str) -> bytes:
    """The bytes of the one image in a cell."""
    if isinstance(value, list):
        if len(value) != 1:
            raise BadImageError(f"{name}: holds {len(value)} images; expected one")
        value = value[0]
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            raise BadImageError(f"{name}: holds the path of an image, {printable(str(value['path']))}, and not its bytes")
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise BadImageError(f"{name}: holds no image")
    if len(value) > MAX_FILE_BYTES:
        raise BadImageError(f"{name}: has {len(value)} bytes; the limit is {MAX_FILE_BYTES}")
    return value
