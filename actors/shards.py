"""A shard of tasks, with its images."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

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

    @property
    def name(self) -> str:
        return f"records-{self.index:05d}"

    def __str__(self) -> str:
        return f"{self.name} of round {self.round} ({len(self.tasks)} tasks)"


_NUMBERS = itertools.count()
"""Numbers the `ShardImages` of this process: sources may use the same ids for different images."""


class ShardImages:
    """The images of one source in one view, each opened once and shared by generation and correction."""

    def __init__(self, source: ImageSource, view: View = raw) -> None:
        self._source = source
        self._view = view
        self._images: dict[str, Image.Image | BadImageError] = {}
        self._number = next(_NUMBERS)

    def open(self, image_id: str) -> Image.Image:
        """The view of the image, RGB.

        Raises:
            BadImageError: the source cannot read the image; remembered, so that a bad file is read once.
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
        """The key under which an engine may cache the image's features; different sources and views have different keys."""
        return f"{self._number}/{image_id}"


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the wall-clock seconds of the block to `seconds[stage]`."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
