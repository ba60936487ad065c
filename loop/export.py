"""The data of a run in the formats of other tools.

| format     | holds                                   | written as                                                               |
|------------|-----------------------------------------|--------------------------------------------------------------------------|
| `llava`    | accepted records                        | a folder: `data.json` (LLaVA's conversations) and `images/IMAGE_ID.png`  |
| `messages` | accepted records with their images      | one Parquet file that `datasets` and TRL read as chat messages and images|
| `parquet`  | all records, the rejected with reasons  | one Parquet file of `policies.records.RECORD_SCHEMA`                     |
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol, TypeVar
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from actors.durable import fsync_tree
from actors.images import BadImageError
from loop.commits import RoundCommit
from loop.errors import StoreError, UserError, printable
from loop.store import Store, records_in
from policies.records import RECORD_SCHEMA, Record, to_table

_ROWS_PER_GROUP = 100
"""Rows of a Parquet row group: with images inside, readers that stream hold one group in memory."""

_ERRORS_OF_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL)
"""What a file system says of names that it cannot hold, alone or beside others."""

_IMAGE_TOKEN = "<image>"
_Row = TypeVar("_Row")

_TEXT = {"dtype": "string", "_type": "Value"}
_FEATURES = {"messages": [{"role": _TEXT, "content": [{"type": _TEXT, "text": _TEXT}]}], "images": [{"_type": "Image"}]}
_CONTENT = pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))
MESSAGES_SCHEMA = pa.schema(
    [
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", _CONTENT)]))),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
    ],
    # Without the features of `datasets` in the metadata, load_dataset("parquet") shows structs of bytes instead of images.
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


class ExportFormat(StrEnum):
    LLAVA = "llava"
    MESSAGES = "messages"
    PARQUET = "parquet"


class ImageOpener(Protocol):
    """What export needs of an `ImageSource`."""

    def open(self, image_id: str) -> Image.Image: ...


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written."""

    num_records: int
    path: Path
    bad_images: tuple[str, ...] = ()
    """One line per image that could not be read; its records are left out."""


def export(
    store: Store,
    rounds: Literal["all"] | int,
    format: ExportFormat | str,
    out: Path,
    images: ImageOpener,
    image_id_of: Callable[[Record], str] = lambda record: record.image_id,
) -> ExportReport:
    """Write the records of committed rounds to `out`, which appears whole or not at all.

    `images` opens what `image_id_of` says; give the latter when rounds draw on sets whose image ids can be equal.

    Raises:
        UserError: `out` exists or cannot be written, the round is not committed, the format is unknown, or there is nothing to write.
        DamagedFileError: a part of the run is not what its commit record says.
    """
    write = _writer(format)
    commits = _chosen(store, rounds)
    if out.exists():
        raise UserError(f"{out} exists; export never overwrites: choose another --out or remove it first")
    pictures = _Pictures(images, image_id_of)
    with _whole(out) as tmp:
        num_records = write((record for commit in commits for record in read_records(store, commit)), tmp, pictures)
        if num_records == 0:
            numbers = [commit.round for commit in commits]
            raise UserError(f"nothing to export: rounds {numbers} of {store.uri} hold {_nothing(format, pictures)}")
    return ExportReport(num_records, out, tuple(pictures.bad.values()))


def read_records(store: Store, commit: RoundCommit) -> list[Record]:
    """All records of a committed round, in the order of its shards.

    They lie in the round's parts of the record schema. Where selection wrote a record again, as trained on, the later part in the
    commit's list counts.

    Raises:
        DamagedFileError: a part is not what the commit record says.
        SchemaVersionError: a part was written in another version of the record schema.
    """
    records: dict[str, Record] = {}
    for file in commit.files:
        if file.path.startswith("rounds/") and file.path.endswith(".parquet"):
            table = store.read_part(file)
            if b"vigc_record_schema" in (table.schema.metadata or {}):
                records.update((record.record_id, record) for record in records_in(file.path, table))
    return list(records.values())


class _Pictures:
    """The images of the exported records as PNG files, and why some are not to be had."""

    def __init__(self, images: ImageOpener, image_id_of: Callable[[Record], str]) -> None:
        self.bad: dict[str, str] = {}
        self._images = images
        self._image_id_of = image_id_of
        self._latest = ("", b"")  # the records of an image follow each other

    def png(self, record: Record) -> tuple[str, bytes] | None:
        """File name and bytes; None for an image that cannot be read."""
        image_id = self._image_id_of(record)
        name = f"{image_id}.png"
        if image_id not in self.bad and self._latest[0] != name:
            try:
                self._latest = (name, _png(self._images.open(image_id)))
            except BadImageError as error:
                self.bad[image_id] = str(error)
        return None if image_id in self.bad else self._latest

    def set_aside(self, record: Record, reason: str) -> None:
        """Leave the image of a record out, and those of others with it."""
        self.bad[self._image_id_of(record)] = reason


def _png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def _write_llava(records: Iterator[Record], folder: Path, pictures: _Pictures) -> int:
    entries = []
    for record, name, png in _illustrated(records, pictures):
        target = folder / "images" / _inside(name)
        try:
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(png)
        except OSError as error:
            if error.errno not in _ERRORS_OF_NAMES:
                raise
            pictures.set_aside(record, f"{printable(name)}: its name cannot be written ({error.strerror})")
            continue
        turns = [("human", f"{_IMAGE_TOKEN}\n{_plain(record.question)}"), ("gpt", _plain(record.answer))]
        entries.append(
            {
                "id": record.record_id,
                "image": name,
                "type": record.question_type,
                "conversations": [{"from": speaker, "value": text} for speaker, text in turns],
            }
        )
    folder.mkdir(exist_ok=True)
    (folder / "data.json").write_text(json.dumps(entries, indent=1, ensure_ascii=False), encoding="utf-8")
    return len(entries)


def _write_messages(records: Iterator[Record], file: Path, pictures: _Pictures) -> int:
    rows = (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": record.question}]},
                {"role": "assistant", "content": [{"type": "text", "text": record.answer}]},
            ],
            "images": [{"bytes": png, "path": name}],
        }
        for record, name, png in _illustrated(records, pictures)
    )
    return _write_rows(rows, file, MESSAGES_SCHEMA, lambda group: pa.Table.from_pylist(group, schema=MESSAGES_SCHEMA))


def _write_parquet(records: Iterator[Record], file: Path, pictures: _Pictures) -> int:
    return _write_rows(records, file, RECORD_SCHEMA, to_table)


def _write_rows(rows: Iterator[_Row], file: Path, schema: pa.Schema, table_of: Callable[[list[_Row]], pa.Table]) -> int:
    num_rows = 0
    with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
        while group := list(islice(rows, _ROWS_PER_GROUP)):
            writer.write_table(table_of(group))
            num_rows += len(group)
    return num_rows


def _illustrated(records: Iterator[Record], pictures: _Pictures) -> Iterator[tuple[Record, str, bytes]]:
    """Accepted records with the file name and bytes of their image."""
    for record in records:
        if record.accepted and (picture := pictures.png(record)) is not None:
            yield record, *picture


def _plain(text: str) -> str:
    """A model may write the image token; LLaVA's readers would look for a second image."""
    return " ".join(text.replace(_IMAGE_TOKEN, " ").split()) if _IMAGE_TOKEN in text else text


def _inside(name: str) -> str:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise StoreError(f"image id {name.removesuffix('.png')!r} leads out of the export's folder")
    return name


def _nothing(format: ExportFormat | str, pictures: _Pictures) -> str:
    if format == ExportFormat.PARQUET:
        return "no records"
    unreadable = f" ({len(pictures.bad)} images cannot be read, the first: {next(iter(pictures.bad.values()))})" if pictures.bad else ""
    return f"no accepted records with readable images{unreadable}"


def _writer(format: ExportFormat | str) -> Callable[[Iterator[Record], Path, _Pictures], int]:
    writers = {ExportFormat.LLAVA: _write_llava, ExportFormat.MESSAGES: _write_messages, ExportFormat.PARQUET: _write_parquet}
    if format not in writers:
        raise UserError(f"unknown export format {format!r}; expected one of {[str(name) for name in writers]}")
    return writers[ExportFormat(format)]


def _chosen(store: Store, rounds: Literal["all"] | int) -> list[RoundCommit]:
    committed = store.committed_rounds()
    if not committed or rounds not in ("all", *committed):
        raise UserError(f"round {rounds} of {store.uri} is not committed; committed rounds are {committed}")
    return store.commits() if rounds == "all" else [store.read_commit(rounds)]


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A path beside `out` to write a file or folder at; it becomes `out` when the block ends well and is gone otherwise."""
    tmp = out.with_name(f".{out.name}.{uuid4().hex}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield tmp
        fsync_tree(tmp)
        os.rename(tmp, out)
    except OSError as error:
        raise UserError(f"the export to {out} failed: {error}; choose an --out that you can write to") from error
    finally:
        if tmp.is_dir():
            shutil.rmtree(tmp)
        elif tmp.exists():
            tmp.unlink()
