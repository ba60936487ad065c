"""Labelled data as chat messages beside images, in Parquet: what `vigc export --format messages` writes, and TRL and `datasets` read.

    messages: [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What ...?"}]},
               {"role": "assistant", "content": [{"type": "text", "text": "..."}]}]
    images: [{"bytes": ..., "path": ...}]

`content` may be a text alone. The columns `id` and `type` are optional.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from loop.errors import UserError, one_line, printable
from loop.sources.labelled import Conversation, LabelledData, Turns, checked_text, checked_type
from loop.sources.places import ACCESS_ERRORS, stored_files
from loop.sources.tables import ParquetReader, TableImages
from policies.instructions import AnyType, QuestionType

_ROWS_AT_ONCE = 1000
_WANTED = ("messages", "images")


class MessagesData(LabelledData):
    """Questions and answers of Parquet files of chat messages. Every row has an image of its own, with the id `FILE/ROW`."""

    def __init__(self, path: str | Path, question_type: AnyType = QuestionType.CONVERSATION, turns: Turns = "pairs") -> None:
        """Args:
            path: a Parquet file, a folder of such files, or a URI of either.
            question_type: of rows without `type`.
            turns: what a VIC sample is.

        Raises:
            UserError: a file or a row cannot be read (the text names the row), or the first image cannot be.
        """
        place, names = stored_files(path, (".parquet",), "messages set")
        self.question_type = question_type
        self._images = TableImages(place, names, ParquetReader, "images")
        super().__init__(path, turns)

    def open(self, image_id: str) -> Image.Image:
        return self._images.open(image_id)

    def _read(self) -> Iterator[Conversation]:
        for name in self._images.names:
            for row, (entry, where) in enumerate(self._rows(name)):
                kind = self.question_type if entry.get("type") is None else checked_type(entry["type"], where)
                title = checked_text(f"{name if entry.get('id') is None else entry['id']}#{row}", where)
                yield Conversation(title, f"{name}/{row}", kind, _turns(entry["messages"], where))

    def _rows(self, name: str) -> Iterator[tuple[dict[str, Any], str]]:
        """Rows of a file without its images, and how errors name each."""
        where = f"{self._images.place.address}/{name}"
        try:
            with self._images.place.open(name) as stream:
                file = pq.ParquetFile(stream)
                _check_columns(file.schema_arrow, where)
                columns = [one for one in ("messages", "id", "type") if one in file.schema_arrow.names]
                row = 0
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                    for entry in batch.to_pylist():
                        yield entry, f"record {row} of {where}"
                        row += 1
        except ACCESS_ERRORS as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"messages file {where} cannot be read: {printable(one_line(error))}; restore it") from error


def _check_columns(schema: pa.Schema, where: str) -> None:
    if missing := [one for one in _WANTED if one not in schema.names]:
        raise UserError(f"messages file {where} has no column {missing[0]!r}; expected {list(_WANTED)}, found {schema.names}")


def _turns(messages: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        raise UserError(f"{where}: messages must be a list of user and assistant in turn, ending with assistant")
    roles = ("user", "assistant") * (len(messages) // 2)
    texts = [_text(message, roles[position], position, f"{where}, message {position}") for position, message in enumerate(messages)]
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _text(message: Any, role: str, position: int, where: str) -> str:
    if not isinstance(message, dict) or message.get("role") != role:
        raise UserError(f"{where} must be of the role {role}")
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) and part.get("type") in ("text", "image") for part in parts):
        raise UserError(f"{where} has content {content!r:.80}; expected a text, or a list of parts of type text and image")
    if sum(part["type"] == "image" for part in parts) > (position == 0):
        raise UserError(f"{where}: a conversation is about one image, which stands in its first message")
    texts = [part.get("text") for part in parts if part["type"] == "text"]
    if not all(isinstance(text, str) for text in texts) or not "".join(map(str, texts)).strip():
        raise UserError(f"{where} is empty")
    return checked_text("\n".join(map(str, texts)), where).strip()
