"""Reads the journal of a command, also while it is locked by the command that runs."""

from __future__ import annotations

import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path


def documents(path: Path) -> set[str]:
    """The keys in a journal."""
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as reader:
        return {key.decode() for (key,) in reader.execute("SELECT key FROM documents WHERE key != x''")}


def await_documents(path: Path, num: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process has put so many documents, and has no more to put for now."""
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None
        assert time.monotonic() < deadline
        try:
            if path.exists() and len(documents(path)) >= num:
                break
        except sqlite3.DatabaseError:  # a page of it is being written
            pass
        time.sleep(0.05)
    time.sleep(0.5)  # what is there to be read may not be committed yet
