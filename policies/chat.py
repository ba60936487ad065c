"""Messages of a chat with a text model, whatever runs it: what a teacher or a judge is asked, its reply, and the tokens used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from operator import add
from typing import Literal, Protocol

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a chat."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Ask:
    """One chat for the model to continue."""

    key: str
    """The caller's key for it, repeated in its reply."""
    messages: tuple[ChatMessage, ...]
    max_tokens: int = 1024
    temperature: float = 0.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Usage of requests: the worst case if an endpoint does not report it, or may have done work that never arrived."""

    num_requests: int = 0
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True, slots=True)
class Reply:
    """Result of one chat: the model's text, or why there is none."""

    key: str
    text: str
    usage: Usage
    """Of all attempts for it."""
    finish_reason: str = "stop"
    """As the endpoint reports it: `length` means that the text was cut off."""
    failure: str = ""
    """Why the endpoint gave no text for this chat while it answered others; empty for an answer."""


class ChatModel(Protocol):
    """Answers chats: `actors.chat.endpoint.Endpoint` or `actors.chat.local.LocalChat`."""

    def complete(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """Yield the reply to every ask, in any order, each as soon as it is ready. Asks are consumed lazily."""
        ...
