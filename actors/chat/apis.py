"""The protocols of chat endpoints, as pure functions of JSON: OpenAI's chat completions, which most servers speak, and Anthropic's
messages.

A model's reasoning is neither an answer nor a verdict: `reasoning_content` and `reasoning` beside an OpenAI-style answer, `thinking` blocks
within an Anthropic one. It is left out, and an answer that ends within it is told apart by its finish reason.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeGuard

from policies.chat import LENGTH, REASONING, REFUSAL, STOP, Ask, ChatImage, ChatMessage

ApiName = Literal["openai", "anthropic"]

REPLACEMENTS: Mapping[str, str | None] = {"max_tokens": "max_completion_tokens", "temperature": None, "seed": None}
"""Fields that some models refuse, reasoning models above all, and what they take instead; None for nothing."""
_REFUSES = re.compile(r"unsupported|not supported|does(?: not|n't) support|deprecated|not permitted|may only be set|only the default", re.I)
_ANTHROPIC_VERSION = "2023-06-01"


class MalformedReplyError(ValueError):
    """A successful answer lacks what the protocol promises."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one request, without its reasoning."""

    text: str
    finish_reason: str
    """See `policies.chat.Reply`."""


class Api(Protocol):
    """One protocol."""

    path: str
    """Of the requests, after the version in an endpoint's URL."""

    def headers(self, key: str) -> dict[str, str]:
        """Headers of every request; `key` may be empty."""
        ...

    def body(self, model: str, ask: Ask) -> dict[str, Any]:
        """The JSON of a request. Fields with the value None are left out."""
        ...

    def completion(self, content: Mapping[str, Any]) -> Completion:
        """The answer in the JSON of a response. Raises `MalformedReplyError`."""
        ...

    def num_tokens(self, content: Mapping[str, Any]) -> tuple[int, int] | None:
        """Tokens read and written, images and reasoning included; None if the response does not tell."""
        ...


class OpenAiApi:
    """OpenAI's `/chat/completions`, also of vLLM, SGLang, llama.cpp and most hosted models."""

    path = "/chat/completions"

    def headers(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"} if key else {}

    def body(self, model: str, ask: Ask) -> dict[str, Any]:
        messages = [{"role": message.role, "content": self._content(message)} for message in ask.messages]
        sampling = {"max_tokens": ask.max_tokens, "temperature": ask.temperature, "seed": ask.seed}
        return {"model": model, "messages": messages, **sampling}

    def completion(self, content: Mapping[str, Any]) -> Completion:
        try:
            choice = content["choices"][0]
            message = choice["message"]
            text, refusal = _joined(message.get("content"), ("text", "output_text", None)), message.get("refusal")
            reason = choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise MalformedReplyError(f"the answer holds no choices[0].message ({error!r})") from error
        if isinstance(refusal, str) and refusal and not text:
            return Completion(refusal, REFUSAL)
        reasons = {"content_filter": REFUSAL, "length": LENGTH}
        reasoned = message.get("reasoning_content") or message.get("reasoning") or _num_reasoning_tokens(content)
        return Completion(text, _finish_reason(reasons.get(str(reason), STOP), text, reasoned=bool(reasoned)))

    def num_tokens(self, content: Mapping[str, Any]) -> tuple[int, int] | None:
        return _counts(content, ("prompt_tokens",), "completion_tokens")

    def _content(self, message: ChatMessage) -> Any:
        if not message.images:
            return message.text
        images = [{"type": "image_url", "image_url": {"url": f"data:{one.media_type};base64,{_base64(one)}"}} for one in message.images]
        return [*images, {"type": "text", "text": message.text}]


class AnthropicApi:
    """Anthropic's `/messages`. It has no seed."""

    path = "/messages"

    def headers(self, key: str) -> dict[str, str]:
        return {"anthropic-version": _ANTHROPIC_VERSION} | ({"x-api-key": key} if key else {})

    def body(self, model: str, ask: Ask) -> dict[str, Any]:
        system = "\n\n".join(message.text for message in ask.messages if message.role == "system") or None
        messages = [{"role": one.role, "content": self._content(one)} for one in ask.messages if one.role != "system"]
        return {"model": model, "system": system, "messages": messages, "max_tokens": ask.max_tokens, "temperature": ask.temperature}

    def completion(self, content: Mapping[str, Any]) -> Completion:
        blocks = content.get("content")
        if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
            raise MalformedReplyError("the answer holds no list of content blocks")
        text = _joined(blocks, ("text",))
        reasons = {"max_tokens": LENGTH, "model_context_window_exceeded": LENGTH, "refusal": REFUSAL}
        reasoned = any(block.get("type") in ("thinking", "redacted_thinking") for block in blocks)
        return Completion(text, _finish_reason(reasons.get(str(content.get("stop_reason")), STOP), text, reasoned=reasoned))

    def num_tokens(self, content: Mapping[str, Any]) -> tuple[int, int] | None:
        return _counts(content, ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"), "output_tokens")

    def _content(self, message: ChatMessage) -> Any:
        if not message.images:
            return message.text
        sources = [{"type": "base64", "media_type": one.media_type, "data": _base64(one)} for one in message.images]
        return [*({"type": "image", "source": source} for source in sources), {"type": "text", "text": message.text}]


APIS: Mapping[ApiName, Api] = {"openai": OpenAiApi(), "anthropic": AnthropicApi()}


def refused_field(text: str, body: Mapping[str, Any]) -> str | None:
    """The field of `REPLACEMENTS` that the error of a request refuses as unsupported by the model; None if it is about anything else."""
    try:
        error = json.loads(text)["error"]
        said = f"{error.get('code') or ''} {error.get('message') or ''}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not _REFUSES.search(said):
        return None
    return next((name for name in REPLACEMENTS if name in body and (error.get("param") == name or re.search(rf"\b{name}\b", said))), None)


def _finish_reason(reason: str, text: str, *, reasoned: bool) -> str:
    return REASONING if reason == LENGTH and reasoned and not text.strip() else reason


def _joined(content: Any, kinds: tuple[str | None, ...]) -> str:
    """The text of a message: a text, or that of its parts of these kinds."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict) and part.get("type") in kinds)
    return content if isinstance(content, str) else ""


def _num_reasoning_tokens(content: Mapping[str, Any]) -> int:
    usage = content.get("usage")
    details = usage.get("completion_tokens_details") if isinstance(usage, dict) else None
    num = details.get("reasoning_tokens") if isinstance(details, dict) else 0
    return num if _is_count(num) else 0


def _counts(content: Mapping[str, Any], inputs: tuple[str, ...], output: str) -> tuple[int, int] | None:
    """The first of `inputs` and `output` must be there; further inputs are added where they are."""
    usage = content.get("usage")
    if not isinstance(usage, dict) or not _is_count(usage.get(inputs[0])) or not _is_count(usage.get(output)):
        return None
    return sum(usage[name] for name in inputs if _is_count(usage.get(name))), usage[output]


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 1 << 40


def _base64(image: ChatImage) -> str:
    return base64.b64encode(image.data).decode()
