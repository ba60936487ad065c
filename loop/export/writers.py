"""Write the formats of an export."""

from __future__ import annotations

import errno
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loop.errors import printable
from loop.export.pictures import Picture, Pictures
from policies.generation.instructions import vig_target
from policies.records import EXPORTED_IMAGE, IMAGE_MARK, RECORD_SCHEMA, Record, to_table

DATA_JSON, DATA_JSONL, DATA_PARQUET = "data.json", "data.jsonl", "data.parquet"
DATASET_INFO = "dataset_info.json"
"""How LlamaFactory finds its data in a folder."""
IMAGES, METADATA = "images", "metadata.jsonl"
DATA_TARS = "data-*.tar"
"""The files of a WebDataset."""
RECORDS_PER_TAR = 10_000
_ROWS_PER_GROUP = 100
"""Rows of a Parquet row group: streaming readers hold one group, images included, in memory."""

_ERRORS_OF_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL)
"""What a file system raises on names that it cannot store."""

_TEXT = {"dtype": "string", "_type": "Value"}
_FEATURES = {
    "messages": [{"role": _TEXT, "content": [{"type": _TEXT, "text": _TEXT}]}],
    "images": [{"_type": "Image"}],
    "id": _TEXT,
    "type": _TEXT,
}
_CONTENT = pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))
MESSAGES_SCHEMA = pa.schema(
    [
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", _CONTENT)]))),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("id", pa.string()),
        ("type", pa.string()),
    ],
    # Without the features of `datasets` in the metadata, load_dataset("parquet") shows structs of bytes instead of images.
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


def _feature(kind: pa.DataType) -> Any:
    """A type of `RECORD_SCHEMA` as `datasets` writes it."""
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    return {"dtype": {"double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}


PARQUET_SCHEMA = RECORD_SCHEMA.append(pa.field(EXPORTED_IMAGE, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))).with_metadata(
    {
        **RECORD_SCHEMA.metadata,
        "huggingface": json.dumps(
            {"info": {"features": {**{one.name: _feature(one.type) for one in RECORD_SCHEMA}, EXPORTED_IMAGE: {"_type": "Image"}}}}
        ),
    }
)


@dataclass
class ExportCounts:
    """How much has been written."""

    types: Counter[str] = field(default_factory=Counter)
    """Records by question type."""
    rounds: Counter[int] = field(default_factory=Counter)
    images: set[str] = field(default_factory=set)
    """Ids of the images that the records are about."""

    @property
    def num_records(self) -> int:
        return self.types.total()

    def add(self, record: Record, image_id: str) -> None:
        self.types[record.question_type] += 1
        self.rounds[record.round] += 1
        self.images.add(image_id)


Writer = Callable[[Iterator[Record], Path, Pictures, ExportCounts], None]
"""Writes records to a file or into an existing folder, and adds them to the counts."""
ShardedWriter = Callable[[Iterator[Record], Path, Pictures, ExportCounts, int | None], None]
"""A writer that takes the number of records per file; `None` is one file, or the usual number of the format."""


def write_llava(records: Iterator[Record], folder: Path, pictures: Pictures, counts: ExportCounts) -> None:
    """LLaVA's conversations as `data.json` and the images beside it."""
    _write_json(folder, (_llava_entry(record, name) for record, name in _with_files(records, folder, pictures, counts)))


def write_vigc(records: Iterator[Record], folder: Path, pictures: Pictures, counts: ExportCounts) -> None:
    """What VIGC keeps of each record that it generates, as `data.json`, and the images beside it."""
    _write_json(folder, (_vigc_entry(record, name) for record, name in _with_files(records, folder, pictures, counts)))


def write_sharegpt(records: Iterator[Record], folder: Path, pictures: Pictures, counts: ExportCounts) -> None:
    """ShareGPT's conversations as LlamaFactory reads them: `data.json`, the images beside it, and `dataset_info.json`, which names both."""
    _write_json(folder, (_sharegpt_entry(record, name) for record, name in _with_files(records, folder, pictures, counts)))
    columns = {"messages": "conversations", "images": "images"}
    info = {"vigc_loop": {"file_name": DATA_JSON, "formatting": "sharegpt", "columns": columns}}
    (folder / DATASET_INFO).write_text(json.dumps(info, indent=1), encoding="utf-8")


def write_swift(records: Iterator[Record], folder: Path, pictures: Pictures, counts: ExportCounts) -> None:
    """ms-swift's messages as `data.jsonl`, and the images beside it."""
    data = folder / DATA_JSONL
    form = _Form()
    _write_lines(data, form.seen(_swift_entry(record, name) for record, name in _with_files(records, folder, pictures, counts)))
    _write_metadata(folder, data, form)


def write_webdataset(
    records: Iterator[Record], folder: Path, pictures: Pictures, counts: ExportCounts, shard_size: int | None = None
) -> None:
    """WebDataset: tars `data-00000.tar` and so on; a sample is an image and a `.json` file of LLaVA's fields, both named by the record."""
    illustrated, number = _illustrated(records, pictures), 0
    while first := next(illustrated, None):
        with tarfile.open(folder / DATA_TARS.replace("*", f"{number:05d}"), "w") as tar:
            for record, picture in chain([first], islice(illustrated, (shard_size or RECORDS_PER_TAR) - 1)):
                counts.add(record, picture.name)
                name = f"{record.record_id}{PurePosixPath(picture.name).suffix}"
                _add_member(tar, name, picture.data)
                _add_member(tar, f"{record.record_id}.json", json.dumps(_llava_entry(record, name), ensure_ascii=False).encode())
        number += 1


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file without times and owners, so that the same records give the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_messages(records: Iterator[Record], file: Path, pictures: Pictures, counts: ExportCounts, shard_size: int | None = None) -> None:
    """Parquet of `MESSAGES_SCHEMA`."""

    def rows() -> Iterator[dict[str, Any]]:
        for record, picture in _illustrated(records, pictures):
            counts.add(record, picture.name)
            yield _messages_row(record, picture)

    remaining = rows()
    with closing(_ParquetFiles(file, MESSAGES_SCHEMA, shard_size)) as files:
        while group := list(islice(remaining, _ROWS_PER_GROUP)):
            files.write(pa.Table.from_pylist(group, schema=MESSAGES_SCHEMA))


def write_parquet(records: Iterator[Record], file: Path, pictures: Pictures, counts: ExportCounts, shard_size: int | None = None) -> None:
    """Parquet of all records with their images; one that cannot be read is null."""
    image = PARQUET_SCHEMA.field(EXPORTED_IMAGE)

    with closing(_ParquetFiles(file, PARQUET_SCHEMA, shard_size)) as files:
        while group := list(islice(records, _ROWS_PER_GROUP)):
            for record in group:
                counts.add(record, pictures.image_id_of(record))
            found = [pictures.of(record) for record in group]
            cells = [None if picture is None else _image_cell(picture) for picture in found]
            table = to_table(group).append_column(image, pa.array(cells, image.type))
            files.write(table.replace_schema_metadata(PARQUET_SCHEMA.metadata))


def _llava_entry(record: Record, name: str) -> dict[str, Any]:
    return {
        "id": record.record_id,
        "image": name,
        "image_id": record.image_id,
        "type": record.question_type,
        "conversations": _turns(record, f"{IMAGE_MARK}\n"),
    }


def _sharegpt_entry(record: Record, name: str) -> dict[str, Any]:
    return {
        "conversations": _turns(record, IMAGE_MARK),
        "images": [f"{IMAGES}/{name}"],
        "id": record.record_id,
        "image_id": record.image_id,
        "type": record.question_type,
    }


def _swift_entry(record: Record, name: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"{IMAGE_MARK}{_plain(record.question)}"},
            {"role": "assistant", "content": _plain(record.answer)},
        ],
        "images": [f"{IMAGES}/{name}"],
        "id": record.record_id,
        "image_id": record.image_id,
        "type": record.question_type,
    }


def _turns(record: Record, before: str) -> list[dict[str, str]]:
    """Question and answer as LLaVA and ShareGPT spell turns, with `before` at the beginning."""
    return [{"from": "human", "value": f"{before}{_plain(record.question)}"}, {"from": "gpt", "value": _plain(record.answer)}]


def _vigc_entry(record: Record, name: str) -> dict[str, Any]:
    """The fields of VIGC's `llava_150k_gen`, and of its `vqg_test` where there are several short answers. `answer_given_question`, VIC's
    complete answer to the bare question, is not kept by a run."""
    short = {"answer": list(record.short_answers), "weight": list(record.short_answer_weights)} if record.short_answers else {}
    return {
        "image": name,
        "image_id": record.image_id,
        "instruction": record.instruction,
        "question": record.question,
        "answer": record.answer,
        "whole_text": f"{record.instruction} {vig_target(record.question, record.answer)}",
        "original_answer": record.original_answer,
        "answer_given_question": None,
        "answer_lst": list(record.sentences),
        **short,
        "id": record.record_id,
        "type": record.question_type,
    }


def _messages_row(record: Record, picture: Picture) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": record.question}]},
            {"role": "assistant", "content": [{"type": "text", "text": record.answer}]},
        ],
        "images": [_image_cell(picture)],
        "id": record.record_id,
        "type": record.question_type,
    }


def _image_cell(picture: Picture) -> dict[str, Any]:
    return {"bytes": picture.data, "path": picture.name}


def _with_files(records: Iterator[Record], folder: Path, pictures: Pictures, counts: ExportCounts) -> Iterator[tuple[Record, str]]:
    """Accepted records whose image has been written to the folder, with its name under `images/`."""
    for record, picture in _illustrated(records, pictures):
        target = folder / IMAGES / picture.name
        try:
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(picture.data)
        except OSError as error:
            if error.errno not in _ERRORS_OF_NAMES:
                raise
            pictures.set_aside(record, f"{printable(picture.name)}: its name cannot be written ({error.strerror})")
            continue
        counts.add(record, picture.name)
        yield record, picture.name


def _write_json(folder: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Write the data in the format, and for `datasets` the same as metadata of the images, so that it shows pictures, not names. Entries
    are written as they come: memory does not grow with their number."""
    lines, form = folder / f".{DATA_JSONL}.tmp", _Form()
    _write_lines(lines, form.seen(entries))
    with (folder / DATA_JSON).open("w", encoding="utf-8") as file:
        before = "[\n"
        for entry in _read_lines(lines):
            file.write(before + " " + json.dumps(entry, indent=1, ensure_ascii=False).replace("\n", "\n "))
            before = ",\n"
        file.write("[]" if before == "[\n" else "\n]")
    _write_metadata(folder, lines, form)
    lines.unlink()


def _write_metadata(folder: Path, data: Path, form: _Form) -> None:
    """Write the entries in the lines of `data` with equal columns and types."""
    if form.columns:
        _write_lines(folder / METADATA, map(form.as_metadata, _read_lines(data)))


@dataclass
class _Form:
    """The columns of entries: if one entry has several answers, all have lists in the metadata."""

    columns: dict[str, None] = field(default_factory=dict)
    lists: set[str] = field(default_factory=set)

    def seen(self, entries: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The entries themselves, noted."""
        for entry in entries:
            self.columns |= dict.fromkeys(key for key in entry if key not in ("image", "images"))
            self.lists |= {key for key, value in entry.items() if isinstance(value, list)}
            yield entry

    def as_metadata(self, entry: dict[str, Any]) -> dict[str, Any]:
        row = {key: [value] if key in self.lists and isinstance(value := entry.get(key), str) else entry.get(key) for key in self.columns}
        return {"file_name": entry["images"][0] if "images" in entry else f"{IMAGES}/{entry['image']}", **row}


def _write_lines(file: Path, entries: Iterable[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in entries)


def _read_lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


class _ParquetFiles:
    """One Parquet file, or files `NAME-00000.parquet` and so on of `shard_size` rows each."""

    def __init__(self, file: Path, schema: pa.Schema, shard_size: int | None) -> None:
        self._file = file
        self._schema = schema
        self._shard_size = shard_size
        self._number, self._room = 0, shard_size
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append a row group, cut where a file is full."""
        while table.num_rows:
            part = table.slice(0, self._room)
            self._open().write_table(part)
            table = table.slice(part.num_rows)
            if self._room is not None:
                self._room -= part.num_rows
                if self._room == 0:
                    self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._room = None, self._shard_size

    def _open(self) -> pq.ParquetWriter:
        if self._writer is None:
            name = self._file.name if self._shard_size is None else f"{self._file.stem}-{self._number:05d}{self._file.suffix}"
            self._writer = pq.ParquetWriter(self._file.with_name(name), self._schema, compression="zstd", write_page_checksum=True)
            self._number += 1
        return self._writer


def _illustrated(records: Iterator[Record], pictures: Pictures) -> Iterator[tuple[Record, Picture]]:
    """Accepted records with their image."""
    for record in records:
        if record.accepted and (picture := pictures.of(record)) is not None:
            yield record, picture


def _plain(text: str) -> str:
    """`text` without the image token, which a model may write: LLaVA's readers would expect a second image."""
    return " ".join(text.replace(IMAGE_MARK, " ").split()) if IMAGE_MARK in text else text
