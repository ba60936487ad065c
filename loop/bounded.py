"""Reads untrusted files in a child process with limits on time and memory."""

from __future__ import annotations

import os
import resource
import select
import signal
import time
from collections.abc import Callable
from typing import NoReturn

import psutil

from loop.errors import UserError, one_line

_FINE = b"\0"
"""Starts a report that is not an error; no error message contains it."""


def run_with_limits(what: str, check: Callable[[], None], timeout_s: float, max_bytes: int) -> None:
    """Run `check` in a forked child; its side effects are lost. Arguments and errors are those of `report_with_limits`."""

    def checked() -> str:
        check()
        return ""

    report_with_limits(what, checked, timeout_s, max_bytes)


def report_with_limits(what: str, check: Callable[[], str], timeout_s: float, max_bytes: int) -> str:
    """Run `check` in a forked child and return its text; its side effects are lost.

    Args:
        what: the thing checked, as the start of an error message.
        check: raises `UserError` for what is wrong. Only the calling thread exists in the child.
        timeout_s: limit on wall-clock time.
        max_bytes: address space that the child may use on top of this process's.

    Raises:
        UserError: `check` raised it, a limit was reached, or the child died without a report.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _report(check, writer, timeout_s, max_bytes)
    os.close(writer)
    try:
        report = _read_all(reader, time.monotonic() + timeout_s)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if report is not None and report.startswith(_FINE):
        return report.removeprefix(_FINE).decode()
    if report is None:
        raise UserError(f"{what} cannot be checked within {timeout_s:.0f} s; use one from a trusted source")
    raise UserError(report.decode() or f"{what} crashes the process that reads it; use one from a trusted source")


def _report(check: Callable[[], str], writer: int, timeout_s: float, max_bytes: int) -> NoReturn:
    try:
        _limit(int(timeout_s) + 1, psutil.Process().memory_info().vms + max_bytes)
        try:
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
