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
        self._timeout_s = timeout_s
        self._polls = [_Poll(rank.start_phase) for rank in ranks]
        self._phases = ["starting its process"] * len(ranks)
        self._last_at = time.monotonic()

    def poll(self) -> None:
        """See `Watch.poll`."""
        for number, poll in enumerate(self._polls):
            phase = poll.answer()
            if phase is not None and phase != self._phases[number]:
                self._phases[number], self._last_at = phase, time.monotonic()
        if time.monotonic() - self._last_at > self._timeout_s:
            phases = ", ".join(f"rank {number} {phase}" for number, phase in enumerate(self._phases))
            raise RankLostError(f"the trainer did not start within {self._timeout_s:g} s of its last progress: {phases}")


class ProgressWatch:
    """Polls the progress of one rank in a job and reports it: a job stalls if there is none for `stall_timeout_s` seconds."""

    def __init__(self, rank: Any, on_progress: Callable[[Progress], None], stall_timeout_s: float) -> None:
        self._poll = _Poll(rank.progress)
        self._on_progress = on_progress
        self._stall_timeout_s = stall_timeout_s
        self._last: Progress | None = None
        self._last_at = time.monotonic()

    def poll(self) -> None:
        """See `Watch.poll`."""
        progress: Progress | None = self._poll.answer()
        if progress is not None and progress != self._last:
            self._last, self._last_at = progress, time.monotonic()
            self._on_progress(progress)
        elif time.monotonic() - self._last_at > self._stall_timeout_s:
            step = 0 if self._last is None else self._last.step
            raise RankLostError(f"the trainer has made no progress for {self._stall_timeout_s:g} s after step {step}")


class _Poll:
    """A question that a rank is asked again as soon as it has answered."""

    def __init__(self, method: Any) -> None:
        self._method = method.options(concurrency_group=WATCH_GROUP)
        self._asked: ray.ObjectRef = self._method.remote()

    def answer(self) -> Any:
        """The newest answer; None if there is none since the last call. Never waits for the rank."""
        answered, _ = ray.wait([self._asked], timeout=0)
        if not answered:
            return None
        answer = ray.get(self._asked, timeout=_GET_TIMEOUT_S)
        self._asked = self._method.remote()
        return answer
