"""What a failed remote call means for the task behind it."""

from __future__ import annotations

from ray.exceptions import RayError, RayTaskError

from cluster.errors import FinalError, TaskFailedError, short_message
from policies.errors import PolicyError


def root_cause(error: Exception) -> Exception:
    """The first error in a chain of calls: every call that depends on a failed one wraps its error again."""
    cause = error
    while isinstance(cause, RayTaskError) and isinstance(cause.cause, Exception):
        cause = cause.cause
    return cause


def raise_if_final(task: object, num_attempts: int, cause: Exception, error: Exception) -> None:
    """Ends the run if another attempt would fail in the same way.

    Raises:
        FinalError, PolicyError: the cause itself.
        TaskFailedError: the task's data is at fault.
    """
    if isinstance(cause, FinalError | PolicyError):
        raise cause from error
    if isinstance(cause, ValueError) and not isinstance(cause, RayError):
        raise TaskFailedError(str(task), num_attempts, short_message(cause)) from error
