"""The gallery of a run as artifacts in MLflow: pages of a few records a round, written in the process beside the driver."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from loop.errors import one_line
from loop.monitors.mirror.records import RunRecords

if TYPE_CHECKING:
    from loop.gallery.samples import RoundSamples

TIMEOUT_S = 90.0
"""Time limit for the pages of one commit, below the limit of a reply to the driver."""
_REPEAT_S = 1.0


class GalleryTimeoutError(Exception):
    """The images of a round cannot be read in time. Not an `OSError`, which would be the fault of one image."""


@dataclass
class GalleryWriter:
    """Writes the page of one round after the other, each with an index of all rounds."""

    records: RunRecords

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

        for commit in rounds_with_pages(self.records.store.readable_commits()[0]):
            if commit.round < round and commit.round not in self._previews:  # written by an earlier process
                self._previews[commit.round] = preview_of(self.records.store, commit, self.records.images_of(commit.round))
        report = write_report(
            self.records.store, self.records.images_of, folder, [round], self.records.source.gallery_samples, previews=self._previews
        )
        missing = report.missing_pictures
        lacks = [f"images of round {round} that cannot be shown: {len(missing)}, such as {missing[0]}"] if missing else []
        return "; ".join([*report.problems, *lacks])

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
