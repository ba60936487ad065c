"""Read the files of benchmarks, JSON, JSON Lines and tab-separated tables, and report every fault with its place."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from policies.texts import TextFileError, decoded_text

T = TypeVar("T")

MAX_FINDINGS = 20
"""Number of findings that an error names; the rest are counted."""
MAX_SHOWN = 80
"""Most characters of a quoted value."""


class BenchmarkDataError(ValueError):
    """Data or predictions do not fit the benchmark. `findings` holds one text for each fault."""

    def __init__(self, findings: Sequence[str]) -> None:
        super().__init__(list(findings))
        self.findings = list(findings)

    def __str__(self) -> str:
        more = len(self.findings) - MAX_FINDINGS
        return "\n".join(self.findings[:MAX_FINDINGS] + ([f"and {more} more like these"] if more > 0 else []))


class Entry(NamedTuple):
    """One record of a document and where it stands."""

    place: str
    value: Any


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: one JSON value, or the records of JSON Lines or of a table."""

    name: str
    content: Any
    """The JSON value; None for a file of lines."""
    entries: tuple[Entry, ...] | None
    """The records of a file of lines, or of a JSON list; None for any other JSON value."""

    def records(self, what: str) -> tuple[Entry, ...]:
        """The records of a file that must be a list of them.

        Raises:
            BenchmarkDataError: it is one JSON value, or a record is not an object.
        """
        if self.entries is None:
            raise BenchmarkDataError([f"{self.name} holds {kind(self.content)}; expected {what}"])
        faults = [f"{place} is {kind(value)}; expected an object" for place, value in self.entries if not isinstance(value, dict)]
        if faults:
            raise BenchmarkDataError([f"{self.name}, {fault}" for fault in faults])
        if not self.entries:
            raise BenchmarkDataError([f"{self.name} is empty; expected {what}"])
        return self.entries

    def listed(self, name: str) -> list[Entry]:
        """The objects in the list `name` of a file that is one JSON object.

        Raises:
            BenchmarkDataError: there is no such list of objects.
        """
        value = self.content.get(name) if isinstance(self.content, dict) else None
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise BenchmarkDataError([f"{self.name}: {name} is {show(value)}; expected a list of objects"])
        return [Entry(f"{name} {index}", one) for index, one in enumerate(value)]


def parse_document(name: str, data: bytes) -> Document:
    """Parse a file's bytes by its suffix: `.jsonl` is lines, `.tsv` a table with a header, `.txt` with tabs a table without one, whose
    entries are lists of cells; anything else is JSON or JSON Lines.

    Raises:
        BenchmarkDataError: it is not UTF-8, not JSON, or an object has a key twice.
    """
    try:
        text = decoded_text(data)
    except TextFileError as error:
        raise BenchmarkDataError([f"{name} {error.what}"]) from error
    if name.endswith(".tsv"):
        return Document(name, None, tuple(_rows(name, text)))
    if name.endswith(".txt") and "\t" in text.lstrip().partition("\n")[0] and text.lstrip()[0] not in "[{":
        lines = enumerate(text.splitlines(), 1)
        return Document(name, None, tuple(Entry(f"line {number}", line.split("\t")) for number, line in lines if line.strip()))
    if not name.endswith(".jsonl"):
        try:
            content = _loads(text)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise BenchmarkDataError([f"{name}, line {error.lineno}: not JSON ({error.msg} at column {error.colno})"]) from error
        except (ValueError, RecursionError) as error:
            raise BenchmarkDataError([f"{name}: {error}"]) from error
        else:
            entries = tuple(Entry(f"entry {index}", value) for index, value in enumerate(content)) if isinstance(content, list) else None
            return Document(name, content, entries)
    return Document(name, None, tuple(_lines(name, text)))


class Reader:
    """Collects the faults of one document and raises them together."""

    def __init__(self, document: Document) -> None:
        self.name = document.name
        self.findings: list[str] = []
        self._places: dict[tuple[str, str], str] = {}
        self._repeated: list[str] = []

    def fault(self, place: str, text: str) -> None:
        self.findings.append(f"{self.name}, {place}: {text}")

    def get(self, entry: Entry, name: str, types: type | tuple[type, ...], expected: str) -> Any:
        """The field `name` of a record, or None with a fault."""
        if name not in entry.value:
            self.fault(entry.place, f"no field {name!r} among {_keys(entry.value)}; expected {expected}")
            return None
        value = entry.value[name]
        if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
            self.fault(entry.place, f"{name} is {show(value)} ({kind(value)}); expected {expected}")
            return None
        return value

    def texts(self, entry: Entry, name: str, expected: str) -> tuple[str, ...]:
        """The field `name` as a list of texts; empty with a fault."""
        value = self.get(entry, name, list, expected)
        if value is None:
            return ()
        if not all(isinstance(one, str) for one in value):
            self.fault(entry.place, f"{name} is {show(value)}; expected {expected}")
            return ()
        return tuple(value)

    def id(self, entry: Entry, name: str) -> str:
        """The field `name` as an id; empty with a fault."""
        expected = "a text or a whole number"
        found = identity(self.get(entry, name, (str, int), expected))
        if not found and entry.value.get(name) == "":
            self.fault(entry.place, f"{name} is empty; expected {expected}")
        return found

    def once(self, place: str, identifier: str, what: str) -> None:
        """Note the id of a record; a repeated one is a fault, reported after the others."""
        first = self._places.setdefault((what, identifier), place)
        if identifier and first != place:
            self._repeated.append(f"{self.name}, {place}: {what} {identifier} appears twice, first at {first}")

    def done(self) -> None:
        """Raises:
        BenchmarkDataError: there were faults."""
        if self.findings or self._repeated:
            raise BenchmarkDataError([*self.findings, *self._repeated])


def read_records(documents: Iterable[Document], what: str, read: Callable[[Entry, Reader], T | None]) -> list[T]:
    """What `read` makes of each record of some files; it returns None for a record that cannot be used, and notes why in the reader.

    Raises:
        BenchmarkDataError: a file is not a list of records, or there were faults.
    """
    found: list[T] = []
    for document in documents:
        reader = Reader(document)
        found += [one for entry in document.records(what) if (one := read(entry, reader)) is not None]
        reader.done()
    return found


def identity(value: str | int | None) -> str:
    """An id as text: files spell the same id as a number and, as a key, as text."""
    return "" if value is None else str(value)


def kind(value: Any) -> str:
    """The kind of a JSON value, in JSON's terms."""
    names: Mapping[type, str] = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null" if value is None else type(value).__name__)


def show(value: Any) -> str:
    """A value as an error quotes it."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _keys(value: Mapping[str, Any]) -> str:
    return show(sorted(map(str, value)))


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {show(twice)} appears twice in one object")
    return found


_loads = json.JSONDecoder(object_pairs_hook=_no_twice).decode
"""One decoder for all lines: making one takes longer than a line."""


def _lines(name: str, text: str) -> list[Entry]:
    entries, findings = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entries.append(Entry(f"line {number}", _loads(line)))
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            findings.append(f"{name}, line {number}: not JSON ({reason}): {show(line)}")
    if findings:
        raise BenchmarkDataError(findings)
    return entries


def _rows(name: str, text: str) -> list[Entry]:
    csv.field_size_limit(2**31 - 1)  # a cell may contain a whole image as base64
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    entries, findings = [], []
    try:
        header = next(rows, [])
        for row in rows:
            place = f"line {rows.line_num}"
            if len(row) != len(header):
                findings.append(f"{name}, {place}: {len(row)} cells; the header has {len(header)}")
            else:
                entries.append(Entry(place, dict(zip(header, row, strict=True))))
    except csv.Error as error:
        findings.append(f"{name}, line {rows.line_num}: not a table ({error})")
    if findings:
        raise BenchmarkDataError(findings)
    return entries


Check = Callable[[Any], str | None]
"""Maps a value to what is wrong with it, as `... expected ...`; None if it is fine."""


def text_only(value: Any) -> str | None:
    """The check of answers that are one text."""
    return None if isinstance(value, str) else f"the answer is {show(value)} ({kind(value)}); expected a text"
