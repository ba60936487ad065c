"""A journal of paid-for answers: JSON documents by key, in one SQLite file.

Crash contract: a document is durable once `put` has returned. After SIGKILL or a power loss the file holds complete documents and nothing
else. SQLite guarantees this with a rollback journal beside the file and `synchronous=FULL`. WAL mode is not used because it does not work
on network filesystems; a rollback journal needs only their POSIX locks.

One process locks the file for the length of the `with` block. It must not open the file in any other way: POSIX drops a process's locks
on a file as soon as the process closes it once. Each document carries its hash, which is verified when the file is opened.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from loop.errors import DamagedFileError, SchemaVersionError, UserError, WriteError, one_line, printable
from loop.store.documents import canonical_json
from loop.store.files import HOW_TO_CONTINUE

_APPLICATION_ID = int.from_bytes(b"vigc")
_VERSION = 1
_ABOUT = ""
"""The key of the facts that all documents share."""


class Journal:
    """JSON objects by key, in one file."""

    def __init__(self, path: Path, about: Mapping[str, Any], commit_every_s: float = 0.0) -> None:
        """
        Args:
            path: the file; it and its folder are created if missing.
            about: facts that all documents share. An existing file with documents must have the same.
            commit_every_s: 0 makes each document durable before `put` returns. A kill loses at most the documents of this time.
        """
        self.path = path
        self._about = dict(about)
        self._commit_every_s = commit_every_s
        self._committed_s = time.monotonic()

    def __enter__(self) -> Self:
        """
        Raises:
            UserError: the file cannot be opened, another process holds it, or another program, version or command wrote it.
            DamagedFileError: the file was truncated or altered.
            WriteError: the disk is full or read-only.
        """
        try:
            self._prepare()
            self._db = sqlite3.connect(self.path, timeout=0.0)
        except (OSError, sqlite3.OperationalError) as error:
            raise UserError(f"{self.path} cannot be written: {one_line(error)}; choose another --out") from error
        try:
            with self._named_errors():
                self._open()
        except BaseException:
            self._db.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.commit()
        finally:
            self._db.close()

    def get(self, key: str) -> dict[str, Any] | None:
        """The document of a key; None if there is none."""
        with self._named_errors():
            row = self._db.execute("SELECT content FROM documents WHERE key = ?", [_bytes(key)]).fetchone()
        return None if row is None else json.loads(row[0])

    def documents(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """All keys with their documents, ordered by key."""
        with self._named_errors():
            for key, content in self._db.execute("SELECT key, content FROM documents WHERE key != ? ORDER BY key", [_bytes(_ABOUT)]):
                yield key.decode("utf-8", "surrogatepass"), json.loads(content)

    def put(self, key: str, document: Mapping[str, Any]) -> None:
        """Add or replace the document of a key. Raises `WriteError`: the disk is full, read-only or gone."""
        name, content = _bytes(key), canonical_json(document)
        with self._named_errors():
            self._db.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", [name, content, _digest(name, content)])
        if time.monotonic() - self._committed_s >= self._commit_every_s:
            self.commit()

    def commit(self) -> None:
        """Make all documents durable. Raises `WriteError`."""
        with self._named_errors():
            self._db.commit()
        self._committed_s = time.monotonic()

    def _prepare(self) -> None:
        old = self.path.with_suffix(".jsonl")
        if old.exists():
            raise UserError(
                f"{old} was written by an earlier vigc-loop, and this version does not read it; finish with the earlier version, choose "
                "another --out, or delete the file to ask for everything again"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def _open(self) -> None:
        """Lock the file until it is closed, create or check it, and write to it, so that a read-only file is refused before any request
        is made."""
        # In exclusive mode SQLite also syncs the end of a transaction. In normal mode it deletes the rollback journal without syncing
        # the folder, so a power loss could revert the last transaction.
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("BEGIN EXCLUSIVE")
        if self._pragma("schema_version") == 0:  # a new file
            self._db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version={_VERSION}")
            self._db.execute("CREATE TABLE documents (key BLOB PRIMARY KEY NOT NULL, content BLOB NOT NULL, sha256 BLOB NOT NULL)")
        elif self._pragma("application_id") != _APPLICATION_ID:
            raise UserError(f"{self.path} is a SQLite file of another program; expected one that vigc wrote; choose another --out")
        elif (version := self._pragma("user_version")) != _VERSION:
            raise SchemaVersionError(str(self.path), version, _VERSION)
        self._check()
        self.put(_ABOUT, self._about)
        self.commit()
        self._db.execute("PRAGMA journal_mode=DELETE")

    def _check(self) -> None:
        if (told := self._pragma("integrity_check")) != "ok":
            raise self._damaged(told)
        for key, content, digest in self._db.execute("SELECT CAST(key AS BLOB), CAST(content AS BLOB), sha256 FROM documents"):
            if _digest(key, content) != digest:
                raise self._damaged(f"hash mismatch in document {key!r:.80}")
        found, wanted = self.get(_ABOUT) or {}, self._about
        changed = next((name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)), None)
        if changed is not None and next(self.documents(), None) is not None:
            raise UserError(
                f"{self.path} holds answers made with {changed} {printable(str(found.get(changed)))}, but now it is "
                f"{printable(str(wanted.get(changed)))}; use the same value, or choose another --out"
            )

    def _pragma(self, name: str) -> Any:
        return self._db.execute(f"PRAGMA {name}").fetchone()[0]

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Translate SQLite's errors. A failed commit is rolled back, so that readers only see durable documents."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            match error.sqlite_errorcode & 0xFF:  # the other bits are details of the same error
                case sqlite3.SQLITE_BUSY:
                    raise UserError(f"{self.path} is being written by another process; wait for it or choose another --out") from error
                case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_ERROR:
                    raise self._damaged(str(error)) from error
                case _:
                    self._db.rollback()
                    raise WriteError(str(self.path), str(error), HOW_TO_CONTINUE) from error

    def _damaged(self, found: str) -> DamagedFileError:
        remedy = "restore it from a copy, choose another --out, or delete it to ask for everything again"
        return DamagedFileError(str(self.path), "a journal as vigc wrote it", " ".join(found.split()), remedy)


def _bytes(key: str) -> bytes:
    """Keeps the order of the keys. Names in annotations may contain lone surrogates."""
    return key.encode("utf-8", "surrogatepass")


def _digest(key: bytes, content: bytes) -> bytes:
    return hashlib.sha256(key + b"\0" + content).digest()
