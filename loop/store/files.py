"""Files that a command writes outside of runs: whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loop.errors import WriteError
from loop.store.storage import LocalStorage

GO_ON = "run the same command again: it goes on"


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """A JSON object a line. Raises `WriteError`."""
    write(path, "".join(json.dumps(record) + "\n" for record in records).encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """One readable JSON object. Raises `WriteError`."""
    write(path, json.dumps(content, indent=1).encode() + b"\n")


def write(path: Path, data: bytes) -> None:
    """Whole or not at all, durable on return.

    Raises:
        WriteError: the disk takes it not.
    """
    try:
        LocalStorage(path.parent.absolute()).write(path.name, data)
    except WriteError as error:
        raise WriteError(error.path, error.reason, GO_ON) from error
