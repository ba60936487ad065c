"""Read data from a local path or from a URI that `pyarrow.fs` or fsspec knows, through one small interface."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from loop.errors import UserError, one_line, printable
from loop.sources.reading.unread import HIDDEN, HIDDEN_FOLDER, LINKED_FOLDER, note_unread, tell_unread

log = logging.getLogger(__name__)

ACCESS_ERRORS = (OSError, ValueError, LookupError, RuntimeError, ImportError, EOFError, MemoryError, pa.ArrowException)
"""What filesystems raise, and pyarrow's readers on damaged files."""


@dataclass(frozen=True)
class Place:
    """A file or a folder to read from. It is pickled as its address; every process connects once."""

    address: str
    """An absolute path, or a URI such as `s3://bucket/folder`."""

    @classmethod
    def of(cls, address: str | Path, what: str) -> Place:
        """The place behind a path or a URI; `what` names it in errors.

        Raises:
            UserError: no filesystem knows the URI, or its library is not installed.
        """
        try:
            place = cls(str(address) if "://" in str(address) else str(Path(address).expanduser().absolute()))
            _connected(place.address)
        except ACCESS_ERRORS as error:  # RuntimeError: ~USER of an unknown user
            raise UserError(f"{what} {address} cannot be found: {one_line(error)}; give a path or a URI such as s3://bucket/x") from error
        return place

    @property
    def local(self) -> Path | None:
        """The path, if it is on a local filesystem."""
        return self.path if isinstance(_connected(self.address)[0], fs.LocalFileSystem) else None

    @property
    def path(self) -> Path:
        """The path in its filesystem, local or not."""
        return Path(_connected(self.address)[1])

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.name

    @property
    def parent(self) -> Place:
        """The folder that contains it."""
        path, mark, query = self.address.partition("?") if "://" in self.address else (self.address, "", "")
        return Place(path.rstrip("/").rpartition("/")[0] + mark + query if "://" in path else str(Path(path).parent))

    def is_file(self) -> bool:
        return self._type() is fs.FileType.File

    def is_folder(self) -> bool:
        return self._type() is fs.FileType.Directory

    def names(self, suffixes: Sequence[str], unread: Counter[str] | None = None) -> list[str]:
        """Files of a folder at any depth by their relative path with `/`, sorted; hidden ones are left out, folders behind links not
        entered. Files that may hold images but are left out are counted in `unread`. Raises `UserError` if it cannot be listed."""
        unread = Counter() if unread is None else unread
        found = []
        for name in self._listed(unread):
            if not any(part.startswith(".") for part in name.split("/")):
                note_unread(name, suffixes, unread)
                found += [name] if name.lower().endswith(tuple(suffixes)) else []
            elif name.lower().endswith(tuple(suffixes)):
                unread[HIDDEN] += 1
        usable = [name for name in found if _is_utf8(name)]
        if len(usable) < len(found):
            log.warning("%d files of %s are left out: their names are not UTF-8", len(found) - len(usable), self.address)
        return sorted(usable)

    def open(self, name: str = "") -> pa.NativeFile:
        """A file of the folder (or the file itself), for random access. Raises what is in `ACCESS_ERRORS`."""
        filesystem, root = _connected(self.address)
        path = f"{root}/{name}" if name else root
        if isinstance(filesystem, fs.LocalFileSystem) and not os.path.isfile(path):  # opening a pipe would wait for a writer
            raise FileNotFoundError(f"{path} is not a file")
        return filesystem.open_input_file(path)

    def _listed(self, unread: Counter[str]) -> Iterator[str]:
        filesystem, root = _connected(self.address)
        if isinstance(filesystem, fs.LocalFileSystem):
            for folder, folders, files in os.walk(root, onerror=_refuse_unreadable):
                unread[HIDDEN_FOLDER] += sum(name.startswith(".") for name in folders)
                folders[:] = [name for name in folders if not name.startswith(".")]
                unread[LINKED_FOLDER] += sum(os.path.islink(os.path.join(folder, name)) for name in folders)
                yield from (Path(folder, name).relative_to(root).as_posix() for name in files)
            return
        try:
            entries = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
        except ACCESS_ERRORS as error:
            raise UserError(f"{self.address} cannot be listed: {one_line(error)}; check the address and its permissions") from error
        yield from (PurePosixPath(one.path).relative_to(root).as_posix() for one in entries if one.type is fs.FileType.File)

    def _type(self) -> fs.FileType:
        filesystem, root = _connected(self.address)
        try:
            return filesystem.get_file_info(root).type
        except ACCESS_ERRORS as error:
            raise UserError(f"{self.address} cannot be looked up: {one_line(error)}; check the address and its permissions") from error


def stored_files(path: str | Path, suffixes: Sequence[str], what: str) -> tuple[Place, list[str]]:
    """A file, or all files of a folder that end in one of `suffixes`: the folder, and their names in it.

    Raises:
        UserError: there is no such file, or a name, which becomes part of ids, is not printable.
    """
    place = Place.of(path, what)
    if place.is_file():
        place, names = place.parent, [place.name]
    elif place.is_folder():
        unread: Counter[str] = Counter()
        names = place.names(suffixes, unread)
        tell_unread(f"{what} {path}", suffixes, unread)
    else:
        raise UserError(f"{what} {path} does not exist; expected a file or a folder of files that end in {', '.join(suffixes)}")
    if not names:
        raise UserError(f"{what} {path} holds no file that ends in {', '.join(suffixes)}")
    if odd := next((name for name in names if not name.isprintable()), None):
        raise UserError(f"{what} {path} holds the file {printable(odd)}, which cannot be part of an image id; rename it")
    return place, names


def stays_inside(name: str) -> bool:
    """Whether a relative path cannot leave its folder."""
    return bool(name) and "\0" not in name and not name.startswith("/") and ".." not in name.split("/")


@lru_cache(maxsize=256)
def _connected(address: str) -> tuple[fs.FileSystem, str]:
    """Filesystem and path in it. Protocols that pyarrow does not know are looked up in fsspec."""
    if "://" not in address:
        return fs.LocalFileSystem(), address
    try:
        filesystem, root = fs.FileSystem.from_uri(address)
    except pa.ArrowInvalid:
        if address.startswith("fsspec+"):
            raise
        filesystem, root = fs.FileSystem.from_uri(f"fsspec+{address}")
    return filesystem, root.rstrip("/")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"folder {error.filename} cannot be read: {error.strerror}; check its permissions") from error
