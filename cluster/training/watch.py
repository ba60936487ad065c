"""Polls trainer ranks while they start and train. A rank that hangs does not answer, so no poll waits for an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import ray

from actors.training.job import Progress, RankLostError

WATCH_GROUP = "watch"
"""Ray's concurrency group of one thread in which ranks answer polls, separate from all other calls."""

_GET_TIMEOUT_S = 20.0
"""For fetching an answer that is ready."""


class Watch(Protocol):
    """Polled repeatedly while the driver waits for the ranks."""

    def poll(self) -> None:
        """Checks for progress, without waiting for any.

        Raises:
            RankLostError: there has been none for too long.
        """
        ...


class StartWatch:
    """Polls the start phases of all ranks: a start fails if no rank has made progress for `timeout_s` seconds."""

    def __init__(self, ranks: Sequence[Any], timeout_s: float) -> None:
        self._ranks = ranks
        self._timeout_s = timeout_s
        self._asked = [_ask(rank.start_phase) for rank in ranks]
        self._phases = ["starting its process"] * len(ranks)
        self._last_at = time.monotonic()

    def poll(self) -> None:
        """See `Watch.poll`."""
        for number, (rank, asked) in enumerate(zip(self._ranks, self._asked, strict=True)):
            answered, _ = ray.wait([asked], timeout=0)
            if not answered:
                continue
            phase = str(ray.get(asked, timeout=_GET_TIMEOUT_S))
            self._asked[number] = _ask(rank.start_phase)
            if phase != self._phases[number]:
                self._phases[number], self._last_at = phase, time.monotonic()
        if time.monotonic() - self._last_at > self._timeout_s:
            phases = ", ".join(f"rank {number} {phase}" for number, phase in enumerate(self._phases))
            raise RankLostError(f"the trainer did not start within {self._timeout_s:g} s of its last progress: {phases}")


class ProgressWatch:
    """Polls the progress of one rank in a job and reports it: a job stalls if there is none for `stall_timeout_s` seconds."""

    def __init__(self, rank: Any, on_progress: Callable[[Progress], None], stall_timeout_s: float) -> None:
        self._rank = rank
        self._on_progress = on_progress
        self._stall_timeout_s = stall_timeout_s
        self._asked = _ask(rank.progress)
        self._last: Progress | None = None
        self._last_at = time.monotonic()

    def poll(self) -> None:
        """See `Watch.poll`."""
        progress = self._answer()
        if progress is not None and progress != self._last:
            self._last, self._last_at = progress, time.monotonic()
            self._on_progress(progress)
        elif time.monotonic() - self._last_at > self._stall_timeout_s:
            step = 0 if self._last is None else self._last.step
            raise RankLostError(f"the trainer has made no progress for {self._stall_timeout_s:g} s after step {step}")

    def _answer(self) -> Progress | None:
        answered, _ = ray.wait([self._asked], timeout=0)
        if not answered:
            return None
        progress: Any = ray.get(self._asked, timeout=_GET_TIMEOUT_S)
        self._asked = _ask(self._rank.progress)
        return progress


def _ask(method: Any) -> ray.ObjectRef:
    return method.options(concurrency_group=WATCH_GROUP).remote()
