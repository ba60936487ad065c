"""Messages of the pipeline: what a shard is, and what comes out of its stages."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.images import BadImageError, ImageSource
from actors.views import View, raw, seen_through
from policies.generation.instructions import GenerationTask

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Shard:
    """A fixed list of tasks. Everything that an engine needs is in it, so it can be made again anywhere with the same result."""

    round: int
    index: int
    seed: int
    tasks: tuple[GenerationTask, ...]
    """All tasks of an image are in the same shard."""
    source: ImageSource

    @property
    def name(self) -> str:
        return f"records-{self.index:05d}"

    def __str__(self) -> str:
        return f"{self.name} of round {self.round} ({len(self.tasks)} tasks)"


@dataclass(frozen=True, slots=True)
class ShardResult:
    """Records of a shard after a stage, and the seconds each stage has worked on it."""

    records: pa.Table
    seconds: dict[str, float] = field(default_factory=dict)


_NUMBERS = itertools.count()
"""Tells the `ShardImages` of this process apart: sources may use the same ids for different images."""


class ShardImages:
    """The images of one source in one view, opened once: generation, correction and its further looks read the same few."""

    def __init__(self, source: ImageSource, view: View = raw) -> None:
        self._source = source
        self._view = view
        self._images: dict[str, Image.Image | BadImageError] = {}
        self._number = next(_NUMBERS)

    def open(self, image_id: str) -> Image.Image:
        """The view of the image, RGB.

        Raises:
            BadImageError: as the source says; remembered, so that a bad file is read once.
            PolicyError: the view raised an error, or returned something other than an RGB image.
        """
        if image_id not in self._images:
            try:
                self._images[image_id] = seen_through(self._view, self._source.open(image_id))
            except BadImageError as error:
                self._images[image_id] = error
        found = self._images[image_id]
        if isinstance(found, BadImageError):
            raise found
        return found

    def key(self, image_id: str) -> str:
        """What an engine may keep the image's features by: another source, or another view, gives other keys."""
        return f"{self._number}/{image_id}"


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the wall-clock seconds of the block to `seconds[stage]`."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
