"""A teacher behind a chat endpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from actors.endpoint import Endpoint
from policies.chat import Ask, Reply
from policies.teaching import TeachingTask, teaching_messages


class EndpointTeacher:
    """Asks an endpoint for every task; raises what `Endpoint.complete` does."""

    def __init__(self, endpoint: Endpoint, max_tokens: int, temperature: float) -> None:
        self.name = f"{endpoint.options.model} at {endpoint.options.url}"
        self._endpoint = endpoint
        self._max_tokens = max_tokens
        self._temperature = temperature

    def write(self, tasks: Iterable[TeachingTask]) -> Iterator[Reply]:
        return self._endpoint.complete(
            Ask(task.key, teaching_messages(task), self._max_tokens, self._temperature, task.seed) for task in tasks
        )
