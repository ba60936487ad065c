"""The protocol of text models that answer chats, wherever they run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from policies.chat import Ask, Reply


class ChatModel(Protocol):
    """What answers chats: `actors.chat.endpoint.Endpoint`, or `actors.chat.local.LocalChat`."""

    def complete(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """The reply to every ask, in any order, each as soon as it is there. Asks are taken as they are needed."""
        ...
