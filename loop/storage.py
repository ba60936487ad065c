"""Where the bytes of a run lie: a local folder or any `pyarrow.fs` filesystem, behind one small protocol.

The crash contract: `write` and `publish` make a file or folder visible whole or not at all, and durable before they return.
Locally that is tmp → fsync → rename → fsync of the folder. An object store shows an object only when it is complete; there the
order of writes alone carries the contract (data, then receipt, then commit record).

Paths are relative to the run, with `/`.
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

from loop.commits import FileEntry
from loop.documents import REMEDY, canonical_json, describe
from loop.errors import DamagedFileError, StoreError, UserError

_CHUNK_BYTES = 1 << 20
_TMP = ".tmp"


class Storage(Protocol):
    """The bytes of one run. Instances are pickled to actors."""

    @property
    def uri(self) -> str:
        """The run's address, as a user would give it."""
        ...

    def read(self, path: str) -> bytes:
        """The whole file. Raises `FileNotFoundError`."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Make `data` the content of `path`: whole or not at all, durable on return."""
        ...

    def size(self, path: str) -> int | None:
        """Bytes of a file; None when there is no such file."""
        ...

    def entry(self, path: str) -> FileEntry:
        """Size and SHA-256 of a file as it lies there. Raises `FileNotFoundError`."""
        ...

    def names(self, folder: str) -> list[str]:
        """Names right under a folder, sorted; empty when it does not exist."""
        ...

    def scratch(self, folder: str) -> Path:
        """An empty local folder in which the content of `folder` can be made."""
        ...

    def publish(self, scratch: Path, folder: str) -> list[FileEntry]:
        """Make the content of `scratch` the content of `folder`; `scratch` is gone afterwards."""
        ...

    def fetch(self, folder: str, files: Sequence[FileEntry]) -> Path:
        """A local folder with the content of `folder`, which consists of `files`."""
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep other drivers out, where the filesystem can. Raises `BlockingIOError` when another one is in."""
        ...

    def remove_leftovers(self) -> None:
        """Delete what writers that died have left half done."""
        ...


def open_storage(uri: str | Path) -> Storage:
    """The storage behind a path or a URI (`runs/x`, `file:///runs/x`, `s3://bucket/x`, `fsspec+memory://x`).

    Raises:
        UserError: the URI names no filesystem that pyarrow knows.
    """
    text = str(uri)
    if "://" not in text:
        return LocalStorage(Path(text).expanduser().absolute())
    try:
        filesystem, root = fs.FileSystem.from_uri(text)
    except (pa.ArrowException, ValueError, ImportError) as error:
        raise UserError(f"{text} is no address for a run: {error}; give a path or a URI such as s3://bucket/run") from error
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
        _fsync(target.parent)

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
        if path.exists():
            shutil.rmtree(path)
        _make_folder(path)
        return path

    def publish(self, scratch: Path, folder: str) -> list[FileEntry]:
        files = _files_under(scratch, folder)
        fsync_tree(scratch)
        target = self._at(folder)
        replaced = target.with_name(f"{target.name}.replaced{_TMP}")
        if target.exists():
            os.replace(target, replaced)
        os.replace(scratch, target)
        _fsync(target.parent)
        if replaced.exists():
            shutil.rmtree(replaced)
        return files

    def fetch(self, folder: str, files: Sequence[FileEntry]) -> Path:
        """The folder itself, in place; sizes are checked, hashes are left to `Store.verify`."""
        for file in files:
            found = self.size(file.path)
            if found != file.num_bytes:
                raise DamagedFileError(file.path, f"{file.num_bytes} bytes", "no file" if found is None else f"{found} bytes", REMEDY)
        return self._at(folder)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold `flock` on the file `lock`. The kernel releases it when the holder dies, however it dies; a child that the holder
        forked without exec holds it too. The filesystem must support it (NFS from version 4 on does)."""
        _make_folder(self.root)
        with (self.root / "lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    def remove_leftovers(self) -> None:
        for path in [*self.root.glob(f".*{_TMP}"), *self.root.glob(f"rounds/**/.*{_TMP}"), *self.root.glob(f"checkpoints/*{_TMP}")]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _at(self, path: str) -> Path:
        return self.root / _inside(path)


@dataclass(frozen=True)
class ArrowStorage:
    """A run on a `pyarrow.fs` filesystem. `exclusive` cannot keep a second driver out here: the fencing epoch does, and its
    check and the write after it are two requests, so start a second driver on such a run only when the first is dead."""

    filesystem: fs.FileSystem
    root: str
    uri: str

    def read(self, path: str) -> bytes:
        with self.filesystem.open_input_stream(self._at(path)) as stream:
            return stream.read()

    def write(self, path: str, data: bytes) -> None:
        with self._sink(path) as stream:
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
        return Path(tempfile.mkdtemp(prefix="vigc-", suffix=_TMP))

    def publish(self, scratch: Path, folder: str) -> list[FileEntry]:
        files = _files_under(scratch, folder)
        for file in files:
            with (scratch / PurePosixPath(file.path).relative_to(folder)).open("rb") as source, self._sink(file.path) as sink:
                shutil.copyfileobj(source, sink, _CHUNK_BYTES)
        shutil.rmtree(scratch)
        return files

    def fetch(self, folder: str, files: Sequence[FileEntry]) -> Path:
        """A copy in the user's cache folder, made once per content and verified while it is made. The cache may be deleted
        whenever no run uses it."""
        key = hashlib.sha256(canonical_json([self.uri, [file.model_dump() for file in files]])).hexdigest()
        target = _cache_folder() / key
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = Path(tempfile.mkdtemp(dir=target.parent, suffix=_TMP))
        try:
            for file in files:
                self._download(file, copy / PurePosixPath(file.path).relative_to(folder))
            os.rename(copy, target)
        except OSError:
            if not target.is_dir():  # another process of this machine was first: its copy is as good
                raise
        finally:
            if copy.exists():
                shutil.rmtree(copy)
        return target

    def exclusive(self) -> AbstractContextManager[None]:
        return nullcontext()

    def remove_leftovers(self) -> None:
        """Nothing to do: an upload that was cut off never becomes an object."""

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


def _inside(path: str) -> str:
    """`path` itself. File names come out of files of the run; one that leads out of the run is refused."""
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise StoreError(f"{path!r} is no path inside a run folder")
    return path


def fsync_tree(path: Path) -> None:
    """Make a file, or a folder with all that is in it, durable."""
    for each in (*path.rglob("*"), path):
        _fsync(each)


def _make_folder(path: Path) -> None:
    """Create a folder and its missing parents, each made durable in the folder above it."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vigc-loop" / "checkpoints"
