"""Processors of images and text, loaded in one way by engines, trainers and checks, so that all of them see the same pixels."""

from __future__ import annotations

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
