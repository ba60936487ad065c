"""Reads untrusted files in a child process with limits on time and memory."""

from __future__ import annotations

import os
import resource
import select
import signal
import time
from collections.abc import Callable
from typing import NoReturn, Self

import psutil

from loop.errors import UserError, one_line

_FINE = b"\0"
"""Starts a report that is not an error; no error message contains it."""


def run_with_limits(what: str, check: Callable[[], None], timeout_s: float, max_bytes: int) -> None:
    """Run `check` in a forked child; its side effects are lost. For arguments and errors see `LimitedCheck`."""

    def checked() -> str:
        check()
        return ""

    report_with_limits(what, checked, timeout_s, max_bytes)


def report_with_limits(what: str, check: Callable[[], str], timeout_s: float, max_bytes: int) -> str:
    """Run `check` in a forked child and return its text; its side effects are lost. For arguments and errors see `LimitedCheck`."""
    with LimitedCheck(what, check, timeout_s, max_bytes) as running:
        return running.report()


class LimitedCheck:
    """A check in a forked child, beside which this process goes on. Its side effects are lost. Use it in a `with` block, whose end kills a
    child that is still running."""

    def __init__(
        self, what: str, check: Callable[[], str], timeout_s: float, max_bytes: int, prepare: Callable[[], None] = lambda: None
    ) -> None:
        """Start the child. Fork before other threads of this process hold locks that `check` needs, as of imports.

        Args:
            what: the thing checked, as the start of an error message.
            check: raises `UserError` for what is wrong. Only the calling thread exists in the child.
            timeout_s: limit on wall-clock time.
            max_bytes: address space that the child may use on top of this process's, and of what `prepare` takes.
            prepare: imports in the child what the check needs and is trusted.
        """
        self._what = what
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._reader, writer = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._reader)
            _report(check, writer, timeout_s, max_bytes, prepare)
        os.close(writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._reader)
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)

    def report(self) -> str:
        """Wait for the text that the check returns.

        Raises:
            UserError: the check raised it, a limit was reached, or the child died without a report.
        """
        report = _read_all(self._reader, self._deadline)
        if report is not None and report.startswith(_FINE):
            return report.removeprefix(_FINE).decode()
        if report is None:
            raise UserError(f"{self._what} cannot be checked within {self._timeout_s:.0f} s; use one from a trusted source")
        raise UserError(report.decode() or f"{self._what} crashes the process that reads it; use one from a trusted source")


def _report(check: Callable[[], str], writer: int, timeout_s: float, max_bytes: int, prepare: Callable[[], None]) -> NoReturn:
    try:
        try:
            prepare()
            _limit(int(timeout_s) + 1, psutil.Process().memory_info().vms + max_bytes)
            report = _FINE + check().encode(errors="backslashreplace")
        except UserError as error:
            report = str(error).encode(errors="backslashreplace")
        except Exception as error:
            # The process boundary: libraries may raise anything on an untrusted file.
            report = f"{type(error).__name__}: {one_line(error)}".encode(errors="backslashreplace")
        with os.fdopen(writer, "wb") as stream:
            stream.write(report)
    finally:
        os._exit(0)


def _limit(num_seconds: int, num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (num_seconds, num_seconds))  # ends the child even if its parent dies
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))


def _read_all(reader: int, deadline: float) -> bytes | None:
    """Everything written until the other end closes; None on timeout."""
    chunks = []
    while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
    return None
