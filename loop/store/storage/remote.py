"""What runs behind a URI have in common: no lock, local copies of checkpoints, and uploads in place of renames."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cluster.resources.scratch import make_scratch, remove_dead
from loop.credentials import masked
from loop.errors import DamagedFileError
from loop.store.commits import FileEntry
from loop.store.documents import REMEDY, canonical_json, describe
from loop.store.storage.base import TMP, Check, chunks_of, files_under, measured

_INTACT_COPIES: set[Path] = set()
"""Folders of the cache that this process has verified."""


@dataclass(frozen=True)
class RemoteStorage(ABC):
    """Base of storages that are not folders of this machine. Drivers are kept apart by `loop.store.fencing`."""

    uri: str
    has_lock = False

    @abstractmethod
    def chunks(self, path: str) -> Iterable[bytes]:
        """The content of a file, in pieces. Raises `FileNotFoundError`."""

    @abstractmethod
    def upload(self, source: Path, path: str, check: Check | None) -> None:
        """Write a local file to `path`; see `Storage.write`."""

    def read(self, path: str) -> bytes:
        return b"".join(self.chunks(path))

    def entry(self, path: str) -> FileEntry:
        return measured(path, self.chunks(path))

    def scratch(self, folder: str) -> Path:
        path = make_scratch(masked(self.uri)) / PurePosixPath(folder).name  # one level down: the trainer makes a folder beside it
        path.mkdir()
        return path

    def workspace(self, folder: str) -> Path:
        """In the user's cache folder: unfinished work continues only on the same machine."""
        return _cache_folder("work") / hashlib.sha256(f"{self.uri}/{folder}".encode()).hexdigest()

    def publish(self, scratch: Path, folder: str, check: Check | None = None) -> list[FileEntry]:
        files = files_under(scratch, folder)
        for file in files:
            self.upload(scratch / PurePosixPath(file.path).relative_to(folder), file.path, check)
        shutil.rmtree(scratch.parent)
        return files

    def fetch(self, folder: str, files: Sequence[FileEntry]) -> Path:
        """A copy in the user's cache folder, made once per content and verified while it is made and when a process first uses it.
        The cache may be deleted while no run uses it."""
        key = hashlib.sha256(canonical_json([self.uri, [file.model_dump() for file in files]])).hexdigest()
        target = _cache_folder("checkpoints") / key
        if target.is_dir() and (target in _INTACT_COPIES or _by_path(files_under(target, folder)) == _by_path(files)):
            _INTACT_COPIES.add(target)
            return target
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = Path(tempfile.mkdtemp(prefix=f"{self._cache_prefix}-", dir=target.parent, suffix=TMP))
        try:
            for file in files:
                self._download(file, copy / PurePosixPath(file.path).relative_to(folder))
            os.rename(copy, target)
        except OSError:
            if not target.is_dir():  # another process of this machine was first: use its copy
                raise
        finally:
            if copy.exists():
                shutil.rmtree(copy)
        return target

    def exclusive(self) -> AbstractContextManager[None]:
        return nullcontext()

    def remove_leftovers(self) -> None:
        """An interrupted upload never becomes an object, so only this machine has leftovers."""
        remove_dead(masked(self.uri))
        for path in _cache_folder("checkpoints").glob(f"{self._cache_prefix}-*{TMP}"):
            shutil.rmtree(path)

    @property
    def _cache_prefix(self) -> str:
        return hashlib.sha256(self.uri.encode()).hexdigest()[:8]

    def _download(self, file: FileEntry, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as sink:
            for chunk in self.chunks(file.path):
                sink.write(chunk)
        with target.open("rb") as stream:
            found = measured(file.path, chunks_of(stream))
        if found != file:
            raise DamagedFileError(file.path, describe(file), describe(found), REMEDY)


def _by_path(files: Sequence[FileEntry]) -> dict[str, FileEntry]:
    return {file.path: file for file in files}


def _cache_folder(kind: str) -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vigc-loop" / kind
