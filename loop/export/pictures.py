"""Export the images of records: files unchanged, under their own names if Windows allows them; images without files become PNGs.

Decoding takes most of the time: a file is copied unchanged, but a damaged one is left out. So images are read in several processes once
there are enough of them. Threads would not do: about half of the time Pillow holds the interpreter's lock. Names are given in the order of
the records, in this process, so that they do not depend on the number of processes.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from pathlib import PurePosixPath
from typing import TypeVar

from PIL import Image

from actors.images import BadImageError, FileSource, ImageSource
from loop.errors import ExportError, StoreError
from loop.sources.decoding import SUFFIXES
from loop.sources.routed import RoutedSource, unrouted

_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Characters that Windows forbids in file names."""
_SUFFIX_BY_START = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp"}
_NUM_READ_HERE = 4
"""Batches to read in this process before others are started, which costs as much as one of them."""
_BATCHES_AHEAD = 2
"""Batches of images, for each process, that are read or wait in memory."""
_BATCH_TIMEOUT_S = 600.0

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Picture:
    """One image as a file."""

    name: str
    """Path below the folder of images, unique even where case is ignored."""
    data: bytes


class Pictures:
    """The names of the exported images, and why some are missing. Memory: about 120 bytes an image."""

    def __init__(self, images: ImageSource) -> None:
        self._is_routed = isinstance(images, RoutedSource)
        self.bad: dict[str, str] = {}
        """Why an image is left out, by its id."""
        self._owners: dict[int, int] = {}  # digests of a name and of the image that has it; texts would take a gigabyte for millions
        self._renamed: dict[str, str] = {}
        self._num_set_aside = 0

    @property
    def num_images(self) -> int:
        """Images that are exported."""
        return len(self._owners) - self._num_set_aside

    def named(self, image_id: str, found: Picture | str) -> Picture | None:
        """An image as it was found, under the name that it has in the export; None if it cannot be read."""
        if isinstance(found, str):
            self.bad.setdefault(image_id, found)
        if image_id in self.bad or isinstance(found, str):
            return None
        return Picture(self._free_name(image_id, _portable(found.name, found.data)), found.data)

    def set_aside(self, image_id: str, reason: str) -> None:
        """Leave out an image, which is exported so far, for all records about it."""
        if image_id not in self.bad:
            self._num_set_aside += 1
        self.bad[image_id] = reason

    def _free_name(self, image_id: str, name: str) -> str:
        """The name, in a folder of its set if another image has it already."""
        if image_id in self._renamed or self._take(name, image_id):
            return self._renamed.get(image_id, name)
        path, number = PurePosixPath(unrouted(image_id)[0] if self._is_routed else "") / name, 1
        free = str(path)
        while not self._take(free, image_id):
            number += 1
            free = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
        self._renamed[image_id] = free
        return free

    def _take(self, name: str, image_id: str) -> bool:
        """Whether the image has the name, which it takes if no other image has it."""
        owner = _digest(image_id)
        return self._owners.setdefault(_digest(name.casefold()), owner) == owner


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest())


def _portable(name: str, data: bytes) -> str:
    """A name that Windows also allows, with an image suffix."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise StoreError(f"image id {name.removesuffix('.png')!r} leads outside of the export's folder")
    if not name.lower().endswith(SUFFIXES):
        name += next((suffix for start, suffix in _SUFFIX_BY_START.items() if data.startswith(start)), ".png")
    return "/".join(map(_portable_part, PurePosixPath(name).parts))


def _portable_part(part: str) -> str:
    part = _FORBIDDEN.sub("_", part).rstrip(". ")
    return f"_{part}" if not part or _RESERVED.fullmatch(part) else part


# ---- reading


def read_pictures(
    images: ImageSource, batches: Iterable[tuple[_Item, Sequence[str]]], workers: int
) -> Generator[tuple[_Item, dict[str, Picture | str]], None, None]:
    """For each batch of image ids: its images under the names of their files, or why they cannot be read. The order is kept.

    Close the iterator if it is not used up: that ends the processes. They also end when this process is killed.

    Raises:
        ExportError: a process died, or did not read a batch in time.
    """
    remaining = iter(batches)
    for item, ids in islice(remaining, None if workers == 1 else _NUM_READ_HERE):
        yield item, _read(images, ids)
    if (first := next(remaining, None)) is None:
        return
    pending: deque[tuple[_Item, Future[dict[str, Picture | str]]]] = deque()
    with _processes(images, workers) as pool:
        for item, ids in chain([first], remaining):
            pending.append((item, pool.submit(_read_in_process, ids)))
            if len(pending) > _BATCHES_AHEAD * workers:
                yield _done(*pending.popleft())
        while pending:
            yield _done(*pending.popleft())


def _done(item: _Item, found: Future[dict[str, Picture | str]]) -> tuple[_Item, dict[str, Picture | str]]:
    try:
        return item, found.result(_BATCH_TIMEOUT_S)
    except BrokenProcessPool as error:
        raise ExportError("a process that reads images died; if memory is short, lower --workers, and export again") from error
    except TimeoutError as error:
        raise ExportError(
            f"images were not read within {_BATCH_TIMEOUT_S:.0f} s; check the storage that they are on, and export again"
        ) from error


@contextmanager
def _processes(images: ImageSource, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that read from the source. They are spawned, as threads of this one may hold locks that a fork would copy.

    They end when this process closes its end of a pipe, which the system does if it is killed. They write nothing, so that nothing is lost.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    pool = ProcessPoolExecutor(workers, context, _begin, (images, theirs))
    try:
        yield pool
    finally:
        ours.close()
        pool.shutdown()
        theirs.close()


_source: ImageSource


def _begin(images: ImageSource, lifeline: Connection) -> None:
    """Set up a process, which leaves Ctrl-C to its parent."""
    global _source
    _source = images
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    wait([lifeline])
    os._exit(1)


def _read_in_process(ids: Sequence[str]) -> dict[str, Picture | str]:
    return _read(_source, ids)


def _read(images: ImageSource, ids: Sequence[str]) -> dict[str, Picture | str]:
    return {image_id: _picture(images, image_id) for image_id in dict.fromkeys(ids)}


def _picture(images: ImageSource, image_id: str) -> Picture | str:
    """The image under the name of its file, or why it cannot be read."""
    try:
        source, inner = images.found(image_id) if isinstance(images, RoutedSource) else (images, image_id)
        image = images.open(image_id)  # even if the file is copied unchanged: a damaged one is left out
        name, data = source.read_file(inner) if isinstance(source, FileSource) else (f"{inner}.png", _png(image))
    except BadImageError as error:
        return str(error)
    return Picture(name, data)


def _png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()
