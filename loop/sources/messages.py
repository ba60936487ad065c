"""Labelled data as chat messages beside images, in Parquet: what `vigc export --format messages` writes, and TRL and `datasets` read.

    messages: [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What ...?"}]},
               {"role": "assistant", "content": [{"type": "text", "text": "..."}]}]
    images: [{"bytes": ..., "path": ...}]

`content` may be a plain text in which `<image>` marks the image, as LlamaFactory and ms-swift write it. The columns `id`
and `type` are optional. In JSON the same is read as `llava_json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from loop.errors import UserError, one_line, printable
from loop.sources.labelled import Conversation, LabelledData, Turns, checked_type
from loop.sources.reading.chats import MESSAGES, chat_turns, checked_text
from loop.sources.reading.odd_records import OddRecords, OnBadRecord
from loop.sources.reading.places import ACCESS_ERRORS, stored_files
from loop.sources.tables import ParquetReader, TableImages
from policies.generation.instructions import AnyType, QuestionType

_ROWS_AT_ONCE, _ROWS_WITH_BYTES_AT_ONCE = 1000, 8
_IMAGES = "images"
_WANTED = ("messages", _IMAGES)
_JSON = (".json", ".jsonl")


class MessagesData(LabelledData):
    """Questions and answers of Parquet files of chat messages. Every row has its own image, with the id `FILE/ROW`, or its own images,
    with the ids `FILE/ROW#0`, `FILE/ROW#1` and so on."""

    def __init__(
        self, path: str | Path, question_type: AnyType = QuestionType.CONVERSATION, turns: Turns = "pairs",
        on_bad_record: OnBadRecord = "refuse",
    ) -> None:  # fmt: skip
        """Args:
            path: a Parquet file, a folder of such files, or a URI of either.
            question_type: of rows without `type`.
            turns: what a VIC sample is.
            on_bad_record: whether rows that cannot be used are refused, all of them at once, or left out and counted.

        Raises:
            UserError: a file cannot be read, rows are refused (the text names the first of each kind), or not one of the first images can
                be read.
        """
        place, names = stored_files(path, (".parquet",), "messages set")
        if json_file := next((name for name in names if name.lower().endswith(_JSON)), None):
            raise UserError(f"messages set {path} is JSON ({json_file}); take the kind llava_json, and its folder as `images`")
        self.question_type = question_type
        self._images = TableImages(place, names, ParquetReader, _IMAGES)
        super().__init__(path, turns, on_bad_record)

    def open(self, image_id: str) -> Image.Image:
        return self._images.open(image_id)

    def _read(self, odd: OddRecords) -> Iterator[Conversation]:
        for name in self._images.names:

            def convert(numbered: tuple[int, dict[str, Any]], name: str = name) -> Conversation:
                row, entry = numbered
                return self._conversation(name, row, entry, f"record {row} of {self._images.place.address}/{name}", odd)

            yield from odd.usable(enumerate(self._rows(name)), convert)

    def _conversation(self, name: str, row: int, entry: dict[str, Any], where: str, odd: OddRecords) -> Conversation:
        num_images = _num_images(entry[_IMAGES])
        first, *further = [f"{name}/{row}"] if num_images == 1 else [f"{name}/{row}#{place}" for place in range(num_images)] or [""]
        kind = self.question_type if entry.get("type") is None else checked_type(entry["type"], where)
        title = checked_text(f"{name if entry.get('id') is None else entry['id']}#{row}", where)
        turns = chat_turns(entry["messages"], MESSAGES, where, odd, needs_token=False, num_images=num_images)
        return Conversation(title, first, kind, turns, further_images=tuple(further))

    def _rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Rows of a file; of their images only the number is used."""
        where = f"{self._images.place.address}/{name}"
        try:
            with self._images.place.open(name) as stream:
                file = pq.ParquetFile(stream)
                _check_columns(file.schema_arrow, where)
                leaf, num_rows = _cheapest_leaf(file)
                columns = [*(one for one in ("messages", "id", "type") if one in file.schema_arrow.names), leaf]
                for batch in file.iter_batches(num_rows, columns=columns):
                    yield from batch.to_pylist()
        except ACCESS_ERRORS as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"messages file {where} cannot be read: {printable(one_line(error))}; restore it") from error


def _cheapest_leaf(file: pq.ParquetFile) -> tuple[str, int]:
    """The column to count images by, and the rows to read at once: their paths if there are any, else their bytes."""
    leaves = [path for number in range(len(file.schema)) if (path := str(file.schema.column(number).path)).split(".")[0] == _IMAGES]
    paths = [leaf for leaf in leaves if leaf.endswith(".path")]
    return (paths[0], _ROWS_AT_ONCE) if paths else (_IMAGES, _ROWS_WITH_BYTES_AT_ONCE)


def _num_images(value: Any) -> int:
    images = value if isinstance(value, list) else [value]
    return sum(image is not None for image in images)


def _check_columns(schema: pa.Schema, where: str) -> None:
    if missing := [one for one in _WANTED if one not in schema.names]:
        raise UserError(f"messages file {where} has no column {missing[0]!r}; expected {list(_WANTED)}, found {schema.names}")
