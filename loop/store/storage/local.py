"""A run in a folder of this machine, or of a filesystem that all nodes share."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from actors.durable import fsync, fsync_tree
from cluster.resources.scratch import remove_dead
from loop.errors import DamagedFileError
from loop.store.commits import FileEntry
from loop.store.documents import REMEDY
from loop.store.storage.base import TMP, Check, chunks_of, files_under, inside, measured, writing

_LEFTOVERS = (f".*{TMP}", f"rounds/**/.*{TMP}", f"checkpoints/*{TMP}", "checkpoints/.*", f"checkpoints/*.steps/*{TMP}")
"""Unfinished files and folders: the store's own, and the hidden ones that the trainer writes beside them."""


@dataclass(frozen=True)
class LocalStorage:
    """A run in a folder of this machine, or of a filesystem that all nodes share at the same path."""

    root: Path
    has_lock = True

    @property
    def uri(self) -> str:
        return str(self.root)

    def read(self, path: str) -> bytes:
        return self._at(path).read_bytes()

    def write(self, path: str, data: bytes, check: Check | None = None) -> None:
        if check is not None:
            check()
        target = self._at(path)
        with writing(target):
            _make_folder(target.parent)
            tmp = target.with_name(f".{target.name}.{os.getpid()}-{uuid4().hex}{TMP}")
            try:
                with tmp.open("xb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(tmp, target)
            except BaseException:
                tmp.unlink(missing_ok=True)
                raise
            fsync(target.parent)

    def size(self, path: str) -> int | None:
        target = self._at(path)
        return target.stat().st_size if target.is_file() else None

    def sizes(self, folder: str) -> dict[str, int]:
        target = self._at(folder)
        return {path.relative_to(self.root).as_posix(): path.stat().st_size for path in target.rglob("*") if path.is_file()}

    def entry(self, path: str) -> FileEntry:
        with self._at(path).open("rb") as stream:
            return measured(path, chunks_of(stream))

    def names(self, folder: str) -> list[str]:
        target = self._at(folder)
        return sorted(os.listdir(target)) if target.is_dir() else []

    def scratch(self, folder: str) -> Path:
        path = self._at(folder + TMP)
        with writing(path):
            if path.exists():
                shutil.rmtree(path)
            _make_folder(path)
        return path

    def workspace(self, folder: str) -> Path:
        return self._at(folder)

    def publish(self, scratch: Path, folder: str, check: Check | None = None) -> list[FileEntry]:
        if check is not None:
            check()
        target = self._at(folder)
        with writing(target):
            files = files_under(scratch, folder)
            fsync_tree(scratch)
            replaced = target.with_name(f"{target.name}.replaced{TMP}")
            if target.exists():
                os.replace(target, replaced)
            os.replace(scratch, target)
            fsync(target.parent)
            if replaced.exists():
                shutil.rmtree(replaced)
        return files

    def remove(self, path: str) -> None:
        """Folders are removed atomically."""
        target = self._at(path)
        with writing(target):
            if target.is_dir():
                removed = target.with_name(f"{target.name}.removed{TMP}")
                os.replace(target, removed)
                fsync(target.parent)
                shutil.rmtree(removed)
            elif target.exists():
                target.unlink()
                fsync(target.parent)

    def fetch(self, folder: str, files: Sequence[FileEntry]) -> Path:
        """The folder itself, in place. Only sizes are checked; `Store.verify` checks hashes."""
        for file in files:
            found = self.size(file.path)
            if found != file.num_bytes:
                raise DamagedFileError(file.path, f"{file.num_bytes} bytes", "no file" if found is None else f"{found} bytes", REMEDY)
        return self._at(folder)

    def checkpoint(self, folder: str, files: Sequence[FileEntry], kept: Sequence[str] = ()) -> Path:
        return self.fetch(folder, files)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold `flock` on the file `lock`. The kernel releases it however the holder dies; a child that the holder forked without
        exec holds it too. The filesystem must support it (NFS from version 4 on does)."""
        with writing(self.root / "lock"):
            _make_folder(self.root)
            stream = (self.root / "lock").open("a")
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    def remove_leftovers(self) -> None:
        remove_dead(self.uri)
        for pattern in _LEFTOVERS:
            for path in self.root.glob(pattern):
                with writing(path):
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)

    def _at(self, path: str) -> Path:
        return self.root / inside(path)


def _make_folder(path: Path) -> None:
    """Create a folder and its missing parents, each made durable in the folder above it."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        fsync(path.parent)
