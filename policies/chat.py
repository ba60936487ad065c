"""Messages of a chat, whatever runs the model: what a teacher or a judge is asked, its reply, and the tokens used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from operator import add
from typing import Literal, Protocol

from policies.answers.reasoning import without_reasoning

Role = Literal["system", "user", "assistant"]

STOP, LENGTH, REFUSAL, REASONING = "stop", "length", "refusal", "reasoning"
"""Why a reply ends: it is whole; the token limit cut it off; the model refused; the limit cut it off within its reasoning."""


@dataclass(frozen=True, slots=True)
class ChatImage:
    """An encoded image in a message."""

    data: bytes
    media_type: str = "image/jpeg"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a chat."""

    role: Role
    text: str
    images: tuple[ChatImage, ...] = ()
    """Shown before the text, to models that see images."""


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
    finish_reason: str = STOP
    """`STOP`, `LENGTH`, `REFUSAL` or `REASONING`."""
    failure: str = ""
    """Why the endpoint gave no text for this chat while it answered others; empty for an answer."""

    @property
    def shortfall(self) -> str:
        """Why there is no answer: the failure, a refusal, or reasoning without an end; empty for an answer."""
        if self.failure or self.finish_reason == REFUSAL:
            return self.failure or "the model refused to answer"
        cut_off = self.finish_reason == REASONING or without_reasoning(self.text) is None
        return "the token limit cut the reply off within its reasoning; allow more tokens" if cut_off else ""


class ChatModel(Protocol):
    """Answers chats: `actors.chat.endpoint.Endpoint` or `actors.chat.local.LocalChat`."""

    def complete(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """Yield the reply to every ask, in any order, each as soon as it is ready. Asks are consumed lazily."""
        ...
