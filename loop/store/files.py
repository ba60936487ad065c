"""Output folders other than runs: atomic writes, and a lock against other processes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from loop.errors import LockedError, UserError, WriteError
from loop.store.storage.local import LocalStorage

HOW_TO_CONTINUE = "run the same command again to continue"


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line. Raises `WriteError`."""
    write(path, "".join(json.dumps(record) + "\n" for record in records).encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one readable JSON object. Raises `WriteError`."""
    write(path, json.dumps(content, indent=1).encode() + b"\n")


def write(path: Path, data: bytes) -> None:
    """Write a file atomically; it is durable on return.

    Raises:
        WriteError: the disk is full, read-only, or gone.
    """
    try:
        LocalStorage(path.parent.absolute()).write(path.name, data)
    except WriteError as error:
        raise WriteError(error.path, error.reason, HOW_TO_CONTINUE) from error


@contextmanager
def locked(storage: LocalStorage) -> Iterator[None]:
    """Keep other processes out of an output folder.

    Raises:
        LockedError: another process is writing into it.
        UserError: it cannot be written.
    """
    with ExitStack() as held:
        try:
            held.enter_context(storage.exclusive())
        except BlockingIOError as error:
            raise LockedError(f"{storage.uri} is being written by another process; wait for it or choose another --out") from error
        except WriteError as error:
            raise UserError(f"{storage.uri} cannot be written: {error.reason}; choose another --out") from error
        yield
