"""Read images from the tars of WebDataset in place: nothing is ever extracted.

An image's id is `SHARD/MEMBER`, for example `train-0001.tar/000012.jpg`. Every member with an image's suffix is an image, even if
WebDataset's key (the name up to the first dot of its last part) would put several of them into one sample: `22.05.png` and `22.06.png`, or
`7.left.jpg` and `7.right.jpg`. The second member of the same name is called `MEMBER#2`. Concatenated tars are all read.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from actors.images import BadImageError
from loop.errors import UserError, one_line, printable
from loop.sources.decoding import MAX_FILE_BYTES, SUFFIXES, check_limit, decoded
from loop.sources.reading.places import ACCESS_ERRORS, Place, stored_files
from loop.sources.reading.unread import HIDDEN, listed, note_unread, say_once, tell_unread

_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_WILD = re.compile(r"[*\[{]")
_MAX_SHARDS = 1_000_000
_TAR = ".tar"
_AGAIN = "#"
_LINKS, _NO_FILES = "links to images", "images that are not plain files"
_MAX_HEADER_BYTES = 1 << 20
"""Most bytes that are read for the headers of a member: a tar may claim names of any length."""
_LOCAL_WINDOW_BYTES, _REMOTE_WINDOW_BYTES = 1 << 12, 1 << 23
_NUM_READERS = 8
"""Shards whose headers are read at the same time. Threads wait for disks and servers together; parsing takes turns on the GIL."""
_CACHED_INDEXES = 4096
_indexing = threading.Lock()
"""Held while a shard is looked through, so that threads that open images of the same shard do not all do it."""
_TAR_ERRORS = (*ACCESS_ERRORS, tarfile.TarError)


class TarImages:
    """The images of a WebDataset. It is pickled without its list of ids; a process that opens an image reads the headers of its shard once,
    and keeps 16 bytes per image."""

    def __init__(self, path: str, limit: int | None = None, members: str | None = None) -> None:
        """Args:
            path: a tar, a folder of tars, or a pattern of them with ranges such as `{0000..0099}`, `*` and `[ab]`; a path or a URI.
            limit: number of images to take, from the first; None takes all.
            members: a pattern such as `*.left.jpg`; take only members whose name, without folders, matches it.

        Raises:
            UserError: a shard is missing, not a tar, truncated or compressed, there is no image, or a limit is invalid.
        """
        check_limit(limit)
        self.place, self._shards = _shards(path)
        self.limit, self.members = limit, members
        self._ids: list[str] | None = None
        unread: Counter[str] = Counter()
        self._ids = self._found(unread)
        if not self._ids:
            found = f" and holds {listed(+unread)}" if +unread else ""
            fitting = f" and whose name fits {members}" if members else ""
            raise UserError(f"WebDataset {path} holds no image{found}; expected members that end in {', '.join(SUFFIXES)}{fitting}")
        tell_unread(f"WebDataset {path}", SUFFIXES, unread)

    def image_ids(self) -> list[str]:
        if self._ids is None:
            self._ids = self._found(Counter())
        return list(self._ids)

    def open(self, image_id: str) -> Image.Image:
        return decoded(io.BytesIO(self._read(image_id)), image_id)

    def read_file(self, image_id: str) -> tuple[str, bytes]:
        member = image_id.partition(f"{_TAR}/")[2]
        return _member_name(member), self._read(image_id)

    def _read(self, image_id: str) -> bytes:
        name = printable(image_id)
        shard, mark, member = image_id.partition(f"{_TAR}/")
        shard += _TAR
        if not mark or shard not in self._shards:
            raise BadImageError(f"{name}: is in no shard", f"of {self.place.address}")
        try:
            return _read_member(self.place, shard, member)
        except BadImageError as error:
            raise BadImageError(f"{name}: {error.reason}", error.where) from error
        except _TAR_ERRORS as error:
            raise BadImageError(f"{name}: cannot be read", f"from {self.place.address}: {printable(one_line(error))}") from error

    def _found(self, unread: Counter[str]) -> list[str]:
        found: list[str] = []
        for listing in self._read_shards() if self.limit is None else self._read_up_to(self.limit):
            found += listing.ids
            unread.update(listing.unread)
            for note in listing.notes:
                say_once(note)
        return found

    def _read_shards(self) -> Iterator[_Listing]:
        """All shards in their order, several read at the same time."""
        with ThreadPoolExecutor(_NUM_READERS, "reading headers") as pool:
            yield from pool.map(self._listing, self._shards)

    def _read_up_to(self, limit: int) -> Iterator[_Listing]:
        """The first images of the set; shards behind them are not read."""
        for shard in self._shards:
            listing = self._listing(shard, limit)
            yield listing
            limit -= len(listing.ids)
            if limit == 0:
                return

    def _listing(self, shard: str, limit: int | None = None) -> _Listing:
        listing = _Listing()
        listing.ids += (f"{shard}/{name}" for name in islice(self._names(shard, listing), limit))
        return listing

    def _names(self, shard: str, listing: _Listing) -> Iterator[str]:
        """The images of a shard; what is to be told about it goes into `listing`."""
        keys: dict[str, str] = {}
        pairs: list[tuple[str, str]] = []
        num_read, num_named_twice = 0, 0
        where = f"shard {self.place.address}/{shard}"
        try:
            for name, _ in _images(self.place, shard, listing.unread):
                num_read += 1
                if not name.isprintable():
                    raise UserError(f"{where} holds the member {printable(name)}, which cannot be part of an image id; rename it")
                if self.members is not None and not fnmatchcase(_member_name(name).rpartition("/")[2], self.members):
                    continue
                if _member_name(name) != name:
                    num_named_twice += 1
                elif (first := keys.setdefault(_key(name), name)) != name:
                    pairs.append((first, name))
                yield name
        except _TAR_ERRORS as error:
            if isinstance(error, UserError):
                raise
            reason = printable(one_line(error))
            raise UserError(f"{where} cannot be read after {num_read} images: {reason}; expected a whole tar, not compressed") from error
        if pairs and self.members is None:
            both = f"such as {pairs[0][0]} and {pairs[0][1]}"
            listing.notes.append(
                f"{where}: {len(pairs)} images share the name up to the first dot, {both}; all are taken, `members` takes some"
            )
        if num_named_twice:
            listing.notes.append(
                f"{where}: {num_named_twice} images have the name of an earlier one; all are taken, as NAME{_AGAIN}2 and so on"
            )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_ids": None}


@dataclass(slots=True)
class _Listing:
    """What the headers of a shard say."""

    ids: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Index:
    """Where the members of a shard begin, by the hash of their name."""

    hashes: np.ndarray
    """uint64, sorted."""
    offsets: np.ndarray
    """int64, of each member's first header, in bytes."""

    def offset(self, member: str) -> int | None:
        place = int(np.searchsorted(self.hashes, _hash(member)))
        return int(self.offsets[place]) if place < len(self.hashes) and self.hashes[place] == _hash(member) else None


@lru_cache(maxsize=_CACHED_INDEXES)
def index_of_shard(place: Place, shard: str) -> _Index:
    """Where the images of a shard are, read once per process: a shard that is replaced later gives errors, not other images."""
    members = [(_hash(name), offset) for name, offset in _images(place, shard, Counter())]
    found = np.array(members, dtype=[("hash", np.uint64), ("offset", np.int64)])
    found.sort(order="hash")
    return _Index(found["hash"].copy(), found["offset"].copy())


def _hash(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "big"))


def _key(member: str) -> str:
    folder, slash, name = member.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"


def _images(place: Place, shard: str, unread: Counter[str]) -> Iterator[tuple[str, int]]:
    """Regular members with an image's suffix: name, and offset of the first header. Raises what is in `_TAR_ERRORS`."""
    num_named: Counter[int] = Counter()
    with place.open(shard) as stream:
        window = _HeaderWindow(stream, _REMOTE_WINDOW_BYTES if place.local is None else _LOCAL_WINDOW_BYTES)
        for member in _headers(window, stream.size()):
            is_image = member.name.lower().endswith(SUFFIXES)
            if member.name.rpartition("/")[2].startswith("."):
                unread[HIDDEN] += is_image
            elif is_image and member.isreg() and not member.issparse():
                number = int(_hash(member.name))
                num_named[number] += 1
                yield member.name if num_named[number] == 1 else f"{member.name}{_AGAIN}{num_named[number]}", member.offset
            elif is_image:
                unread[_LINKS if member.issym() or member.islnk() else _NO_FILES] += 1
            elif member.isreg():
                note_unread(member.name, SUFFIXES, unread)


def _headers(window: _HeaderWindow, num_bytes: int) -> Iterator[tarfile.TarInfo]:
    """The members of all tars in a file: `cat` puts one after the end mark of the other."""
    start: int | None = 0
    last = -1
    while start is not None:
        with _tar_at(window, start) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # otherwise it keeps them all
                if member.offset <= last:
                    raise tarfile.ReadError("its headers form a loop")
                last = member.offset
                yield member
            window.seek(tar.offset)
            if window.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile treats damaged headers as the end
                raise tarfile.ReadError(f"there is neither a header nor the end mark at byte {tar.offset}")
            start = _behind_end_mark(window, tar.offset, num_bytes)


def _behind_end_mark(window: _HeaderWindow, offset: int, num_bytes: int) -> int | None:
    """Where the next tar begins after the zeros that end one; None if only zeros follow."""
    window.seek(offset)
    for start in range(offset, num_bytes, tarfile.BLOCKSIZE):
        block = window.read(tarfile.BLOCKSIZE)
        if block.strip(b"\0"):
            try:
                tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
            except tarfile.HeaderError as error:
                raise tarfile.ReadError(f"what follows its end mark, from byte {start} on, is not a tar; cut it off") from error
            return start
    return None


def _member_name(name: str) -> str:
    """The name in the tar of a member, whose id ends in `#2` for the second of that name."""
    stem, mark, number = name.rpartition(_AGAIN)
    return stem if mark and number.isdecimal() and stem.lower().endswith(SUFFIXES) else name


def _read_member(place: Place, shard: str, name: str) -> bytes:
    with _indexing:
        index = index_of_shard(place, shard)
    offset = index.offset(name)
    if offset is None:
        raise BadImageError("there is no such member", f"in {place.address}")
    with place.open(shard) as stream, _tar_at(_HeaderWindow(stream, _LOCAL_WINDOW_BYTES), offset) as tar:
        member = tar.next()
        if member is None or member.name != _member_name(name):
            raise BadImageError("the shard has changed since it was looked through")
        if member.size > MAX_FILE_BYTES:
            raise BadImageError(f"has {member.size} bytes; the limit is {MAX_FILE_BYTES}")
        stream.seek(member.offset_data)
        return stream.read(member.size)


def _tar_at(window: _HeaderWindow, offset: int) -> Any:
    """A `TarFile` (whose type hides `members`) that begins at a member."""
    window.seek(offset)
    return tarfile.open(fileobj=window, mode="r:")


class _HeaderWindow(io.RawIOBase):
    """The stream that `tarfile` reads headers from: it fetches a window of the file at once, and never more than headers may take."""

    def __init__(self, stream: pa.NativeFile, num_bytes: int) -> None:
        self._stream, self._num_bytes = stream, num_bytes
        self._position = self._start = 0
        self._window = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        inside = self._position - self._start
        if inside < 0 or inside + size > len(self._window):
            self._stream.seek(min(self._position, self._stream.size()))
            self._start, inside = self._position, 0
            self._window = self._stream.read(max(size, self._num_bytes))
        data = self._window[inside : inside + size]
        self._position += len(data)
        return data

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or position < 0:
            raise tarfile.ReadError(f"a header leads to byte {position}")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position


def _shards(path: str) -> tuple[Place, tuple[str, ...]]:
    """The folder of a WebDataset, and the names of its shards in it."""
    base, pattern = _split_pattern(path)
    if not pattern:
        place, names = stored_files(path, (_TAR,), "WebDataset")
        return place, _usable(names, path)
    place = Place.of(base, "WebDataset")
    if not place.is_folder():
        raise UserError(f"WebDataset {path}: there is no folder {base}")
    present = place.names((_TAR,))
    names = [name for one in _expanded(pattern, path) for name in _matching(one, present, path)]
    return place, _usable(names, path)


def _split_pattern(path: str) -> tuple[str, str]:
    """The folder before the first part of a path that holds a wildcard or a range, and the rest; the rest is empty if there is neither,
    or if a file or folder has exactly this name."""
    scheme, mark, rest = path.rpartition("://")
    rest, question, query = rest.partition("?") if mark else (rest, "", "")
    parts = rest.split("/")
    first = next((index for index, part in enumerate(parts) if _WILD.search(part)), None)
    if first is None or (not mark and Path(path).exists()):
        return path, ""
    return f"{scheme}{mark}{'/'.join(parts[:first]) or ('' if mark else '.')}{question}{query}", "/".join(parts[first:])


def _expanded(pattern: str, path: str) -> list[str]:
    """A pattern for each number of its ranges."""
    patterns = [pattern]
    while found := _RANGE.search(patterns[0]):
        first, last = int(found[1]), int(found[2])
        num = last - first + 1
        if num < 1 or num * len(patterns) > _MAX_SHARDS:
            raise UserError(f"WebDataset {path}: the range {found[0]} is empty or makes more than {_MAX_SHARDS} shards")
        patterns = [_RANGE.sub(str(number).zfill(len(found[1])), one, count=1) for one in patterns for number in range(first, last + 1)]
    return patterns


def _matching(pattern: str, present: list[str], path: str) -> list[str]:
    parts = pattern.split("/")
    if not _WILD.search(pattern):
        names = [pattern] if pattern in set(present) else []
    else:
        names = [name for name in present if len(split := name.split("/")) == len(parts) and all(map(fnmatchcase, split, parts))]
    if not names:
        raise UserError(f"WebDataset {path}: there is no shard {pattern}; expected files that end in {_TAR}")
    return names


def _usable(names: list[str], path: str) -> tuple[str, ...]:
    odd = next((name for name in names if not name.isprintable() or not name.endswith(_TAR) or f"{_TAR}/" in name), None)
    if odd is not None:
        raise UserError(f"WebDataset {path} holds the shard {printable(odd)}; expected a printable name that ends in {_TAR}")
    return tuple(dict.fromkeys(names))
