"""Processors of images and text, loaded in one way by engines, trainers and checks, so that all of them see the same pixels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_IMAGE_BACKEND = "pil"
"""transformers takes torchvision where it is installed and Pillow elsewhere, and the two resize differently; here it is Pillow,
whatever else a machine has."""


def load_processor(model: str | Path) -> Any:
    """The processor of a folder or hub id, with its tokenizer's chat template where its class takes none of its own, as
    InstructBLIP's.

    Raises:
        ValueError: there is no processor of images and text.
    """
    from transformers import AutoImageProcessor, AutoProcessor

    try:
        processor: Any = AutoProcessor.from_pretrained(model, trust_remote_code=False)
        tokenizer = getattr(processor, "tokenizer", None)
        if getattr(processor, "image_processor", None) is None or tokenizer is None:
            raise ValueError(f"{type(processor).__name__} does not take both images and text")
        processor.image_processor = AutoImageProcessor.from_pretrained(model, trust_remote_code=False, backend=_IMAGE_BACKEND)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{model} has no processor of images and text: {error}") from error
    if getattr(processor, "chat_template", None) is None:
        processor.chat_template = tokenizer.chat_template
    return processor


class SpecialTokens:
    """The spellings that a processor's tokenizers read as marks, not as text: of turns, of ends, of images.

    A tokenizer finds them wherever they stand, so that a question or an answer that spells one would end its turn or ask for another
    image. What comes from data or from a model must not hold any when it is put into a chat template.
    """

    def __init__(self, processor: Any) -> None:
        tokenizers = [processor.tokenizer, getattr(processor, "qformer_tokenizer", None)]
        found = {str(getattr(owner, name, None) or "") for owner in (processor, processor.tokenizer) for name in _PLACEHOLDERS}
        for tokenizer in filter(None, tokenizers):
            found |= {*tokenizer.all_special_tokens, *(one.content for one in tokenizer.added_tokens_decoder.values() if one.special)}
        spellings = sorted(found - {""}, key=lambda one: (-len(one), one))
        self._pattern = re.compile("|".join(map(re.escape, spellings)) or r"(?!)")

    def first_in(self, text: str) -> str | None:
        """The first special token that `text` spells."""
        match = self._pattern.search(text)
        return match and match[0]

    def broken_up(self, text: str) -> str:
        """`text` with a space inside of every special token that it spells: `<image>` becomes `< image>`."""
        while self._pattern.search(text):
            text = self._pattern.sub(lambda match: f"{match[0][:1] if match[0][1:] else ''} {match[0][1:]}", text)
        return text


_PLACEHOLDERS = ("image_token", "video_token", "audio_token")
"""Attributes of processors and tokenizers; some tokenizers have their placeholders as ordinary added tokens."""
