"""Labelled data in LLaVA's format: JSON or JSON Lines of conversations beside a folder of images.

    {"id": "...", "image": "000000000001.jpg", "type": "conversation",
     "conversations": [{"from": "human", "value": "<image>\\nWhat ...?"}, {"from": "gpt", "value": "..."}]}

`type` (conversation, detail, complex, okvqa, aokvqa) is optional: LLaVA's own files do not have it. Variants of other tools are read as
well: `messages` of `role` and `content`, ms-swift's `query`, `response` and `history`, its `conversation` of `human` and `assistant`,
Alpaca's `instruction`, `input` and `output`, `images`, a system turn, roles such as user and assistant. A list of images, as in
LLaVA-NeXT-Interleave's M4-Instruct, has an `<image>` for each; records about no image, of which LLaVA's mix665k has 40,000, have none;
those of them that do not begin with a question are left out and counted.
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
    """The record with its turns as messages, if it spells them as ms-swift may: `query`, `response` and `history`; Alpaca's `instruction`,
    `input` and `output`; or `conversation`, a list of objects with `human` and `assistant`."""
    if LLAVA.list_name in entry or MESSAGES.list_name in entry:
        return entry
    if "query" in entry and "response" in entry:
        turns = paired_turns(entry.get("history"), entry["query"], entry["response"], where)
    elif "instruction" in entry and "output" in entry:
        turns = paired_turns(entry.get("history"), joined(entry["instruction"], entry.get("input")), entry["output"], where)
    elif isinstance(entry.get("conversation"), list) and entry["conversation"]:
        pairs = [[pair.get("human"), pair.get("assistant")] if isinstance(pair, dict) else pair for pair in entry["conversation"]]
        turns = paired_turns(pairs[:-1], *_pair(pairs[-1], where), where)
    else:
        return entry
    return {**entry, MESSAGES.list_name: turns}


def paired_turns(history: Any, question: Any, answer: Any, where: str) -> list[dict[str, Any]]:
    """Earlier pairs, and the last question and answer, as messages. Raises `BadRecordError` for a history that is no list of pairs."""
    earlier = [] if history is None else history
    if not isinstance(earlier, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in earlier):
        raise BadRecordError(Fault.TURNS, f"{where} has the history {history!r:.80}; expected a list of pairs [query, response]")
    texts = [text for pair in [*earlier, [question, answer]] for text in pair]
    roles = (MESSAGES.user, MESSAGES.assistant)
    return [{MESSAGES.speaker: roles[place % 2], MESSAGES.text: text} for place, text in enumerate(texts)]


def joined(instruction: Any, more: Any) -> Any:
    """Alpaca's instruction and, in a line of its own, its input."""
    return f"{instruction}\n{more}" if isinstance(instruction, str) and isinstance(more, str) and more else instruction


def _pair(pair: Any, where: str) -> tuple[Any, Any]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise BadRecordError(Fault.TURNS, f"{where} has the conversation {pair!r:.80}; expected objects with human and assistant")
    return pair[0], pair[1]


def _form(entry: dict[str, Any]) -> ChatForm:
    """How a record spells its turns: either name of the list may be combined with either spelling of a turn."""
    turns_name = MESSAGES.list_name if LLAVA.list_name not in entry and MESSAGES.list_name in entry else LLAVA.list_name
    turns = entry.get(turns_name)
    first = turns[0] if isinstance(turns, list) and turns else None
    form = MESSAGES if isinstance(first, dict) and MESSAGES.speaker in first and LLAVA.speaker not in first else LLAVA
    return form if form.list_name == turns_name else replace(form, list_name=turns_name)
