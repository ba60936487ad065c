"""Adapt JSON files for ijson, whichever editor or library wrote them."""

from __future__ import annotations

import codecs
import re
from typing import Protocol

from loop.errors import UserError
from policies.texts import TextFileError, refuse_compressed

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|(?P<number>-?Infinity|NaN)|(?P<open>"(?:[^"\\]|\\.)*\\?\Z)', re.DOTALL)
_MAX_WORD_BYTES = len(b"-Infinity")
_WORDS = (b"NaN", b"Infinity")
_WORD_BYTES = b"-NaInfity"
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class JsonStream:
    """Bytes of a JSON file without a byte order mark, and with null for NaN and Infinity, which Python's json writes but JSON forbids."""

    def __init__(self, stream: Readable, name: str) -> None:
        """Args:
            stream: the file from its beginning.
            name: of the file, in errors.

        Raises:
            UserError: it is compressed, or not UTF-8.
        """
        self._stream = stream
        self._held = stream.read(4)
        self._is_over = self._in_text = False
        if self._held.startswith(_WIDE_MARKS):
            raise UserError(f"{name} cannot be read: it is UTF-16 or UTF-32 text; save it as UTF-8")
        try:
            refuse_compressed(self._held)
        except TextFileError as error:
            raise UserError(f"{name} cannot be read: {error}") from error
        self._held = self._held.removeprefix(codecs.BOM_UTF8)

    def read(self, size: int) -> bytes:
        """At least one byte where there are any; no bytes for `size` 0, with which ijson probes the type of a stream."""
        while size and not self._is_over:
            data = self._stream.read(size)
            self._is_over = not data
            if done := self._cleaned(self._held + data):
                return done
        return b""

    def _cleaned(self, data: bytes) -> bytes:
        """The part of `data` that can be passed on: a word or an escape that may continue in the next bytes is held back."""
        end = len(data) if self._is_over else _safe_end(data)
        self._held, data = data[end:], data[:end]
        if not any(word in data for word in _WORDS):
            bare = data.replace(rb"\\", b"") if b"\\" in data else data
            self._in_text ^= (bare.count(b'"') - bare.count(rb"\"")) % 2 == 1
            return data
        opening = b'"' if self._in_text else b""
        data = opening + data
        pieces, position, self._in_text = [], 0, False
        for found in _TOKEN.finditer(data):
            if found["number"] is not None:
                pieces += [data[position : found.start()], b"null"]
                position = found.end()
            self._in_text = found["open"] is not None
        return b"".join([*pieces, data[position:]]).removeprefix(opening)


def _safe_end(data: bytes) -> int:
    """Where `data` can be cut without cutting a word or an escape."""
    end = len(data.rstrip(b"\\"))
    if end < len(data):
        return end
    start = max(0, end - _MAX_WORD_BYTES)
    return start + len(data[start:].rstrip(_WORD_BYTES))
