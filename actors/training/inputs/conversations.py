"""Conversations about several images or none as chat messages, and whether a processor and its model take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from policies.records import IMAGE_MARK

_WHOLE_BATCH_INPUTS = ("cross_attention_mask",)
"""Inputs of models that align images with rows (Llama 3.2 Vision); all others take the images of a batch as one flat list."""
_WORDS = (("How many?", "Two."),)


def messages_of(turns: Sequence[tuple[str, str]], images: Sequence[Image.Image | None]) -> list[dict[str, Any]]:
    """The turns as chat messages. A single image comes first; several are at the marks of the user's texts."""
    users = [[_text(user)] if user else [] for user, _ in turns]
    if len(images) == 1:
        users[0].insert(0, _image(images[0]))
    elif images:
        users = _placed([user for user, _ in turns], images)
    messages: list[dict[str, Any]] = []
    for content, (_, assistant) in zip(users, turns, strict=True):
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [_text(assistant)]})
    return messages


def words_of(turns: Sequence[tuple[str, str]], num_images: int) -> list[str]:
    """The texts of the turns, without the marks of several images."""
    texts = [text for turn in turns for text in turn]
    return texts if num_images < 2 else [piece for text in texts for piece in text.split(IMAGE_MARK)]


def takes_several_images(processor: Any, num_tokens: Callable[[tuple[tuple[str, str], ...], int], int]) -> bool:
    """Whether a conversation may be about several images.

    A Q-Former (InstructBLIP) and cross-attention align images with rows. Other processors, such as BLIP-2's, read further images but
    give them no token.

    Args:
        processor: of the model.
        num_tokens: the length of a conversation about a number of images.
    """
    if getattr(processor, "qformer_tokenizer", None) is not None or not takes_no_image(processor):
        return False
    ((user, assistant),) = _WORDS
    return num_tokens(((f"{IMAGE_MARK * 2}{user}", assistant),), 2) > num_tokens(_WORDS, 1)


def takes_no_image(processor: Any) -> bool:
    """Whether a batch may have conversations without an image."""
    if any(name in processor.model_input_names for name in _WHOLE_BATCH_INPUTS):
        return False
    try:
        processor.apply_chat_template(messages_of(_WORDS, ()), tokenize=True, return_dict=True)
    except ValueError:  # PaliGemma's processor asks for an image
        return False
    return True


def _placed(users: Sequence[str], images: Sequence[Image.Image | None]) -> list[list[dict[str, Any]]]:
    """The content of each user message, with an image in place of each mark."""
    assert sum(user.count(IMAGE_MARK) for user in users) == len(images), "every image has a mark"
    coming = iter(images)
    contents: list[list[dict[str, Any]]] = []
    for user in users:
        first, *others = user.split(IMAGE_MARK)
        content = [_text(first.strip())]
        for piece in others:
            content += [_image(next(coming)), _text(piece.strip())]
        contents.append([part for part in content if part["type"] == "image" or part["text"]])
    return contents


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _image(image: Image.Image | None) -> dict[str, Any]:
    return {"type": "image", "image": image}
