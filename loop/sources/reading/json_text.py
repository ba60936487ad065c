"""Read the records of an untrusted JSON or JSON Lines file."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

from loop.errors import UserError, one_line, printable
from loop.sources.reading.odd_records import BadRecordError, Fault
from loop.sources.reading.places import ACCESS_ERRORS, Place
from policies.texts import decoded_text

_LINES = (".jsonl", ".ndjson")
_NO_SPACE = re.compile(r"\S")


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """A line that is not JSON."""

    reason: str


@dataclass(frozen=True, slots=True)
class DoubledKey:
    """A record in which a key appears twice in one object, with different values: the last would silently win."""

    key: str


class _DoubledKeys(dict[str, Any]):
    key: str = ""


def read_entries(file: Place, what: str, expected: str) -> list[tuple[str, Any]]:
    """Every entry of a JSON list, or of JSON Lines, with its place as errors name it.

    Raises:
        UserError: the file cannot be read, is not such a list, or is empty.
    """
    doubled: list[_DoubledKeys] = []
    decoder = json.JSONDecoder(object_pairs_hook=partial(_object, doubled))
    try:
        with file.open() as stream:
            text = decoded_text(stream.read())
        if file.name.endswith(_LINES) or _is_lines(text):
            entries = [_line(line, decoder) for line in text.split("\n")]
            lines = [(f"line {number} of {file.address}", one) for number, one in enumerate(entries, 1) if one is not None]
            return _marked(lines) if doubled else lines
        entries = decoder.decode(text)
    except UserError:
        raise
    except (*ACCESS_ERRORS, RecursionError) as error:
        reason = printable(one_line(error))
        raise UserError(f"{what} {file.address} cannot be read: {reason}; expected a JSON list of {expected}, or JSON Lines") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{what} {file.address} holds no list of {expected}")
    records = [(f"record {index} of {file.address}", entry) for index, entry in enumerate(entries)]
    return _marked(records) if doubled else records


def _marked(records: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The records, those with a doubled key as `DoubledKey`."""
    return [(where, DoubledKey(key) if (key := _found_twice(entry)) else entry) for where, entry in records]


def checked_object(entry: Any, where: str, expected: str) -> dict[str, Any]:
    """An entry that is an object without repeated keys.

    Raises:
        BadRecordError: it is anything else.
    """
    if isinstance(entry, BrokenLine):
        raise BadRecordError(Fault.NO_JSON, f"{where} is not JSON: {entry.reason}")
    if isinstance(entry, DoubledKey):
        raise BadRecordError(Fault.TWICE, f"{where} has the key {entry.key[:80]!r} twice in one object, with different values")
    if not isinstance(entry, dict):
        raise BadRecordError(Fault.NOT_AN_OBJECT, f"{where} is {type(entry).__name__}; expected an object with image and {expected}")
    return entry


def _found_twice(value: Any) -> str:
    if isinstance(value, _DoubledKeys):
        return value.key
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((key for one in inner if isinstance(one, dict | list) and (key := _found_twice(one))), "")


def _object(doubled: list[_DoubledKeys], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs) and (key := next((key for key, value in pairs if found[key] != value), None)) is not None:
        found = _DoubledKeys(found)
        found.key = key
        doubled.append(found)
    return found


def _is_lines(text: str) -> bool:
    """Whether the first line is an object of its own, and more follows: JSON Lines, whatever the file is called."""
    start = _first_character(text, 0)  # without copying a file of a gigabyte
    end = text.find("\n", start)
    return (
        end > 0 and text.startswith("{", start) and text[:end].rstrip().endswith("}") and text.startswith("{", _first_character(text, end))
    )


def _first_character(text: str, start: int) -> int:
    """Index of the first character that is not white space."""
    found = _NO_SPACE.search(text, start)
    return len(text) if found is None else found.start()


def _line(line: str, decoder: json.JSONDecoder) -> Any:
    """The value of a line; None for a blank one."""
    try:
        return decoder.decode(line) if line.strip() else None
    except (ValueError, RecursionError) as error:
        return BrokenLine(f"{one_line(error)}: {line.strip()[:80]!r}")
