"""Stores the bytes of a run: in a local folder, in an object store, or on any other `pyarrow.fs` filesystem, behind one small protocol."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from loop.errors import UserError
from loop.store.storage.arrow import ArrowStorage
from loop.store.storage.base import Storage
from loop.store.storage.local import LocalStorage
from loop.store.storage.objects import SCHEMES, ObjectStorage


def open_storage(uri: str | Path) -> Storage:
    """The storage behind a path or a URI (`runs/x`, `file:///runs/x`, `s3://bucket/x`, `fsspec+memory://x`).

    Raises:
        UserError: the URI cannot be understood.
    """
    text = str(uri)
    if "://" not in text:
        return LocalStorage(Path(text).expanduser().absolute())
    if text.partition("://")[0] in SCHEMES:
        return ObjectStorage.at(text)
    try:
        filesystem, root = fs.FileSystem.from_uri(text)
    except (pa.ArrowException, ValueError, ImportError) as error:
        raise UserError(f"{text} is not a valid run address: {error}; give a path or a URI such as s3://bucket/run") from error
    return LocalStorage(Path(root)) if isinstance(filesystem, fs.LocalFileSystem) else ArrowStorage(text, filesystem, root.rstrip("/"))
