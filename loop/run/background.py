"""A call in a thread beside the driver's own work: each side ends the other when it fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from actors.training.job import TrainingCancelledError

log = logging.getLogger(__name__)

T = TypeVar("T")

_CANCEL_S = 60.0
"""How long a cancelled call is waited for. The trainer looks twice a second, and its ranks then have 20 s to exit."""


class Background(Generic[T]):
    """A call that runs in its own thread; see `in_background`."""

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self.elapsed_s = 0.0
        """Wall-clock of the call, once it has ended."""
        self._function = function
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def check(self) -> None:
        """Raise what the call has raised, if it has."""
        if self._error is not None:
            raise self._error

    def result(self) -> T:
        """Wait for the call, which bounds its own time, and return what it returned or raise what it raised."""
        self._thread.join()
        self.check()
        return self._results[0]

    def _run(self) -> None:
        started = time.perf_counter()
        try:
            self._results.append(self._function())
        except BaseException as error:  # passed on by `check` and `result` in the thread that waits
            self._error = error
        finally:
            self.elapsed_s = time.perf_counter() - started

    def _end(self) -> None:
        """Wait for the cancelled call, and report what it raised instead of the error that cancelled it."""
        self._thread.join(_CANCEL_S)
        if self._thread.is_alive():
            log.warning("%s was cancelled and has not ended after %g s; it ends with this process", self._thread.name, _CANCEL_S)
        elif self._error is not None and not isinstance(self._error, TrainingCancelledError):
            log.warning("%s has failed as well: %s: %s", self._thread.name, type(self._error).__name__, self._error)


@contextmanager
def in_background(function: Callable[[], T], cancel: Callable[[], None], name: str) -> Iterator[Background[T]]:
    """Run `function` in a thread while the block does something else and at last takes its `result`. The block calls `check` now and then,
    to end when the function fails. If the block raises an error, `cancel` is called to end the function, which is waited for.

    Signals reach the main thread alone, so the block should run there.
    """
    call = Background(function, name)
    call._thread.start()
    try:
        yield call
    except BaseException as error:
        if error is not call._error:
            cancel()
            call._end()
        raise
