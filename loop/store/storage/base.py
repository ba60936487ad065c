"""What a run needs of the place where it is stored.

The crash contract: `write` and `publish` are atomic, and their result is durable before they return. Locally that is tmp → fsync →
rename → fsync of the folder. An object store shows an object only when it is complete; there the contract rests on the order of
writes alone (data, then receipt, then commit record).

Paths are relative to the run, with `/`. A disk that is full, read-only or gone raises a `WriteError` that names the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

import pyarrow as pa

from actors.folders import Folder
from loop.errors import StoreError, WriteError
from loop.store.commits import FileEntry

CHUNK_BYTES = 1 << 20
TMP = ".tmp"

Check = Callable[[], None]
"""Raises an error if this process may not write (any more)."""


class Storage(Protocol):
    """The bytes of one run. Instances are pickled to actors."""

    @property
    def uri(self) -> str:
        """The path or URI of the run, as a user would give it."""
        ...

    @property
    def has_lock(self) -> bool:
        """Whether `exclusive` keeps other drivers out."""
        ...

    def read(self, path: str) -> bytes:
        """The whole file. Raises `FileNotFoundError`."""
        ...

    def write(self, path: str, data: bytes, check: Check | None = None) -> None:
        """Atomically write `data` to `path`; it is durable on return.

        With `check`, nothing is written unless it passes. Where drivers are not kept apart by a lock, nothing is written either if
        another process changes the file after the check: the check is then repeated.

        Raises:
            WriteError: it cannot be written.
        """
        ...

    def size(self, path: str) -> int | None:
        """Bytes of a file; None when there is no such file."""
        ...

    def sizes(self, folder: str) -> Mapping[str, int]:
        """Bytes of each file under a folder, at any depth, by path; empty when it does not exist."""
        ...

    def entry(self, path: str) -> FileEntry:
        """Size and SHA-256 of a file as it is on disk. Raises `FileNotFoundError`."""
        ...

    def names(self, folder: str) -> list[str]:
        """Names right under a folder, sorted; empty when it does not exist."""
        ...

    def scratch(self, folder: str) -> Path:
        """An empty folder on this node to build the content of `folder` in. Raises `WriteError`."""
        ...

    def workspace(self, folder: str) -> Path:
        """A local folder for unfinished work on `folder`, which survives the writing process; it may not exist yet."""
        ...

    def publish(self, scratch: Path, folder: str, check: Check | None = None) -> list[FileEntry]:
        """Move the content of `scratch` to `folder`; `check` as in `write`. `scratch` is gone afterwards. Raises `WriteError`."""
        ...

    def remove(self, path: str) -> None:
        """Delete a file, or a folder with all that is in it. Does nothing if there is none. Raises `WriteError`."""
        ...

    def fetch(self, folder: str, files: Sequence[FileEntry]) -> Path:
        """A local folder with the content of `folder`, which consists of `files`."""
        ...

    def checkpoint(self, folder: str, files: Sequence[FileEntry], kept: Sequence[str] = ()) -> Folder:
        """A folder of the run as actors on any node read it. Copies of checkpoints whose names begin with none of `kept` may be deleted."""
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep other drivers out, if the filesystem supports it. Raises `BlockingIOError` when another driver holds the run."""
        ...

    def remove_leftovers(self) -> None:
        """Delete unfinished files of dead drivers, in the run and in this machine's temp folder. Only the driver may call it."""
        ...


@contextmanager
def writing(target: Path | str) -> Iterator[None]:
    """Turn an `OSError` into a `WriteError` that names the file or folder."""
    try:
        yield
    except OSError as error:
        raise WriteError(str(target), error.strerror or str(error)) from error


def chunks_of(stream: BinaryIO | pa.NativeFile) -> Iterator[bytes]:
    """What is left in a stream, in pieces."""
    return iter(partial(stream.read, CHUNK_BYTES), b"")


def measured(path: str, chunks: Iterable[bytes]) -> FileEntry:
    """The entry of the file `path` of a run that consists of these pieces."""
    digest, num_bytes = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        num_bytes += len(chunk)
    return FileEntry(path=path, num_bytes=num_bytes, sha256=digest.hexdigest())


def files_under(scratch: Path, folder: str) -> list[FileEntry]:
    """The files in a local folder, as entries of the folder `folder` of a run."""
    entries = []
    for path in sorted(scratch.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                entries.append(measured(f"{folder}/{path.relative_to(scratch).as_posix()}", chunks_of(stream)))
    return entries


def inside(path: str) -> str:
    """`path` itself. Paths are read from files of the run; one that leads out of the run is refused."""
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in path:
        raise StoreError(f"{path!r} is not a path inside a run folder")
    return path
