"""What runs behind a URI have in common: no lock, copies of folders on each node, and uploads in place of renames."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cluster.resources.scratch import remove_dead
from loop.credentials import masked
from loop.errors import DamagedFileError, StoreError, one_line
from loop.store.commits import FileEntry
from loop.store.documents import REMEDY
from loop.store.storage.base import Check, files_under, measured, writing
from loop.store.storage.cache import NUM_TRANSFERS, NodeCache


@dataclass(frozen=True)
class RemoteStorage(ABC):
    """Base of storages that are not folders of this machine. Drivers are kept apart by `loop.store.fencing`."""

    uri: str
    has_lock = False

    @abstractmethod
    def chunks(self, path: str) -> Iterable[bytes]:
        """The content of a file, in pieces. Raises `FileNotFoundError`."""

    @abstractmethod
    def read_range(self, path: str, start: int, num_bytes: int) -> bytes:
        """`num_bytes` of a file from `start` on, or what there is of them. Raises `FileNotFoundError`."""

    @abstractmethod
    def upload(self, source: Path, path: str, check: Check | None) -> None:
        """Write a local file to `path`; see `Storage.write`."""

    @property
    def cache(self) -> NodeCache:
        """Copies on this node."""
        return NodeCache(self.uri)

    def read(self, path: str) -> bytes:
        return b"".join(self.chunks(path))

    def entry(self, path: str) -> FileEntry:
        return measured(path, self.chunks(path))

    def scratch(self, folder: str) -> Path:
        """Beside the copies on this node."""
        return self.cache.new_scratch()

    def workspace(self, folder: str) -> Path:
        """In the user's cache folder: unfinished work continues only on the same machine."""
        return self.cache.root / "work" / folder

    def publish(self, scratch: Path, folder: str, check: Check | None = None) -> list[FileEntry]:
        """`scratch` becomes the copy of `folder` on this node, which then need not be downloaded here."""
        files = self.upload_all(scratch, folder, check)
        self.cache.adopt(scratch, folder, files)
        return files

    def upload_all(self, scratch: Path, folder: str, check: Check | None) -> list[FileEntry]:
        """Write the files of a local folder to `folder`; returns their entries, hashed here."""
        files = files_under(scratch, folder)
        with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
            places = [scratch / PurePosixPath(file.path).relative_to(folder) for file in files]
            for _ in pool.map(lambda pair: self.upload(pair[0], pair[1].path, check), zip(places, files, strict=True)):
                pass
        return files

    def fetch(self, folder: str, files: Sequence[FileEntry]) -> Path:
        """A copy in the cache of this node."""
        try:
            return self.cache.copy(folder, files, self._download)
        except OSError as error:
            where = f"{self.cache.root} on {socket.gethostname()}"
            raise StoreError(f"cannot copy {self.uri}/{folder} to {where}: {one_line(error)}") from error

    def checkpoint(self, folder: str, files: Sequence[FileEntry], kept: Sequence[str] = ()) -> StoredFolder:
        return StoredFolder(self, folder, tuple(files), tuple(kept))

    def exclusive(self) -> AbstractContextManager[None]:
        return nullcontext()

    def remove_leftovers(self) -> None:
        """An interrupted upload never becomes an object, so only machines have leftovers."""
        remove_dead(masked(self.uri))
        self.cache.remove_left_behind()

    def _download(self, file: FileEntry, target: Path) -> None:
        try:
            with target.open("xb") as sink:
                for chunk in self.chunks(file.path):
                    with writing(target):
                        sink.write(chunk)
        except FileNotFoundError as error:
            raise DamagedFileError(file.path, "a file", "none", REMEDY) from error


@dataclass(frozen=True)
class StoredFolder:
    """A folder of a run behind a URI; implements `actors.folders.RemoteFolder`."""

    storage: RemoteStorage
    path: str
    """Relative to the run."""
    files: tuple[FileEntry, ...]
    kept: tuple[str, ...] = field(default=(), compare=False)
    """Beginnings of the names of checkpoints that the run still needs; copies of others are deleted where this one is copied. Empty: no
    copy is deleted."""

    def __str__(self) -> str:
        return f"{self.storage.uri}/{self.path}"

    def local(self) -> Path:
        """Raises `StoreError`, which names this node, if it cannot be read."""
        copy = self.storage.fetch(self.path, self.files)
        if self.kept:
            self.storage.cache.keep_only(self.kept)
        return copy

    def read(self, name: str, start: int, num_bytes: int) -> bytes:
        try:
            return self.storage.read_range(f"{self.path}/{name}", start, num_bytes)
        except FileNotFoundError as error:
            raise DamagedFileError(f"{self.path}/{name}", "a file", "none", REMEDY) from error

    def names(self) -> list[str]:
        return [PurePosixPath(file.path).relative_to(self.path).as_posix() for file in self.files]

    def subfolder(self, name: str) -> StoredFolder:
        inside = f"{self.path}/{name}"
        return StoredFolder(self.storage, inside, tuple(file for file in self.files if file.path.startswith(f"{inside}/")), self.kept)
