"""Renders requests as texts and token rows as completions, for every engine with a Hugging Face processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from actors.engines.base import Completion, FinishReason, Request
from actors.processors import SpecialTokens, end_ids_of, generation_end_ids, load_processor

_MID_GREY = (128, 128, 128)


@dataclass(frozen=True, slots=True)
class BlankImage:
    """A mid-grey `LazyImage`, for scoring a text without its image."""

    size: tuple[int, int]

    def open(self) -> Image.Image:
        return Image.new("RGB", self.size, _MID_GREY)


def patches(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """An image of width and height `size`: colored noise in patches large enough to survive resizing."""
    return Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size, Image.Resampling.NEAREST)


class Prompter:
    """Renders requests with a model's processor. Special tokens in a request's texts are broken up, so that only the chat template
    adds any."""

    def __init__(self, model: str | Path) -> None:
        """Load the processor.

        Raises:
            ValueError: the model has no processor of images and text, or no chat template.
        """
        self.processor: Any = load_processor(model)
        self.tokenizer: Any = self.processor.tokenizer
        if self.processor.chat_template is None:
            raise ValueError(f"{model} has no chat template: add chat_template.jinja to its folder")
        self._plain = SpecialTokens(self.processor).broken_up
        ends = self.tokenizer.convert_ids_to_tokens(list(self.end_ids(generation_end_ids(model))))
        self._ends = [end for end in ends if end is not None]

    def render(self, request: Request) -> str:
        """The request in the model's chat template, up to where the assistant continues."""
        messages = [_user(self._plain(request.prompt))]
        if not request.answer_prefix:
            return self.processor.apply_chat_template(messages, add_generation_prompt=True)
        answer = _assistant(self._plain(request.answer_prefix))
        return self.processor.apply_chat_template([*messages, answer], continue_final_message=True)

    def render_answered(self, request: Request, continuation: str) -> str:
        """The request with its whole answer, up to the end token: the first after the answer that ends a row when generating."""
        answer = self._plain(_joined(request.answer_prefix, continuation))
        text = self.processor.apply_chat_template([_user(self._plain(request.prompt)), _assistant(answer)])
        start = text.rfind(answer.strip() or self.tokenizer.eos_token)
        if start < 0:  # the template rewrites answers
            start = text.rfind(self.tokenizer.eos_token)
        ends = [place + len(end) for end in self._ends if start >= 0 and (place := text.find(end, start)) >= 0]
        return text[: min(ends)] if ends else text

    def answer(self, request: Request, continuation: str = "") -> str:
        """The answer as it stands in a rendered text."""
        return self._plain(_joined(request.answer_prefix, continuation)).strip()

    def spoken(self, request: Request) -> str:
        """The text of a request without a template, for a Q-Former."""
        return self._plain(_joined(request.prompt, request.answer_prefix))

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a rendered text, to which its template has added the special tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def end_ids(self, *given: int | Sequence[int] | None) -> tuple[int, ...]:
        """The tokens that end a row; see `end_ids_of`."""
        return end_ids_of(self.tokenizer, *given)

    def banned_ids(self, image_token_id: int, end_ids: Sequence[int]) -> list[int]:
        """Tokens that are not text: an image placeholder would break the next prompt, and padding marks the end of a row."""
        return [image_token_id, *({self.tokenizer.pad_token_id} - {None, *end_ids})]

    def completion(
        self, token_ids: Sequence[int], logprobs: Sequence[float], *, ended: bool, stop: Sequence[str], weight_version: str
    ) -> Completion:
        """The completion of a row, its text cut after the stop string. `token_ids` exclude the end token; `logprobs` include it if
        the model ended by itself."""
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        cut = min((text.index(one) + len(one) for one in stop if one in text), default=None)
        return Completion(
            text=text.strip() if cut is None else text[:cut].lstrip(),
            token_ids=tuple(token_ids),
            logprob=sum(logprobs),
            num_logprob_tokens=len(logprobs),
            finish_reason=FinishReason.STOP if ended or cut is not None else FinishReason.LENGTH,
            weight_version=weight_version,
        )

    def skipped(self, weight_version: str) -> Completion:
        """The completion of a request whose image cannot be read."""
        return Completion("", (), 0.0, 0, FinishReason.BAD_IMAGE, weight_version)


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}
