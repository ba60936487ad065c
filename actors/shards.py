"""A shard of tasks, with its images."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachetools import LRUCache

from actors.images import BadImageError, ImageSource
from actors.views import View, raw, seen_through
from policies.generation.instructions import GenerationTask

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Shard:
    """A fixed list of tasks. It contains everything that an engine needs, so any engine can repeat it with the same result."""

    round: int
    index: int
    seed: int
    tasks: tuple[GenerationTask, ...]
    """All tasks of an image are in the same shard."""
    source: ImageSource
    revision: str = ""
    """Why the shard is worked on again, as a part of its name; empty the first time."""

    @property
    def name(self) -> str:
        return f"records-{self.index:05d}" + (f"-{self.revision}" if self.revision else "")

    def __str__(self) -> str:
        return f"{self.name} of round {self.round} ({len(self.tasks)} tasks)"


_NUMBERS = itertools.count()
"""Numbers the `ShardImages` of this process: sources may use the same ids for different images."""

_KEPT_BYTES = 1 << 28
"""Most pixels that a `ShardImages` keeps: 290 photos of 640 x 480."""


class ShardImages:
    """The images of one source in one view, opened when their pixels are needed and shared by generation and correction.

    Several threads may open images at the same time. The most recently used images stay in memory, up to `_KEPT_BYTES`; others are
    opened again.
    """

    def __init__(self, source: ImageSource, view: View = raw) -> None:
        self._source = source
        self._view = view
        self._kept: LRUCache[str, Image.Image] = LRUCache(_KEPT_BYTES, _num_bytes)
        self._sizes: dict[str, tuple[int, int]] = {}
        self._errors: dict[str, BadImageError] = {}
        self._lock = threading.Lock()
        self._opening: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._number = next(_NUMBERS)

    def image(self, image_id: str) -> ShardImage:
        """The view of the image, opened when its pixels are needed."""
        return ShardImage(self, image_id)

    def open(self, image_id: str) -> Image.Image:
        """The view of the image, RGB.

        Raises:
            BadImageError: the source cannot read the image; remembered, so that a bad file is read once.
            PolicyError: the view raised an error, or returned something other than an RGB image.
        """
        with self._lock:
            opening = self._opening[image_id]
        with opening:
            if image_id in self._errors:
                raise self._errors[image_id]
            with self._lock:
                kept = self._kept.get(image_id)
            return self._read(image_id) if kept is None else kept

    def size(self, image_id: str) -> tuple[int, int]:
        """Width and height of the view in pixels, which are remembered. Raises as `open` does."""
        return self._sizes.get(image_id) or self.open(image_id).size

    def error(self, image_id: str) -> BadImageError:
        """Why an image could not be opened, after an attempt that failed."""
        return self._errors[image_id]

    def key(self, image_id: str) -> str:
        """The key under which an engine may cache the image's features; different sources and views have different keys."""
        return f"{self._number}/{image_id}"

    def _read(self, image_id: str) -> Image.Image:
        try:
            image = self._source.open(image_id)
        except BadImageError as error:
            self._errors[image_id] = error
            raise
        image = seen_through(self._view, image)
        self._sizes[image_id] = image.size
        if _num_bytes(image) <= _KEPT_BYTES:
            with self._lock:
                self._kept[image_id] = image
        return image


@dataclass(frozen=True, slots=True)
class ShardImage:
    """A `LazyImage` of a shard."""

    images: ShardImages
    image_id: str

    @property
    def size(self) -> tuple[int, int]:
        return self.images.size(self.image_id)

    def open(self) -> Image.Image:
        return self.images.open(self.image_id)


def _num_bytes(image: Image.Image) -> int:
    return image.width * image.height * len(image.getbands())


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the wall-clock seconds of the block to `seconds[stage]`."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
