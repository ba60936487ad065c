"""Ctrl-C and SIGTERM, the same for every command that works for long."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from loop.errors import InterruptedRunError


@contextmanager
def interruptible(work: str, remedy: str = "") -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: all that it opened is closed in order. For the main thread.

    Args:
        work: where what is done lies; of a run its folder.
        remedy: how it goes on; by default as a run does.

    Raises:
        InterruptedRunError: either came.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptedRunError(work, remedy) from error
    finally:
        signal.signal(signal.SIGTERM, before)
