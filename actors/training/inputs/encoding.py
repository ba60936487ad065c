"""Encodes conversations as token ids, with labels on the words that are learned."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os.path import commonprefix
from typing import Any

import numpy as np
from PIL import Image

from actors.processors import SpecialTokens, end_ids_of, reads_both_ways
from actors.training.inputs.conversations import messages_of, takes_no_image, takes_several_images, words_of
from actors.training.inputs.skips import SkipReason

IGNORED = -100
"""Label of a token without a loss."""

_CACHED_TEXTS = 200_000
_PROBE_SIZES = ((64, 64), (97, 151), (1024, 200), (200, 1024))
"""Sizes for which every processor that writes different numbers of image tokens does so: it does by area, by shape, or both."""
_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
_PROBES = ((("?", "!"),), (("How many?", "Two."), ("Which ones?", "Both.")), (("", "A"),))
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


class BadSampleError(ValueError):
    """A conversation cannot be trained on. It is skipped and counted by reason; training goes on."""

    def __init__(self, reason: SkipReason, message: str) -> None:
        super().__init__(reason, message)
        self.reason, self.message = reason, message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Token ids and labels of one conversation, both [tokens] int32; a label is the token's id or `IGNORED`."""

    ids: np.ndarray
    labels: np.ndarray
    question: np.ndarray | None = None
    """The Q-Former's text input, [its own tokens] int32: the user's words, never an answer. `None` without a Q-Former."""
    kinds: np.ndarray | None = None
    """[tokens] int32, if the model derives positions or the direction of attention from it: 1 for image tokens and 0 for others, but for
    PaliGemma 1 from the first answer on and 0 before."""
    kinds_name: str = ""
    """The model's argument for `kinds`."""

    def cut(self, max_tokens: int) -> EncodedText:
        kinds = None if self.kinds is None else self.kinds[:max_tokens]
        return replace(self, ids=self.ids[:max_tokens], labels=self.labels[:max_tokens], kinds=kinds)


@dataclass(frozen=True, slots=True)
class _Expansion:
    """How a processor changes its tokenizer's ids: `block` replaces the `num_replaced` ids from `start` on."""

    start: int
    num_replaced: int
    block: np.ndarray

    def apply(self, ids: np.ndarray, fill: np.ndarray) -> np.ndarray:
        return np.concatenate([ids[: self.start], fill, ids[self.start + self.num_replaced :]])


class ConversationEncoder:
    """Encodes training samples as token ids, with a loss only on the assistant's words and their end token.

    If the template does not end an answer with an end token, the tokenizer's is added: without it a model would not learn to stop.

    The processor expands the image placeholder. If the number of image tokens does not depend on the image's size, which is
    tested with `_PROBE_SIZES`, a text is encoded once for all images. If the processor's expansion is also the same for every
    text, only the tokenizer is called. With a Q-Former, questions are tokenized separately: the whole processor would also show
    the Q-Former the answers that the model has to learn.
    """

    def __init__(self, processor: Any, max_tokens: int, end_ids: int | Sequence[int] | None = None) -> None:
        """Inspect the processor.

        Args:
            processor: of a checkpoint.
            max_tokens: see `Hyperparameters`.
            end_ids: tokens that end an answer, beside the tokenizer's: those of the generation config.

        Raises:
            ValueError: it has no chat template, or an image does not fit into `max_tokens`.
        """
        template = processor.chat_template
        template = template.get("default") if isinstance(template, dict) else template
        if not template:
            raise ValueError(f"{type(processor).__name__} has no chat template: training needs one to tell the turns apart")
        self._processor = processor
        self._max_tokens = max_tokens
        self._has_generation_tag = _GENERATION_TAG.search(template) is not None
        self._end_id = processor.tokenizer.eos_token_id
        self._end_ids = end_ids_of(processor.tokenizer, end_ids)
        self._special_tokens = SpecialTokens(processor)
        placeholder = str(getattr(processor, "image_token", "") or "")
        self._image_id = processor.tokenizer.convert_tokens_to_ids(placeholder) if placeholder else None
        self._question_tokenizer = getattr(processor, "qformer_tokenizer", None)
        self._kinds_of_answers = reads_both_ways(processor)
        given = self._render(messages_of(_PROBES[0], [Image.new("RGB", _PROBE_SIZES[0])]))
        self._kinds_name = next((name for name in _TOKEN_TYPES if name in given), "")
        self.cross_attention_token = self._image_id if "cross_attention_mask" in given else None
        """The token from which on the text attends to the image, if it does so across, as in Llama 3.2 Vision."""
        self._texts: dict[tuple[object, ...], EncodedText] = {}
        self._expansion: _Expansion | None = None
        self._takes_no_image = takes_no_image(processor)
        small, *others = (self._tokens(_PROBES[0], (size,)) for size in _PROBE_SIZES)
        self.has_fixed_image_tokens = all(np.array_equal(small.ids, other.ids) for other in others)
        """Whether every image has the same tokens."""
        if self.has_fixed_image_tokens and self._has_generation_tag:
            self._expansion = self._common_expansion()
        if len(small.ids) > max_tokens:
            raise ValueError(f"max_tokens {max_tokens} is too short: an image and the shortest question take {len(small.ids)} tokens")

    def encode(self, turns: Sequence[tuple[str, str]], *image_sizes: tuple[int, int]) -> EncodedText:
        """Ids and labels of a conversation about images of `image_sizes` (width, height) in pixels, usually one.

        Raises:
            BadSampleError: there are no turns, a turn contains a special token, no part of an answer fits into `max_tokens`, or the model
                does not take this number of images.
        """
        sizes = _PROBE_SIZES[:1] * len(image_sizes) if self.has_fixed_image_tokens else image_sizes
        key = (tuple(turns), sizes)
        known = self._texts.get(key)
        if known is None:
            known = self._encode(*key)
            if len(self._texts) < _CACHED_TEXTS:
                self._texts[key] = known
        return known

    @cached_property
    def _takes_several_images(self) -> bool:
        return takes_several_images(self._processor, lambda turns, num_images: len(self._tokens(turns, _PROBE_SIZES[:1] * num_images).ids))

    def _encode(self, turns: tuple[tuple[str, str], ...], sizes: tuple[tuple[int, int], ...]) -> EncodedText:
        if not turns:
            raise BadSampleError(SkipReason.NO_TURNS, "a conversation without turns")
        if len(sizes) > 1 and not self._takes_several_images:
            raise BadSampleError(SkipReason.SEVERAL_IMAGES, f"a conversation about {len(sizes)} images")
        if not sizes and not self._takes_no_image:
            raise BadSampleError(SkipReason.NO_IMAGE, "a conversation about no image")
        if special := next((found for text in words_of(turns, len(sizes)) if (found := self._special_tokens.first_in(text))), None):
            raise BadSampleError(SkipReason.SPECIAL_TOKEN, f"a turn contains the special token {special!r}")
        whole = self._tokens(turns, sizes)
        if not (whole.labels[: self._max_tokens] != IGNORED).any():
            raise BadSampleError(SkipReason.ANSWER_CUT_OFF, f"no word of an answer is among the first {self._max_tokens} tokens")
        return whole.cut(self._max_tokens)

    def _tokens(self, turns: tuple[tuple[str, str], ...], sizes: tuple[tuple[int, int], ...]) -> EncodedText:
        ids, mask = self._masked(turns, sizes)
        # a processor that inserts image tokens before the text counts their characters as the text's
        mask &= ids != self._image_id
        ids, mask = self._ended(ids, mask, turns)
        kinds = np.logical_or.accumulate(mask) if self._kinds_of_answers else np.isin(ids, self._processor.image_token_ids)
        labels, question = np.where(mask, ids, IGNORED).astype(np.int32), self._question(turns) if sizes else None
        return EncodedText(ids, labels, question, kinds.astype(np.int32) if self._kinds_name else None, self._kinds_name)

    def _masked(self, turns: tuple[tuple[str, str], ...], sizes: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
        """Ids, and a mask of the assistant's words."""
        if self._expansion is not None and len(sizes) == 1:
            ids, mask = self._plain(turns)
            block = self._expansion.block
            return self._expansion.apply(ids, block), self._expansion.apply(mask, np.zeros(len(block), dtype=bool))
        messages = messages_of(turns, [Image.new("RGB", size) for size in sizes])
        if not self._has_generation_tag:
            return self._masked_by_prefixes(messages)
        rendered = self._render(messages, return_assistant_tokens_mask=True)
        ids = np.asarray(rendered["input_ids"][0], dtype=np.int32)
        return ids, self._with_end_tokens(ids, np.asarray(rendered["assistant_masks"][0], dtype=bool))

    def _plain(self, turns: tuple[tuple[str, str], ...]) -> tuple[np.ndarray, np.ndarray]:
        """The same from the tokenizer alone, without expanding the image placeholder."""
        rendered = self._processor.tokenizer.apply_chat_template(
            messages_of(turns, [None]), chat_template=self._processor.chat_template, tokenize=True, return_dict=True,
            return_assistant_tokens_mask=True,
        )  # fmt: skip
        ids = np.asarray(rendered["input_ids"], dtype=np.int32)
        return ids, self._with_end_tokens(ids, np.asarray(rendered["assistant_masks"], dtype=bool))

    def _common_expansion(self) -> _Expansion | None:
        """The processor's expansion of its tokenizer's ids, if it is the same for unrelated texts."""
        found = []
        for turns in _PROBES:
            whole, _ = self._masked(turns, _PROBE_SIZES[:1])
            plain, _ = self._plain(turns)
            start = _common_prefix(whole, plain)
            num_after = _common_prefix(whole[start:][::-1], plain[start:][::-1])
            found.append(_Expansion(start, len(plain) - start - num_after, whole[start : len(whole) - num_after]))
        first, *others = found
        is_same = all(
            (other.start, other.num_replaced) == (first.start, first.num_replaced) and np.array_equal(other.block, first.block)
            for other in others
        )
        return first if is_same else None

    def _question(self, turns: tuple[tuple[str, str], ...]) -> np.ndarray | None:
        if self._question_tokenizer is None:
            return None
        text = " ".join(user for user, _ in turns)
        limit = min(self._max_tokens, self._question_tokenizer.model_max_length)
        return np.asarray(self._question_tokenizer(text, truncation=True, max_length=limit)["input_ids"], dtype=np.int32)

    def _with_end_tokens(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Extend the mask to end tokens, and end it with them: many templates close the `generation` block before, some after a line end
        that follows."""
        is_end, follows = np.isin(ids, self._end_ids), np.zeros_like(mask)
        follows[1:] = mask[:-1]
        mask = mask | (follows & is_end)
        for first, end in _runs(mask):
            ends = np.flatnonzero(is_end[first:end])
            if len(ends):
                mask[first + ends[-1] + 1 : end] = False
        return mask

    def _ended(self, ids: np.ndarray, mask: np.ndarray, turns: tuple[tuple[str, str], ...]) -> tuple[np.ndarray, np.ndarray]:
        """Insert an end token after every answer that has none."""
        runs = _runs(mask)
        if self._end_id is None or len(runs) != len(turns) or all(ids[end - 1] in self._end_ids for _, end in runs):
            return ids, mask
        mask, bare = mask.copy(), []
        for (first, end), (_, answer) in zip(runs, turns, strict=True):
            if ids[end - 1] not in self._end_ids:
                bare.append(first + self._num_tokens_of(ids[first:end], answer))
                mask[bare[-1] : end] = False
        return np.insert(ids, bare, self._end_id).astype(np.int32), np.insert(mask, bare, True)

    def _num_tokens_of(self, ids: np.ndarray, answer: str) -> int:
        """How many tokens spell the answer: a space that the template adds after it often shares a token with the next word."""
        wanted, decode = "".join(answer.split()), self._processor.tokenizer.decode
        shorter = (count for count in range(len(ids) - 1, 0, -1) if "".join(decode(ids[:count]).split()) != wanted)
        return min(next(shorter, 0) + 1, len(ids)) if "".join(decode(ids[:-1]).split()) == wanted else len(ids)

    def _masked_by_prefixes(self, messages: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        """The same without a `generation` tag: the assistant's text is what its message adds to the conversation."""
        offsets = {"return_offsets_mapping": True, "return_text_replacement_offsets": True}
        rendered = self._render(messages, processor_kwargs=offsets)
        ids, (firsts, ends) = np.asarray(rendered["input_ids"][0], dtype=np.int32), np.asarray(rendered["offset_mapping"][0]).T
        replaced = next(iter(rendered.get("text_replacement_offsets", [])), [])
        whole, mask = self._text(messages), np.zeros(len(ids), dtype=bool)
        for index in range(1, len(messages), 2):
            prefixes = self._text(messages[:index], add_generation_prompt=True), self._text(messages[: index + 1])
            start, end = (_expanded(len(commonprefix([whole, prefix])), replaced) for prefix in prefixes)  # noqa: RUF071 (characters)
            mask |= (firsts < end) & (ends > start)
        return ids, self._with_end_tokens(ids, mask)

    def _text(self, messages: list[dict[str, Any]], **options: Any) -> str:
        return self._processor.apply_chat_template(messages, tokenize=False, **options)

    def _render(self, messages: list[dict[str, Any]], **options: Any) -> Mapping[str, Any]:
        return self._processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="np", **options)


def _expanded(place: int, replaced: Sequence[Mapping[str, Any]]) -> int:
    """The place of a character after the processor has replaced the placeholders, which it lists."""
    return place + next((one["new_span"][1] - one["span"][1] for one in reversed(replaced) if one["span"][1] <= place), 0)


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """First index and end of every run of ones."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _common_prefix(first: np.ndarray, second: np.ndarray) -> int:
    length = min(len(first), len(second))
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0]) if len(differing) else length
