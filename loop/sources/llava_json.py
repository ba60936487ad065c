"""Labelled data in LLaVA's format: a JSON file of conversations beside a folder of images.

    {"id": "...", "image": "000000000001.jpg", "type": "conversation",
     "conversations": [{"from": "human", "value": "<image>\\nWhat ...?"}, {"from": "gpt", "value": "..."}]}

`type` (conversation, detail, complex, okvqa, aokvqa) is optional: LLaVA's own files do not have it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loop.errors import UserError
from loop.sources.labelled import MAX_TEXT_CHARACTERS, Conversation, JsonData, checked_image, checked_text, checked_type, json_entries
from policies.instructions import QuestionType

__all__ = ["MAX_TEXT_CHARACTERS", "LlavaJsonData"]

IMAGE_TOKEN = "<image>"


class LlavaJsonData(JsonData):
    """Questions and answers of a LLaVA JSON file."""

    def _read(self) -> Iterator[Conversation]:
        for index, entry, where in json_entries(self.file, "LLaVA file", "conversations"):
            image = checked_image(entry.get("image"), where)
            kind = checked_type(entry.get("type", QuestionType.CONVERSATION), where)
            name = checked_text(f"{entry.get('id', '')}#{index}", where)
            yield Conversation(name, image, kind, _turns(entry.get("conversations"), where))


def _turns(conversation: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(conversation, list) or not conversation or len(conversation) % 2:
        raise UserError(f"{where}: conversations must be a list of human and gpt in turn, ending with gpt")
    speakers = ("human", "gpt") * (len(conversation) // 2)
    texts = [_text(turn, speakers[position], f"{where}, turn {position}") for position, turn in enumerate(conversation)]
    if texts[0].count(IMAGE_TOKEN) != 1 or any(IMAGE_TOKEN in text for text in texts[1:]):
        raise UserError(f"{where}: {IMAGE_TOKEN} must stand exactly once, in the first human turn")
    texts[0] = texts[0].replace(IMAGE_TOKEN, "").strip()
    if not all(texts):
        raise UserError(f"{where}: a turn is empty")
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _text(turn: Any, speaker: str, where: str) -> str:
    if not isinstance(turn, dict) or turn.get("from") != speaker or not isinstance(turn.get("value"), str):
        raise UserError(f"{where} must be {{'from': {speaker!r}, 'value': TEXT}}")
    return checked_text(turn["value"], where).strip()
