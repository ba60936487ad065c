"""Ctrl-C and SIGTERM handling of long-running commands."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from loop.errors import InterruptedRunError


@contextmanager
def interruptible(work: str, remedy: str = "") -> Iterator[None]:
    """Make SIGTERM end the block like Ctrl-C, so that everything it opened is closed in order. For the main thread.

    Args:
        work: where the finished work is; for a run, its folder.
        remedy: how to continue; by default, as for a run.

    Raises:
        InterruptedRunError: on Ctrl-C or SIGTERM.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptedRunError(work, remedy) from error
    finally:
        signal.signal(signal.SIGTERM, before)
