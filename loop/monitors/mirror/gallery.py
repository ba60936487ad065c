"""The gallery of a run as artifacts in MLflow: pages of a few records a round, written in the process beside the driver.

What opens the images of a run lies above this package. The driver names that function, and this process imports it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from actors.images import ImageSource
from loop.config.run_config import RunConfig, stored_config
from loop.errors import one_line
from loop.store.run_store import Store

if TYPE_CHECKING:
    from loop.gallery.samples import RoundSamples

RecordImages = Callable[[RunConfig], Callable[[int], ImageSource]]
"""Maps the config of a run to what opens the images that the records of a round are about; a function of a module."""

TIMEOUT_S = 90.0
"""Time limit for the pages of one commit, below the limit of a reply to the driver."""
_REPEAT_S = 1.0


class GalleryTimeoutError(Exception):
    """The images of a round cannot be read in time. Not an `OSError`, which would be the fault of one image."""


@dataclass(frozen=True, slots=True)
class GallerySource:
    """What a gallery is made of; plain data, to be sent to another process."""

    run: str
    """The run folder, or its URI."""
    images: str
    """A `RecordImages`, as `module:name`."""
    num_samples: int
    """The most records of a round."""


def gallery_source(store: Store, record_images: RecordImages, num_samples: int) -> GallerySource:
    """The source of a run's gallery."""
    return GallerySource(store.uri, f"{record_images.__module__}:{record_images.__qualname__}", num_samples)


@dataclass
class GalleryWriter:
    """Writes the page of one round after the other, each with an index of all rounds."""

    source: GallerySource

    def write(self, round: int, folder: Path) -> str:
        """Write the page of a committed round and the index into a new folder; returns what they lack, or why there are none."""
        try:
            with _time_limit(TIMEOUT_S):
                return self._write(round, folder)
        except Exception as error:
            # The boundary of the gallery, which reads data of all kinds: MLflow gets everything else of the round.
            return f"round {round} has no page: {type(error).__name__}: {one_line(error)}"

    def _write(self, round: int, folder: Path) -> str:
        from loop.gallery import preview_of, rounds_with_pages, write_report

        for commit in rounds_with_pages(self._store.readable_commits()[0]):
            if commit.round < round and commit.round not in self._previews:  # written by an earlier process
                self._previews[commit.round] = preview_of(self._store, commit, self._images_of(commit.round))
        report = write_report(self._store, self._images_of, folder, [round], self.source.num_samples, previews=self._previews)
        missing = report.missing_pictures
        lacks = [f"images of round {round} that cannot be shown: {len(missing)}, such as {missing[0]}"] if missing else []
        return "; ".join([*report.problems, *lacks])

    @cached_property
    def _store(self) -> Store:
        return Store.open(self.source.run)

    @cached_property
    def _images_of(self) -> Callable[[int], ImageSource]:
        record_images: RecordImages = resolve_name(self.source.images)
        return record_images(stored_config(self._store.read_run().config))

    @cached_property
    def _previews(self) -> dict[int, RoundSamples]:
        """What the index shows of each round so far."""
        return {}


@contextmanager
def _time_limit(limit_s: float) -> Iterator[None]:
    """Raise `GalleryTimeoutError` in the main thread after `limit_s`, and again until the block has ended."""

    def stop(*_: object) -> None:
        raise GalleryTimeoutError(f"it takes longer than {limit_s:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s, _REPEAT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
