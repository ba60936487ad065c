"""Processors of images and text, as far as engines and trainers must treat them alike."""

from __future__ import annotations

from typing import Any


def with_chat_template(processor: Any) -> Any:
    """The processor, with its tokenizer's chat template where its class takes none of its own, as InstructBLIP's."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is not None and getattr(processor, "chat_template", None) is None:
        processor.chat_template = tokenizer.chat_template
    return processor
