"""Errors raised by the code of a policy, reported with the policy's own traceback."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_OWN_FOLDERS = tuple(f"{_ROOT / name}/" for name in ("policies", "actors", "cluster", "loop"))


class MissingMeasurementError(ValueError):
    """A filter reads what the correction policy does not measure."""


class PolicyError(ValueError):
    """The code of a policy raised an error, or broke its contract. Another attempt would end the same way."""

    def __init__(self, policy: str, problem: str, trace: str = "") -> None:
        super().__init__(policy, problem, trace)
        self.policy, self.problem = policy, problem
        self.trace = trace
        """The traceback of what was raised, from the policy's first line on; empty if nothing was raised."""

    def __str__(self) -> str:
        return f"{self.policy} {self.problem}; fix its code, then continue with `vigc resume`"


@contextmanager
def running(label: str, policy: object | None = None) -> Iterator[None]:
    """Run code of a policy: what it raises becomes a `PolicyError` that carries the policy's own traceback.

    Args:
        label: name of the policy in the message: `filter 'mine'`.
        policy: given if the block also runs other code: errors that did not pass through the policy's module stay unchanged.

    Raises:
        PolicyError: from what was raised.
        MissingMeasurementError: unchanged; it says what to change in the config.
    """
    try:
        yield
    except (MissingMeasurementError, PolicyError):
        raise
    except Exception as error:
        if policy is not None and not _passed_through(policy, error):
            raise
        raise policy_error(label, error) from error


def policy_error(label: str, error: Exception) -> PolicyError:
    """A `PolicyError` from what the policy `label` raised, with the traceback that its author needs."""
    told = traceback.TracebackException.from_exception(error)
    told.stack = traceback.StackSummary.from_list(_from_the_policy_on(list(told.stack)))
    problem = " ".join("".join(told.format_exception_only()).split())
    return PolicyError(label, f"raised {problem}", "".join(told.format()))


def _passed_through(policy: object, error: Exception) -> bool:
    path = inspect.getsourcefile(type(policy))
    return path in {frame.filename for frame in traceback.extract_tb(error.__traceback__)}


def _from_the_policy_on(frames: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """The frames without leading ones of this project; all of them if all belong to it."""
    first = next((place for place, frame in enumerate(frames) if not frame.filename.startswith(_OWN_FOLDERS)), 0)
    return frames[first:]
