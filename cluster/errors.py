"""Errors of the cluster. Every error keeps its parts in `args`, so that it survives pickling."""

from __future__ import annotations

import re
import textwrap

HOW_TO_RESUME = "continue with `vigc resume`, a training with `vigc train --resume`"
"""Advice in errors that end the process and do not know which command it runs."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_MAX_LINE_CHARS = 240


def short_message(error: Exception) -> str:
    """An error as one line: its class, first line and last line. Ray puts tracebacks and details between them."""
    lines = [line.strip()[:_MAX_LINE_CHARS] for line in plain_text(str(error)).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, " ... ".join(dict.fromkeys(lines[:1] + lines[-1:]))] if lines else [type(error).__name__])


def plain_text(text: str) -> str:
    """`text` without the codes by which Ray colors it."""
    return _ANSI.sub("", text)


class ClusterError(RuntimeError):
    """The infrastructure failed; the work itself may be fine."""


class NotEnoughResourcesError(ClusterError, ValueError):
    """More CPUs, GPUs or nodes are requested than available. The message says what to change."""


class TimeoutExceededError(ClusterError, TimeoutError):
    """A bounded wait timed out."""


class AddressError(ClusterError, ValueError):
    """The address of a Ray cluster is not valid, or nothing answers there. The message says where it comes from and what to do."""


class RayStartError(ClusterError):
    """Ray could not be started on this machine."""


class EngineLostError(ClusterError):
    """An engine died, hung or served other weights than requested. The fleet restarts it."""


class FleetError(ClusterError):
    """The fleet cannot continue: no engine is left, or the target weights cannot be brought to all engines."""


class TaskFailedError(ClusterError):
    """A task failed permanently: in `num_attempts` attempts, or at once because of its own data."""

    def __init__(self, task: str, num_attempts: int, last_error: str) -> None:
        super().__init__(task, num_attempts, last_error)
        self.task = textwrap.shorten(task, _MAX_LINE_CHARS, placeholder="...")
        self.num_attempts = num_attempts
        self.last_error = last_error

    def __str__(self) -> str:
        return f"task {self.task} failed permanently after {self.num_attempts} attempt(s); the last error: {self.last_error}"


class FinalError(Exception):
    """Base of errors that a task would raise on any engine, such as for a full disk. The run ends with this error unchanged."""
