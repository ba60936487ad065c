"""Labelled data in LLaVA's format: JSON or JSON Lines of conversations beside a folder of images.

    {"id": "...", "image": "000000000001.jpg", "type": "conversation",
     "conversations": [{"from": "human", "value": "<image>\\nWhat ...?"}, {"from": "gpt", "value": "..."}]}

`type` (conversation, detail, complex, okvqa, aokvqa) is optional: LLaVA's own files do not have it. Variants of other tools are read as
well: `messages` of `role` and `content`, ms-swift's `query`, `response` and `history`, `images`, a system turn, roles such as user and
assistant. A list of images, as in LLaVA-NeXT-Interleave's M4-Instruct, has an `<image>` for each; records about no image, of which LLaVA's
mix665k has 40,000, have none; those of them that do not begin with a question are left out and counted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loop.sources.labelled import Conversation, JsonData, checked_images, checked_type
from loop.sources.reading.chats import LLAVA, MESSAGES, ChatForm, chat_turns, checked_text, has_image_token, refuse_other_media
from loop.sources.reading.odd_records import BadRecordError, Fault, OddRecords
from policies.generation.instructions import QuestionType

_ABSENT: tuple[Any, ...] = (None, "", [])


class LlavaJsonData(JsonData):
    """Questions and answers of a LLaVA JSON file."""

    what, holds = "LLaVA file", "conversations"
    always_left_out = (Fault.TEXT_ONLY,)

    def _conversation(self, index: int, entry: dict[str, Any], where: str, odd: OddRecords) -> Conversation:
        entry = _with_messages(entry, where)
        form = _form(entry)
        given = entry.get("image") if entry.get("image") not in _ABSENT else entry.get("images", entry.get("image"))
        refuse_other_media(entry, where)
        if given in _ABSENT and not has_image_token(entry.get(form.list_name), form):
            try:
                return self._about(index, (), entry, form, where, odd)
            except BadRecordError as error:  # mix665k has hundreds of them, from ShareGPT
                raise BadRecordError(Fault.TEXT_ONLY, error.text) from error
        return self._about(index, checked_images(given, where), entry, form, where, odd)

    def _about(
        self, index: int, images: tuple[str, ...], entry: dict[str, Any], form: ChatForm, where: str, odd: OddRecords
    ) -> Conversation:
        kind = checked_type(QuestionType.CONVERSATION if entry.get("type") is None else entry["type"], where)
        name = checked_text(f"{entry.get('id', '')}#{index}", where)
        if form.list_name not in entry:
            raise BadRecordError(Fault.TURNS, f"{where} has the keys {sorted(entry)!r:.80}; {form.expected}")
        odd.num_system_turns += bool(entry.get("system"))
        needs_token = form.speaker == LLAVA.speaker
        turns = chat_turns(entry.get(form.list_name), form, where, odd, needs_token=needs_token, num_images=len(images))
        return Conversation(name, next(iter(images), ""), kind, turns, further_images=images[1:])


def _with_messages(entry: dict[str, Any], where: str) -> dict[str, Any]:
    """The record with `query`, `response` and `history`, a list of earlier pairs, as messages, if that is how it spells its turns."""
    if "query" not in entry or "response" not in entry or LLAVA.list_name in entry or MESSAGES.list_name in entry:
        return entry
    history = entry.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadRecordError(Fault.TURNS, f"{where} has the history {history!r:.80}; expected a list of pairs [query, response]")
    texts = [text for pair in [*history, [entry["query"], entry["response"]]] for text in pair]
    roles = (MESSAGES.user, MESSAGES.assistant)
    turns = [{MESSAGES.speaker: roles[place % 2], MESSAGES.text: text} for place, text in enumerate(texts)]
    return {**entry, MESSAGES.list_name: turns}


def _form(entry: dict[str, Any]) -> ChatForm:
    """How a record spells its turns: either name of the list may be combined with either spelling of a turn."""
    turns_name = MESSAGES.list_name if LLAVA.list_name not in entry and MESSAGES.list_name in entry else LLAVA.list_name
    turns = entry.get(turns_name)
    first = turns[0] if isinstance(turns, list) and turns else None
    form = MESSAGES if isinstance(first, dict) and MESSAGES.speaker in first and LLAVA.speaker not in first else LLAVA
    return form if form.list_name == turns_name else replace(form, list_name=turns_name)
