"""What the formats of an export look like on disk."""

from __future__ import annotations

import errno
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from actors.images import BadImageError
from loop.errors import StoreError, printable
from policies.instructions import vig_target
from policies.records import RECORD_SCHEMA, Record, to_table

DATA_JSON, DATA_PARQUET = "data.json", "data.parquet"
IMAGES = "images"
_ROWS_PER_GROUP = 100
"""Rows of a Parquet row group: with images inside, readers that stream hold one group in memory."""

_ERRORS_OF_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL)
"""What a file system says of names that it cannot hold, alone or beside others."""

_IMAGE_TOKEN = "<image>"
_Row = TypeVar("_Row")

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


class ImageOpener(Protocol):
    """What export needs of an `ImageSource`."""

    def open(self, image_id: str) -> Image.Image: ...


@dataclass
class Tally:
    """What has been written."""

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


class Pictures:
    """The images of the exported records as PNG files, and why some are not to be had."""

    def __init__(self, images: ImageOpener, image_id_of: Callable[[Record], str]) -> None:
        self.bad: dict[str, str] = {}
        self.image_id_of = image_id_of
        self._images = images
        self._latest = ("", b"")  # the records of an image follow each other

    def png(self, record: Record) -> tuple[str, bytes] | None:
        """File name and bytes; None for an image that cannot be read."""
        image_id = self.image_id_of(record)
        name = f"{image_id}.png"
        if image_id not in self.bad and self._latest[0] != name:
            try:
                self._latest = (name, _png(self._images.open(image_id)))
            except BadImageError as error:
                self.bad[image_id] = str(error)
        return None if image_id in self.bad else self._latest

    def set_aside(self, record: Record, reason: str) -> None:
        """Leave the image of a record out, and those of others with it."""
        self.bad[self.image_id_of(record)] = reason


Writer = Callable[[Iterator[Record], Path, Pictures, Tally], None]
"""Writes records to a file, or into a folder that exists, and tallies those it has written."""


def write_llava(records: Iterator[Record], folder: Path, pictures: Pictures, tally: Tally) -> None:
    """LLaVA's conversations as `data.json` and the images beside it."""
    _write_json(folder, [_llava_entry(record, name) for record, name in _with_files(records, folder, pictures, tally)])


def write_vigc(records: Iterator[Record], folder: Path, pictures: Pictures, tally: Tally) -> None:
    """What VIGC keeps of each record that it generates, as `data.json`, and the images beside it."""
    _write_json(folder, [_vigc_entry(record, name, pictures) for record, name in _with_files(records, folder, pictures, tally)])


def write_messages(records: Iterator[Record], file: Path, pictures: Pictures, tally: Tally) -> None:
    """A Parquet file of `MESSAGES_SCHEMA`."""

    def rows() -> Iterator[dict[str, Any]]:
        for record, (name, png) in _illustrated(records, pictures):
            tally.add(record, name)
            yield _messages_row(record, name, png)

    _write_rows(rows(), file, MESSAGES_SCHEMA, lambda group: pa.Table.from_pylist(group, schema=MESSAGES_SCHEMA))


def write_parquet(records: Iterator[Record], file: Path, pictures: Pictures, tally: Tally) -> None:
    """A Parquet file of all records, without images."""

    def tallied() -> Iterator[Record]:
        for record in records:
            tally.add(record, pictures.image_id_of(record))
            yield record

    _write_rows(tallied(), file, RECORD_SCHEMA, to_table)


def _llava_entry(record: Record, name: str) -> dict[str, Any]:
    turns = [("human", f"{_IMAGE_TOKEN}\n{_plain(record.question)}"), ("gpt", _plain(record.answer))]
    conversation = [{"from": speaker, "value": text} for speaker, text in turns]
    return {"id": record.record_id, "image": name, "type": record.question_type, "conversations": conversation}


def _vigc_entry(record: Record, name: str, pictures: Pictures) -> dict[str, Any]:
    """The fields of VIGC's `llava_150k_gen`, and of its `vqg_test` where there are several short answers. What VIC would have written to
    the bare question up to its end, `answer_given_question`, a run does not keep."""
    short = {"answer": list(record.short_answers), "weight": list(record.short_answer_weights)} if record.short_answers else {}
    return {
        "image": name,
        "image_id": pictures.image_id_of(record),
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


def _messages_row(record: Record, name: str, png: bytes) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": record.question}]},
            {"role": "assistant", "content": [{"type": "text", "text": record.answer}]},
        ],
        "images": [{"bytes": png, "path": name}],
        "id": record.record_id,
        "type": record.question_type,
    }


def _with_files(records: Iterator[Record], folder: Path, pictures: Pictures, tally: Tally) -> Iterator[tuple[Record, str]]:
    """Accepted records whose image is a file of the folder now, with its name under `images/`."""
    for record, (name, png) in _illustrated(records, pictures):
        target = folder / IMAGES / _inside(name)
        try:
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(png)
        except OSError as error:
            if error.errno not in _ERRORS_OF_NAMES:
                raise
            pictures.set_aside(record, f"{printable(name)}: its name cannot be written ({error.strerror})")
            continue
        tally.add(record, name)
        yield record, name


def _write_json(folder: Path, entries: list[dict[str, Any]]) -> None:
    (folder / DATA_JSON).write_text(json.dumps(entries, indent=1, ensure_ascii=False), encoding="utf-8")


def _write_rows(rows: Iterator[_Row], file: Path, schema: pa.Schema, table_of: Callable[[list[_Row]], pa.Table]) -> None:
    with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
        while group := list(islice(rows, _ROWS_PER_GROUP)):
            writer.write_table(table_of(group))


def _illustrated(records: Iterator[Record], pictures: Pictures) -> Iterator[tuple[Record, tuple[str, bytes]]]:
    """Accepted records with the file name and bytes of their image."""
    for record in records:
        if record.accepted and (picture := pictures.png(record)) is not None:
            yield record, picture


def _png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def _plain(text: str) -> str:
    """A model may write the image token; LLaVA's readers would look for a second image."""
    return " ".join(text.replace(_IMAGE_TOKEN, " ").split()) if _IMAGE_TOKEN in text else text


def _inside(name: str) -> str:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise StoreError(f"image id {name.removesuffix('.png')!r} leads out of the export's folder")
    return name
