"""The teacher protocol: writes texts about images, which it may know only as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from policies.chat import Reply
from policies.teaching.prompts import TeachingTask


class Teacher(Protocol):
    """Writes the three types in the form of `policies.teaching.output`."""

    name: str
    """Recorded as the source of the texts."""

    def write(self, tasks: Iterable[TeachingTask]) -> Iterator[Reply]:
        """Yield one reply per task, with the task's key, in any order, each as soon as it is ready. Tasks are consumed lazily."""
        ...
