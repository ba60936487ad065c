"""The protocol of local and remote text models that answer chats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from policies.chat import Ask, Reply


class ChatModel(Protocol):
    """Answers chats: `actors.chat.endpoint.Endpoint` or `actors.chat.local.LocalChat`."""

    def complete(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """Yield the reply to every ask, in any order, each as soon as it is ready. Asks are consumed lazily."""
        ...
