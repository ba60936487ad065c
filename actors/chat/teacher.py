"""Teachers write texts about images, which they may know only as text: the protocol, and one backed by a chat model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from policies.chat import Ask, ChatModel, Reply
from policies.teaching.prompts import TeachingTask, teaching_messages


class Teacher(Protocol):
    """Writes the three types in the form of `policies.teaching.output`."""

    name: str
    """Recorded as the source of the texts."""

    def write(self, tasks: Iterable[TeachingTask]) -> Iterator[Reply]:
        """Yield one reply per task, with the task's key, in any order, each as soon as it is ready. Tasks are consumed lazily."""
        ...


class ChatTeacher:
    """Asks a model about every task; raises what its `complete` does."""

    def __init__(self, name: str, model: ChatModel, max_tokens: int, temperature: float) -> None:
        self.name = name
        self._model = model
        self._max_tokens = max_tokens
        self._temperature = temperature

    def write(self, tasks: Iterable[TeachingTask]) -> Iterator[Reply]:
        return self._model.complete(
            Ask(task.key, teaching_messages(task), self._max_tokens, self._temperature, task.seed) for task in tasks
        )
