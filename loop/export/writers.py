"""Write the formats of an export that are JSON: files beside images, and tars of both. `loop.export.tables` writes Parquet."""

from __future__ import annotations

import errno
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any

from loop.errors import printable
from loop.export.pictures import Picture, Pictures
from loop.export.rows import Batch, Rows
from policies.generation.instructions import vig_target
from policies.records import IMAGE_MARK

DATA_JSON, DATA_JSONL = "data.json", "data.jsonl"
DATASET_INFO = "dataset_info.json"
"""How LlamaFactory finds its data in a folder."""
IMAGES, METADATA = "images", "metadata.jsonl"
DATA_TARS = "data-*.tar"
"""The files of a WebDataset."""
RECORDS_PER_TAR = 10_000
COLUMNS = ("record_id", "image_id", "question_type", "question", "answer")
"""What most formats write of a record."""
_VIGC_COLUMNS = (*COLUMNS, "instruction", "original_answer", "sentences", "short_answers", "short_answer_weights")

_ERRORS_OF_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL)
"""What a file system raises on names that it cannot store."""

_Entry = dict[str, Any]


@dataclass
class ExportCounts:
    """How much has been written."""

    types: Counter[str] = field(default_factory=Counter)
    """Records by question type."""
    rounds: Counter[int] = field(default_factory=Counter)

    @property
    def num_records(self) -> int:
        return self.types.total()

    def add(self, round_index: int, question_type: str) -> None:
        """Count a record."""
        self.types[question_type] += 1
        self.rounds[round_index] += 1


Writer = Callable[[Rows, Path, ExportCounts], None]
"""Writes records to a file or into an existing folder, and adds them to the counts."""
ShardedWriter = Callable[[Rows, Path, ExportCounts, int | None], None]
"""A writer that takes the number of records per file; `None` is one file, or the usual number of the format."""


def write_llava(rows: Rows, folder: Path, counts: ExportCounts) -> None:
    """LLaVA's conversations as `data.json` and the images beside it."""
    _write_json(folder / DATA_JSON, rows, COLUMNS, llava_entry, counts)


def write_vigc(rows: Rows, folder: Path, counts: ExportCounts) -> None:
    """What VIGC keeps of each record that it generates, as `data.json`, and the images beside it."""
    _write_json(folder / DATA_JSON, rows, _VIGC_COLUMNS, _vigc_entry, counts)


def write_sharegpt(rows: Rows, folder: Path, counts: ExportCounts) -> None:
    """ShareGPT's conversations as LlamaFactory reads them: `data.json`, the images beside it, and `dataset_info.json`, which names both."""
    _write_json(folder / DATA_JSON, rows, COLUMNS, _sharegpt_entry, counts)
    columns = {"messages": "conversations", "images": "images"}
    info = {"vigc_loop": {"file_name": DATA_JSON, "formatting": "sharegpt", "columns": columns}}
    (folder / DATASET_INFO).write_text(json.dumps(info, indent=1), encoding="utf-8")


def write_swift(rows: Rows, folder: Path, counts: ExportCounts) -> None:
    """ms-swift's messages as `data.jsonl`, and the images beside it."""
    _write_json(folder / DATA_JSONL, rows, COLUMNS, _swift_entry, counts)


def write_webdataset(rows: Rows, folder: Path, counts: ExportCounts, shard_size: int | None = None) -> None:
    """WebDataset: tars `data-00000.tar` and so on; a sample is an image and a `.json` file of LLaVA's fields, both named by the record."""
    with closing(rows.batches(COLUMNS)) as batches:
        illustrated, number = _illustrated(batches, counts), 0
        while first := next(illustrated, None):
            with tarfile.open(folder / DATA_TARS.replace("*", f"{number:05d}"), "w") as tar:
                for row, picture in chain([first], islice(illustrated, (shard_size or RECORDS_PER_TAR) - 1)):
                    record_id = row["record_id"]
                    name = f"{record_id}{PurePosixPath(picture.name).suffix}"
                    _add_member(tar, name, picture.data)
                    _add_member(tar, f"{record_id}.json", json.dumps(llava_entry(row, name), ensure_ascii=False).encode())
            number += 1


def _illustrated(batches: Iterator[Batch], counts: ExportCounts) -> Iterator[tuple[dict[str, Any], Picture]]:
    """Records with their image, counted."""
    for batch in batches:
        for row, picture in zip(batch.rows(), batch.pictures, strict=True):
            if picture is not None:
                counts.add(batch.round, row["question_type"])
                yield row, picture


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file without times and owners, so that the same records give the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def llava_entry(row: dict[str, Any], name: str) -> _Entry:
    """A record with `COLUMNS` about the image `name`, as LLaVA writes it."""
    return {
        "id": row["record_id"],
        "image": name,
        "image_id": row["image_id"],
        "type": row["question_type"],
        "conversations": _turns(row, f"{IMAGE_MARK}\n"),
    }


def _sharegpt_entry(row: dict[str, Any], name: str) -> _Entry:
    return {
        "conversations": _turns(row, IMAGE_MARK),
        "images": [f"{IMAGES}/{name}"],
        "id": row["record_id"],
        "image_id": row["image_id"],
        "type": row["question_type"],
    }


def _swift_entry(row: dict[str, Any], name: str) -> _Entry:
    return {
        "messages": [
            {"role": "user", "content": IMAGE_MARK + _plain(row["question"])},
            {"role": "assistant", "content": _plain(row["answer"])},
        ],
        "images": [f"{IMAGES}/{name}"],
        "id": row["record_id"],
        "image_id": row["image_id"],
        "type": row["question_type"],
    }


def _turns(row: dict[str, Any], before: str) -> list[dict[str, str]]:
    """Question and answer as LLaVA and ShareGPT spell turns, with `before` at the beginning."""
    return [{"from": "human", "value": before + _plain(row["question"])}, {"from": "gpt", "value": _plain(row["answer"])}]


def _vigc_entry(row: dict[str, Any], name: str) -> _Entry:
    """The fields of VIGC's `llava_150k_gen`, and of its `vqg_test` where there are several short answers. `answer_given_question`, VIC's
    complete answer to the bare question, is not kept by a run."""
    short = {"answer": row["short_answers"], "weight": row["short_answer_weights"]} if row["short_answers"] else {}
    return {
        "image": name,
        "image_id": row["image_id"],
        "instruction": row["instruction"],
        "question": row["question"],
        "answer": row["answer"],
        "whole_text": f"{row['instruction']} {vig_target(row['question'], row['answer'])}",
        "original_answer": row["original_answer"],
        "answer_given_question": None,
        "answer_lst": row["sentences"],
        **short,
        "id": row["record_id"],
        "type": row["question_type"],
    }


def _write_json(
    data: Path, rows: Rows, columns: tuple[str, ...], entry_of: Callable[[dict[str, Any], str], _Entry], counts: ExportCounts
) -> None:
    """Write an entry a line to `data`, between brackets if it is JSON, and the images; and the same as metadata of the images, so that
    `datasets` shows pictures, not names."""
    before, between, end = ("[\n", ",\n", "\n]\n") if data.name == DATA_JSON else ("", "\n", "\n")
    files = ImageFiles(data.parent / IMAGES, rows.pictures)
    with (
        data.open("w", encoding="utf-8") as lines,
        data.with_name(METADATA).open("w", encoding="utf-8") as metadata,
        closing(rows.batches(columns)) as batches,
    ):
        for batch in batches:
            for row, image_id, picture in zip(batch.rows(), batch.image_ids, batch.pictures, strict=True):
                if picture is not None and files.write(image_id, picture):
                    counts.add(batch.round, row["question_type"])
                    entry = entry_of(row, picture.name)
                    lines.write(before + _json(entry))
                    metadata.write(_json(_metadata(entry, picture.name)) + "\n")
                    before = between
        lines.write(end)


def _json(entry: _Entry) -> str:
    return json.dumps(entry, ensure_ascii=False)


def _metadata(entry: _Entry, name: str) -> _Entry:
    """An entry in the form that `datasets` reads beside images. Its columns have one type whatever the records are: VIGC's `answer` is
    always a list, and `weight` is always there."""
    row = {"file_name": f"{IMAGES}/{name}", **{key: value for key, value in entry.items() if key not in ("image", "images")}}
    if "answer" in row:
        row |= {"answer": [row["answer"]] if isinstance(row["answer"], str) else row["answer"], "weight": row.get("weight")}
    return row


class ImageFiles:
    """The images of an export as files of a folder."""

    def __init__(self, folder: Path, pictures: Pictures) -> None:
        self._folder = folder
        self._pictures = pictures
        self._latest = ""  # the records of an image follow each other

    def write(self, image_id: str, picture: Picture) -> bool:
        """Write an image if it is not there yet; False if its name cannot be written, and its records are left out."""
        if picture.name == self._latest:
            return True
        target = self._folder / picture.name
        try:
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(picture.data)
        except OSError as error:
            if error.errno not in _ERRORS_OF_NAMES:
                raise
            self._pictures.set_aside(image_id, f"{printable(picture.name)}: its name cannot be written ({error.strerror})")
            return False
        self._latest = picture.name
        return True


def _plain(text: str) -> str:
    """`text` without the image token, which a model may write: LLaVA's readers would expect a second image."""
    return " ".join(text.replace(IMAGE_MARK, " ").split()) if IMAGE_MARK in text else text
