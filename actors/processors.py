"""Loads processors of images and text the same way for engines, trainers and checks, so that all see the same pixels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

_IMAGE_BACKEND = "pil"
"""transformers uses torchvision if it is installed, else Pillow, and the two resize differently. Here it is always Pillow."""


def load_image_processor(model: str | Path) -> Any:
    """The image processor of a folder or hub id; raises `OSError` or `ValueError` if there is none."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(model, trust_remote_code=False, backend=_IMAGE_BACKEND)


def load_processor(model: str | Path) -> Any:
    """The processor of a folder or hub id. If its class has no chat template of its own, as InstructBLIP's, it gets its tokenizer's.

    PaliGemma's processor would write a beginning token after the image and a line end after the text; here, as for all models, the chat
    template writes them.

    Raises:
        ValueError: the model has no processor of images and text.
    """
    from transformers import AutoProcessor, ProcessorMixin

    try:
        processor: Any = AutoProcessor.from_pretrained(model, trust_remote_code=False)
        tokenizer = getattr(processor, "tokenizer", None)
        if getattr(processor, "image_processor", None) is None or tokenizer is None:
            raise ValueError(f"{type(processor).__name__} does not take both images and text")
        processor.image_processor = load_image_processor(model)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{model} has no processor of images and text: {error}") from error
    if getattr(processor, "chat_template", None) is None:
        processor.chat_template = tokenizer.chat_template
    if reads_both_ways(processor):
        processor.prepare_inputs_layout = partial(ProcessorMixin.prepare_inputs_layout, processor)
    return processor


def reads_both_ways(processor: Any) -> bool:
    """Whether a model attends in both directions up to the answer, as PaliGemma does. Its `token_type_ids` are 1 from the answer on."""
    from transformers import PaliGemmaProcessor

    return isinstance(processor, PaliGemmaProcessor)


def end_ids_of(tokenizer: Any, *given: int | Sequence[int] | None) -> tuple[int, ...]:
    """The tokens that end an answer: none, one or several from each config, and the tokenizer's."""
    found = [ids if isinstance(ids, Sequence) else [ids] for ids in (*given, tokenizer.eos_token_id) if ids is not None]
    return tuple(dict.fromkeys(one for ids in found for one in ids))


def generation_end_ids(model: str | Path) -> int | list[int] | None:
    """The end tokens of a model's generation config, if it has one."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(model).eos_token_id  # type: ignore[return-value]
    except OSError:  # it is optional
        return None


class SpecialTokens:
    """The strings that a processor's tokenizers read as special tokens, not as text: for turns, ends and images.

    A tokenizer matches them anywhere in a text, so a question or answer that contains one would end its turn or add another image.
    Text from data or from a model must not contain any when it is put into a chat template.
    """

    def __init__(self, processor: Any) -> None:
        tokenizers = [processor.tokenizer, getattr(processor, "qformer_tokenizer", None)]
        found = {str(getattr(owner, name, None) or "") for owner in (processor, processor.tokenizer) for name in _PLACEHOLDERS}
        for tokenizer in filter(None, tokenizers):
            found |= {*tokenizer.all_special_tokens, *(one.content for one in tokenizer.added_tokens_decoder.values() if one.special)}
        spellings = sorted(found - {""}, key=lambda one: (-len(one), one))
        self._pattern = re.compile("|".join(map(re.escape, spellings)) or r"(?!)")

    def first_in(self, text: str) -> str | None:
        """The first special token in `text`, or `None`."""
        match = self._pattern.search(text)
        return match and match[0]

    def broken_up(self, text: str) -> str:
        """`text` with a space inside every special token: `<image>` becomes `< image>`."""
        while self._pattern.search(text):
            text = self._pattern.sub(lambda match: f"{match[0][:1] if match[0][1:] else ''} {match[0][1:]}", text)
        return text


_PLACEHOLDERS = ("image_token", "video_token", "audio_token")
"""Attributes of processors and tokenizers; some tokenizers add their placeholders as ordinary tokens."""
