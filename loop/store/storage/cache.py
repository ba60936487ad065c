"""Copies of a run's folders on this node, and files on their way to or from it. All processes of a node share them.

    CACHE/vigc-loop/runs/RUN/copies/checkpoints/round-0001/KEY/    a copy, by the hash of its content
    CACHE/vigc-loop/runs/RUN/copies/checkpoints/round-0001/KEY.seen    sizes and times of its files when their hashes were verified
    CACHE/vigc-loop/runs/RUN/scratch/HOST-PID-NUMBER/              unfinished files of a process
    CACHE/vigc-loop/runs/RUN/work/                                 unfinished work of the driver, such as replies of a judge
    CACHE/vigc-loop/runs/RUN/lock                                  held while a copy is made or deleted

CACHE is `XDG_CACHE_HOME`, or `.cache` in the home folder; RUN is the hash of the run's URI. The folder of a run may be deleted while the
run does not go on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TextIO

import psutil

from loop.errors import DamagedFileError, StoreError
from loop.store.commits import FileEntry
from loop.store.documents import REMEDY, canonical_json, describe
from loop.store.storage.base import chunks_of, files_under, measured, writing

Download = Callable[[FileEntry, Path], None]
"""Writes the content of a file of the run to a new local file."""
NUM_TRANSFERS = 8
"""Files that are moved side by side: a request takes milliseconds of waiting, and a connection has a fraction of the bandwidth."""
_LOCK_S = 1800.0
"""Longest wait for another process, which may copy tens of gigabytes."""
_POLL_S = 0.05
_SEEN = ".seen"
_SCRATCH = re.compile(r"(?P<host>.+)-(?P<pid>\d+)-\w+")


@dataclass(frozen=True)
class NodeCache:
    """The copies of one run."""

    uri: str

    @property
    def root(self) -> Path:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "vigc-loop" / "runs" / hashlib.sha256(self.uri.encode()).hexdigest()[:16]

    def copy(self, folder: str, files: Sequence[FileEntry], download: Download) -> Path:
        """A copy of `folder`, which consists of `files`. The first process that asks for it makes it, others wait.

        Raises:
            DamagedFileError: a file differs from its entry; then there is no copy.
            WriteError: this node's disk is full or cannot be written.
        """
        target = self._place(folder, files)
        with self._locked():
            if not _is_intact(target, folder, files):
                self._remove(target)
                with self.scratch() as scratch:
                    _download_all(scratch, folder, files, download)
                    self._put(scratch, target)
        return target

    def adopt(self, scratch: Path, folder: str, files: Sequence[FileEntry]) -> None:
        """Make a local folder, whose files were uploaded as `files`, the copy of `folder`."""
        target = self._place(folder, files)
        with self._locked():
            self._remove(target)
            self._put(scratch, target)

    def keep_only(self, kept: Sequence[str]) -> None:
        """Delete copies of checkpoints whose names begin with none of `kept`, of which the last is that of the current round; copies of
        unfinished work that is not of the current round; and unfinished files of dead processes."""
        with self._locked():
            for path in self._copies("checkpoints").glob("*"):
                if not path.name.startswith(kept[-1] if path.suffix == ".steps" else tuple(kept)):
                    shutil.rmtree(path)
        self.remove_left_behind()

    def remove_left_behind(self) -> None:
        """Delete unfinished files of processes of this machine that are no longer alive."""
        for path in (self.root / "scratch").glob("*"):
            parts = _SCRATCH.fullmatch(path.name)
            if parts and parts["host"] == socket.gethostname() and not psutil.pid_exists(int(parts["pid"])):
                shutil.rmtree(path, ignore_errors=True)  # another process may be removing it too

    def drop(self, folder: str) -> None:
        """Delete all copies of a folder of the run, and of folders in it."""
        with self._locked():
            shutil.rmtree(self._copies(folder), ignore_errors=True)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder on the filesystem of the copies, which is gone after the block."""
        folder = self.new_scratch()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def new_scratch(self) -> Path:
        """An empty folder of this process, which it has to remove."""
        home = self.root / "scratch"
        with writing(home):
            home.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=f"{socket.gethostname()}-{os.getpid()}-", dir=home))

    def _copies(self, folder: str) -> Path:
        return self.root / "copies" / folder

    def _place(self, folder: str, files: Sequence[FileEntry]) -> Path:
        key = hashlib.sha256(canonical_json([file.model_dump() for file in files])).hexdigest()[:16]
        return self._copies(folder) / key

    def _put(self, scratch: Path, target: Path) -> None:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            seen = target.with_name(target.name + _SEEN)
            seen.write_text(json.dumps(_stats(scratch)))  # before the rename: without its copy it says nothing
            os.rename(scratch, target)
            target.chmod(0o755)  # mkdtemp made it private

    def _remove(self, target: Path) -> None:
        if target.exists():
            shutil.rmtree(target)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The kernel releases the lock of a process that dies."""
        path, deadline = self.root / "lock", time.monotonic() + _LOCK_S
        with writing(path):
            self.root.mkdir(parents=True, exist_ok=True)
            stream = path.open("a")
        with stream:
            while not _locks(stream):
                if time.monotonic() > deadline:
                    raise StoreError(f"another process on {socket.gethostname()} has held {path} for {_LOCK_S:g} s; end it, then resume")
                time.sleep(_POLL_S)
            yield


def _is_intact(target: Path, folder: str, files: Sequence[FileEntry]) -> bool:
    """Whether there is a copy whose files are as they were when they were verified, or else have the right hashes."""
    if not target.is_dir():
        return False
    seen = target.with_name(target.name + _SEEN)
    if seen.is_file() and seen.read_text() == json.dumps(_stats(target)):
        return True
    if sorted(files_under(target, folder), key=_path) != sorted(files, key=_path):
        return False
    seen.write_text(json.dumps(_stats(target)))
    return True


def _path(file: FileEntry) -> str:
    return file.path


def _stats(folder: Path) -> list[list[str | int]]:
    """Path, size and time of the last change of each file."""
    found = ((path.relative_to(folder).as_posix(), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found]


def _download_all(scratch: Path, folder: str, files: Sequence[FileEntry], download: Download) -> None:
    def fetch(file: FileEntry) -> None:
        place = scratch / PurePosixPath(file.path).relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        download(file, place)
        _verify(file, place)

    with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
        for _ in pool.map(fetch, files):  # raises the first error
            pass


def _verify(file: FileEntry, path: Path) -> None:
    with path.open("rb") as stream:
        found = measured(file.path, chunks_of(stream))
    if found != file:
        raise DamagedFileError(file.path, describe(file), describe(found), REMEDY)


def _locks(stream: TextIO) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
