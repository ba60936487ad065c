"""A run on any filesystem that pyarrow or fsspec knows and `loop.store.storage.objects` does not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from loop.store.storage.base import CHUNK_BYTES, Check, chunks_of, inside, writing
from loop.store.storage.remote import RemoteStorage


@dataclass(frozen=True)
class ArrowStorage(RemoteStorage):
    """A run on a `pyarrow.fs` filesystem. These have no conditional writes: a check and the write that follows are two requests, so
    the lease and the fencing epoch are all that keeps two drivers apart."""

    filesystem: fs.FileSystem
    root: str

    def chunks(self, path: str) -> Iterator[bytes]:
        with self.filesystem.open_input_stream(self._at(path)) as stream:
            yield from chunks_of(stream)

    def read_range(self, path: str, start: int, num_bytes: int) -> bytes:
        with self.filesystem.open_input_file(self._at(path)) as file:
            return file.read_at(max(0, min(num_bytes, file.size() - start)), start)

    def write(self, path: str, data: bytes, check: Check | None = None) -> None:
        if check is not None:
            check()
        with writing(self._at(path)), self._sink(path) as stream:
            stream.write(data)

    def upload(self, source: Path, path: str, check: Check | None) -> None:
        if check is not None:
            check()
        with source.open("rb") as stream, writing(self._at(path)), self._sink(path) as sink:
            shutil.copyfileobj(stream, sink, CHUNK_BYTES)

    def size(self, path: str) -> int | None:
        info = self.filesystem.get_file_info(self._at(path))
        return info.size if info.type is fs.FileType.File else None

    def sizes(self, folder: str) -> dict[str, int]:
        found = self.filesystem.get_file_info(fs.FileSelector(self._at(folder), allow_not_found=True, recursive=True))
        start = len(self.root.lstrip("/")) + 1
        return {info.path.lstrip("/")[start:]: info.size for info in found if info.type is fs.FileType.File}

    def names(self, folder: str) -> list[str]:
        found = self.filesystem.get_file_info(fs.FileSelector(self._at(folder), allow_not_found=True))
        return sorted(info.base_name for info in found)

    def remove(self, path: str) -> None:
        """File by file, not atomically: callers that delete files of a run write a tombstone first."""
        at = self._at(path)
        with writing(at):
            kind = self.filesystem.get_file_info(at).type
            if kind is fs.FileType.Directory:
                self.filesystem.delete_dir(at)
            elif kind is fs.FileType.File:
                self.filesystem.delete_file(at)

    def _sink(self, path: str) -> pa.NativeFile:
        target = self._at(path)
        self.filesystem.create_dir(str(PurePosixPath(target).parent), recursive=True)
        return self.filesystem.open_output_stream(target)

    def _at(self, path: str) -> str:
        return f"{self.root}/{inside(path)}"
