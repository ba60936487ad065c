"""Write the formats of an export."""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loop.errors import printable
from loop.export.pictures import Picture, Pictures
from policies.generation.instructions import vig_target
from policies.records import EXPORTED_IMAGE, IMAGE_MARK, RECORD_SCHEMA, Record

DATA_JSON, DATA_JSONL, DATA_PARQUET = "data.json", "data.jsonl", "data.parquet"
DATASET_INFO = "dataset_info.json"
"""How LlamaFactory finds its data in a folder."""
IMAGES, METADATA = "images", "metadata.jsonl"
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


def write_llava(records: Iterator[Record], folder: Path, pictures: Pictures, counts: ExportCounts) -> None:
    """LLaVA's conversations as `data.json` and the images beside it."""
    _write_json(folder, [_llava_entry(record, name) for record, name in _with_files(records, folder, pictures, counts)])


def write_vigc(records: Iterator[Record], folder: Path, pictures: Pictures, counts: ExportCounts) -> None:
    """What VIGC keeps of each record that it generates, as `data.json`, and the images beside it."""
    _write_json(folder, [_vigc_entry(record, name) for record, name in _with_files(records, folder, pictures, counts)])


def write_sharegpt(records: Iterator[Record], folder: Path, pictures: Pictures, counts: ExportCounts) -> None:
    """ShareGPT's conversations as LlamaFactory reads them: `data.json`, the images beside it, and `dataset_info.json`, which names both."""
    _write_json(folder, [_sharegpt_entry(record, name) for record, name in _with_files(records, folder, pictures, counts)])
    columns = {"messages": "conversations", "images": "images"}
    info = {"vigc_loop": {"file_name": DATA_JSON, "formatting": "sharegpt", "columns": columns}}
    (folder / DATASET_INFO).write_text(json.dumps(info, indent=1), encoding="utf-8")


def write_swift(records: Iterator[Record], folder: Path, pictures: Pictures, counts: ExportCounts) -> None:
    """ms-swift's messages as `data.jsonl`, and the images beside it."""
    entries = [_swift_entry(record, name) for record, name in _with_files(records, folder, pictures, counts)]
    _write_lines(folder / DATA_JSONL, entries)
    _write_metadata(folder, entries)


def write_messages(records: Iterator[Record], file: Path, pictures: Pictures, counts: ExportCounts) -> None:
    """A Parquet file of `MESSAGES_SCHEMA`."""

    def rows() -> Iterator[dict[str, Any]]:
        for record, picture in _illustrated(records, pictures):
            counts.add(record, picture.name)
            yield _messages_row(record, picture)

    _write_rows(rows(), file, MESSAGES_SCHEMA)


def write_parquet(records: Iterator[Record], file: Path, pictures: Pictures, counts: ExportCounts) -> None:
    """A Parquet file of all records with their images; one that cannot be read is null."""

    def rows() -> Iterator[dict[str, Any]]:
        for record in records:
            counts.add(record, pictures.image_id_of(record))
            picture = pictures.of(record)
            yield {**asdict(record), EXPORTED_IMAGE: None if picture is None else _image_cell(picture)}

    _write_rows(rows(), file, PARQUET_SCHEMA)


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


def _write_json(folder: Path, entries: list[dict[str, Any]]) -> None:
    """Write the data in the format, and for `datasets` the same as metadata of the images, so that it shows pictures, not names."""
    (folder / DATA_JSON).write_text(json.dumps(entries, indent=1, ensure_ascii=False), encoding="utf-8")
    _write_metadata(folder, entries)


def _write_metadata(folder: Path, entries: list[dict[str, Any]]) -> None:
    if entries:
        _write_lines(folder / METADATA, _as_metadata(entries))


def _write_lines(file: Path, entries: Iterable[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in entries), encoding="utf-8")


def _as_metadata(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Entries with equal columns and types: if one has several answers, all have lists."""
    columns = list(dict.fromkeys(key for entry in entries for key in entry if key not in ("image", "images")))
    lists = {key for entry in entries for key, value in entry.items() if isinstance(value, list)}
    for entry in entries:
        row = {key: [value] if key in lists and isinstance(value := entry.get(key), str) else entry.get(key) for key in columns}
        yield {"file_name": entry["images"][0] if "images" in entry else f"{IMAGES}/{entry['image']}", **row}


def _write_rows(rows: Iterator[dict[str, Any]], file: Path, schema: pa.Schema) -> None:
    with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
        while group := list(islice(rows, _ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _illustrated(records: Iterator[Record], pictures: Pictures) -> Iterator[tuple[Record, Picture]]:
    """Accepted records with their image."""
    for record in records:
        if record.accepted and (picture := pictures.of(record)) is not None:
            yield record, picture


def _plain(text: str) -> str:
    """`text` without the image token, which a model may write: LLaVA's readers would expect a second image."""
    return " ".join(text.replace(IMAGE_MARK, " ").split()) if IMAGE_MARK in text else text
