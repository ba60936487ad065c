"""Decode text files, whichever editor saved them, and give names and words their usual forms."""

from __future__ import annotations

import codecs
from collections.abc import Collection
from itertools import count

_GZIP, _ZSTD, _ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"
_COMPRESSED = {_GZIP: "gzip", _ZSTD: "zstd", _ZIP: "zip"}
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be",
          codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}  # fmt: skip
"""Byte order marks; those of UTF-32 begin like those of UTF-16."""


class TextFileError(ValueError):
    """Bytes are not text. The message is one line that says what they are and what to do; `what` follows the name of a file."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.what, self.remedy = what, remedy

    def __str__(self) -> str:
        return f"it {self.what}; {self.remedy}"


def decoded_text(data: bytes) -> str:
    """UTF-8 with or without a byte order mark, or UTF-16 or UTF-32 with one.

    Raises:
        TextFileError: it is compressed, or of another encoding.
    """
    refuse_compressed(data)
    mark = next((mark for mark in _MARKS if data.startswith(mark)), b"")
    encoding = _MARKS.get(mark, "utf-8")
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        place = f"{error.reason} at byte {error.start + len(mark)}"
        raise TextFileError(f"is not valid {encoding.upper()} text: {place}", "save it as UTF-8") from error


def refuse_compressed(data: bytes) -> None:
    """Raises `TextFileError` if bytes begin like a compressed file."""
    if packer := next((name for magic, name in _COMPRESSED.items() if data.startswith(magic)), None):
        raise TextFileError(f"is compressed with {packer}", "unpack it first")


def word_set(words: str) -> frozenset[str]:
    """Words that are written in one text, separated by white space."""
    return frozenset(words.split())


def free_name(name: str, taken: Collection[str]) -> str:
    """The name itself, or with the first number from 2 on under which it is not taken: `NAME_2`."""
    return name if name not in taken else next(one for number in count(2) if (one := f"{name}_{number}") not in taken)


def with_article(noun: str) -> str:
    """`a ring`, `an orange ring`."""
    return f"an {noun}" if noun[:1].lower() in "aeiou" else f"a {noun}"
