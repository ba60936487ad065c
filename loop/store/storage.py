"""Stores the bytes of a run in a local folder or on any `pyarrow.fs` filesystem, behind one small protocol.

The crash contract: `write` and `publish` are atomic, and their result is durable before they return. Locally that is tmp → fsync →
rename → fsync of the folder. An object store shows an object only when it is complete; there the contract rests on the order of
writes alone (data, then receipt, then commit record).

Paths are relative to the run, with `/`. A disk that is full, read-only or gone raises a `WriteError` that names the file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs

from actors.durable import fsync, fsync_tree
from cluster.resources.scratch import make_scratch, remove_dead
from loop.credentials import masked
from loop.errors import DamagedFileError, StoreError, UserError, WriteError
from loop.store.commits import FileEntry
from loop.store.documents import REMEDY, canonical_json, describe

_CHUNK_BYTES = 1 << 20
_TMP = ".tmp"

_LEFTOVERS = (f".*{_TMP}", f"rounds/**/.*{_TMP}", f"checkpoints/*{_TMP}", "checkpoints/.*", f"checkpoints/*.steps/*{_TMP}")
"""Unfinished files and folders: the store's own, and the hidden ones that the trainer writes beside them."""


_INTACT_COPIES: set[Path] = set()
"""Folders of the cache that this process has verified."""


class Storage(Protocol):
    """The bytes of one run. Instances are pickled to actors."""

    @property
    def uri(self) -> str:
        """The path or URI of the run, as a user would give it."""
        ...

    def read(self, path: str) -> bytes:
        """The whole file. Raises `FileNotFoundError`."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Atomically write `data` to `path`; it is durable on return. Raises `WriteError`."""
        ...

    def size(self, path: str) -> int | None:
        """Bytes of a file; None when there is no such file."""
        ...

    def entry(self, path: str) -> FileEntry:
        """Size and SHA-256 of a file as it is on disk. Raises `FileNotFoundError`."""
        ...

    def names(self, folder: str) -> list[str]:
        """Names right under a folder, sorted; empty when it does not exist."""
        ...

    def scratch(self, folder: str) -> Path:
        """An empty local folder to build the content of `folder` in. Raises `WriteError`."""
        ...

    def workspace(self, folder: str) -> Path:
        """A local folder for unfinished work on `folder`, which survives the writing process; it may not exist yet."""
        ...

    def publish(self, scratch: Path, folder: str) -> list[FileEntry]:
        """Move the content of `scratch` to `folder`. Raises `WriteError`."""
        ...

    def remove(self, path: str) -> None:
        """Delete a file, or a folder with all that is in it. Does nothing if there is none. Raises `WriteError`."""
        ...

    def fetch(self, folder: str, files: Sequence[FileEntry]) -> Path:
        """A local folder with the content of `folder`, which consists of `files`."""
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep other drivers out, if the filesystem supports it. Raises `BlockingIOError` when another driver holds the run."""
        ...

    def remove_leftovers(self) -> None:
        """Delete unfinished files of dead drivers, in the run and in this machine's temp folder. Only the driver may call it."""
        ...


def open_storage(uri: str | Path) -> Storage:
    """The storage behind a path or a URI (`runs/x`, `file:///runs/x`, `s3://bucket/x`, `fsspec+memory://x`).

    Raises:
        UserError: pyarrow knows no filesystem for the URI.
    """
    text = str(uri)
    if "://" not in text:
        return LocalStorage(Path(text).expanduser().absolute())
    try:
        filesystem, root = fs.FileSystem.from_uri(text)
    except (pa.ArrowException, ValueError, ImportError) as error:
        raise UserError(f"{text} is not a valid run address: {error}; give a path or a URI such as s3://bucket/run") from error
    return LocalStorage(Path(root)) if isinstance(filesystem, fs.LocalFileSystem) else ArrowStorage(filesystem, root.rstrip("/"), text)


@dataclass(frozen=True)
class LocalStorage:
    """A run in a folder of this machine, or of a filesystem that all nodes share at the same path."""

    root: Path

    @property
    def uri(self) -> str:
        return str(self.root)

    def read(self, path: str) -> bytes:
        return self._at(path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        target = self._at(path)
        with _writing(target):
            _make_folder(target.parent)
            tmp = target.with_name(f".{target.name}.{os.getpid()}-{uuid4().hex}{_TMP}")
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

    def entry(self, path: str) -> FileEntry:
        with self._at(path).open("rb") as stream:
            return FileEntry(path=path, **_measure(stream))

    def names(self, folder: str) -> list[str]:
        target = self._at(folder)
        return sorted(os.listdir(target)) if target.is_dir() else []

    def scratch(self, folder: str) -> Path:
        path = self._at(folder + _TMP)
        with _writing(path):
            if path.exists():
                shutil.rmtree(path)
            _make_folder(path)
        return path

    def workspace(self, folder: str) -> Path:
        return self._at(folder)

    def publish(self, scratch: Path, folder: str) -> list[FileEntry]:
        target = self._at(folder)
        with _writing(target):
            files = _files_under(scratch, folder)
            fsync_tree(scratch)
            replaced = target.with_name(f"{target.name}.replaced{_TMP}")
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
        with _writing(target):
            if target.is_dir():
                removed = target.with_name(f"{target.name}.removed{_TMP}")
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

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold `flock` on the file `lock`. The kernel releases it however the holder dies; a child that the holder forked without
        exec holds it too. The filesystem must support it (NFS from version 4 on does)."""
        with _writing(self.root / "lock"):
            _make_folder(self.root)
            stream = (self.root / "lock").open("a")
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    def remove_leftovers(self) -> None:
        remove_dead(self.uri)
        for pattern in _LEFTOVERS:
            for path in self.root.glob(pattern):
                with _writing(path):
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)

    def _at(self, path: str) -> Path:
        return self.root / _inside(path)


@dataclass(frozen=True)
class ArrowStorage:
    """A run on a `pyarrow.fs` filesystem. `exclusive` cannot keep a second driver out here, only the fencing epoch can. Its
    check and the write that follows are two requests, so start a second driver on such a run only when the first is dead."""

    filesystem: fs.FileSystem
    root: str
    uri: str

    def read(self, path: str) -> bytes:
        with self.filesystem.open_input_stream(self._at(path)) as stream:
            return stream.read()

    def write(self, path: str, data: bytes) -> None:
        with _writing(self._at(path)), self._sink(path) as stream:
            stream.write(data)

    def size(self, path: str) -> int | None:
        info = self.filesystem.get_file_info(self._at(path))
        return info.size if info.type is fs.FileType.File else None

    def entry(self, path: str) -> FileEntry:
        with self.filesystem.open_input_stream(self._at(path)) as stream:
            return FileEntry(path=path, **_measure(stream))

    def names(self, folder: str) -> list[str]:
        found = self.filesystem.get_file_info(fs.FileSelector(self._at(folder), allow_not_found=True))
        return sorted(info.base_name for info in found)

    def scratch(self, folder: str) -> Path:
        path = make_scratch(masked(self.uri)) / PurePosixPath(folder).name  # one level down: the trainer makes a folder beside it
        path.mkdir()
        return path

    def workspace(self, folder: str) -> Path:
        """In the user's cache folder: unfinished work continues only on the same machine."""
        return _cache_folder("work") / hashlib.sha256(self._at(folder).encode()).hexdigest()

    def publish(self, scratch: Path, folder: str) -> list[FileEntry]:
        files = _files_under(scratch, folder)
        for file in files:
            path = scratch / PurePosixPath(file.path).relative_to(folder)
            with path.open("rb") as source, _writing(self._at(file.path)), self._sink(file.path) as sink:
                shutil.copyfileobj(source, sink, _CHUNK_BYTES)
        shutil.rmtree(scratch.parent)
        return files

    def remove(self, path: str) -> None:
        """File by file, not atomically: callers that delete files of a run write a tombstone first."""
        at = self._at(path)
        with _writing(at):
            kind = self.filesystem.get_file_info(at).type
            if kind is fs.FileType.Directory:
                self.filesystem.delete_dir(at)
            elif kind is fs.FileType.File:
                self.filesystem.delete_file(at)

    def fetch(self, folder: str, files: Sequence[FileEntry]) -> Path:
        """A copy in the user's cache folder, made once per content and verified while it is made and when a process first uses it.
        The cache may be deleted while no run uses it."""
        key = hashlib.sha256(canonical_json([self.uri, [file.model_dump() for file in files]])).hexdigest()
        target = _cache_folder("checkpoints") / key
        if target.is_dir() and (target in _INTACT_COPIES or _by_path(_files_under(target, folder)) == _by_path(files)):
            _INTACT_COPIES.add(target)
            return target
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = Path(tempfile.mkdtemp(prefix=f"{self._cache_prefix}-", dir=target.parent, suffix=_TMP))
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
        for path in _cache_folder("checkpoints").glob(f"{self._cache_prefix}-*{_TMP}"):
            shutil.rmtree(path)

    @property
    def _cache_prefix(self) -> str:
        return hashlib.sha256(self.uri.encode()).hexdigest()[:8]

    def _download(self, file: FileEntry, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.filesystem.open_input_stream(self._at(file.path)) as source, target.open("xb") as sink:
            shutil.copyfileobj(source, sink, _CHUNK_BYTES)
        with target.open("rb") as stream:
            found = FileEntry(path=file.path, **_measure(stream))
        if found != file:
            raise DamagedFileError(file.path, describe(file), describe(found), REMEDY)

    def _sink(self, path: str) -> pa.NativeFile:
        target = self._at(path)
        self.filesystem.create_dir(str(PurePosixPath(target).parent), recursive=True)
        return self.filesystem.open_output_stream(target)

    def _at(self, path: str) -> str:
        return f"{self.root}/{_inside(path)}"


@contextmanager
def _writing(target: Path | str) -> Iterator[None]:
    """Turn an `OSError` into a `WriteError` that names the file or folder."""
    try:
        yield
    except OSError as error:
        raise WriteError(str(target), error.strerror or str(error)) from error


def _measure(stream: BinaryIO | pa.NativeFile) -> dict[str, Any]:
    digest, num_bytes = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
        num_bytes += len(chunk)
    return {"num_bytes": num_bytes, "sha256": digest.hexdigest()}


def _files_under(scratch: Path, folder: str) -> list[FileEntry]:
    entries = []
    for path in sorted(scratch.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                entries.append(FileEntry(path=f"{folder}/{path.relative_to(scratch).as_posix()}", **_measure(stream)))
    return entries


def _by_path(files: Sequence[FileEntry]) -> dict[str, FileEntry]:
    return {file.path: file for file in files}


def _inside(path: str) -> str:
    """`path` itself. Paths are read from files of the run; one that leads out of the run is refused."""
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise StoreError(f"{path!r} is not a path inside a run folder")
    return path


def _make_folder(path: Path) -> None:
    """Create a folder and its missing parents, each made durable in the folder above it."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        fsync(path.parent)


def _cache_folder(kind: str) -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vigc-loop" / kind
