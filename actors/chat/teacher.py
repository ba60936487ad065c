"""The teacher protocol: something that writes texts about images that it may only know as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from policies.chat import Reply
from policies.teaching.prompts import TeachingTask


class Teacher(Protocol):
    """Writes the three types in the form of `policies.teaching.output`."""

    name: str
    """What the texts are said to come from."""

    def write(self, tasks: Iterable[TeachingTask]) -> Iterator[Reply]:
        """One reply per task, with the task's key, in any order, each as soon as it is there. Tasks are taken as they are needed."""
        ...
