"""Labelled data in VIGC's format (opendatalab/VIGC): a JSON list beside a folder of images.

Annotations, as VIGC trains on them; `answer` holds what each annotator said:

    {"image": "000000000001.jpg", "question": "...", "answer": ["...", "..."]}

A-OKVQA's, where VIGC reads `image_path` and `direct_answers`, are read as well, with their `choices` and `correct_choice_idx`, and so
are the records that VIGC generates:

    {"image": ..., "image_id": ..., "instruction": ..., "question": ..., "answer": "...", "whole_text": ..., "original_answer": ...,
     "answer_given_question": ..., "answer_lst": [...]}

and those that `vigc export --format vigc` writes, which have `id` and `type` in addition.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from loop.sources.labelled import Conversation, JsonData, checked_image, checked_type, most_frequent
from loop.sources.reading.chats import checked_text, refuse_other_media
from loop.sources.reading.odd_records import BadRecordError, Fault, OddRecords, OnBadRecord
from policies.generation.instructions import CANONICAL_INSTRUCTIONS, AnyType, QuestionType

_TYPES_BY_INSTRUCTION = {CANONICAL_INSTRUCTIONS[kind]: kind for kind in QuestionType}
_ABSENT = (None, "")


class VigcJsonData(JsonData):
    """Questions and answers of a VIGC JSON file."""

    what, holds = "VIGC file", "questions and answers"

    def __init__(
        self, path: str | Path, images: str | Path, question_type: AnyType = QuestionType.CONVERSATION,
        on_bad_record: OnBadRecord = "refuse",
    ) -> None:  # fmt: skip
        """Args:
            path: the JSON file, or a URI of it.
            images: the folder that the records' images are relative to, or a URI of it.
            question_type: of records that have neither `type` nor one of VIGC's instructions.
            on_bad_record: whether records that cannot be used are refused, all of them at once, or left out and counted.

        Raises:
            UserError: the file cannot be read, records are refused (the text names the first of each kind), or the images lie elsewhere.
        """
        self.question_type = question_type
        super().__init__(path, images, on_bad_record=on_bad_record)

    def _conversation(self, index: int, entry: dict[str, Any], where: str, odd: OddRecords) -> Conversation:
        refuse_other_media(entry, where)
        image = checked_image(entry.get("image", entry.get("image_path")), where)
        named = next((entry[key] for key in ("id", "question_id", "image_id") if entry.get(key) not in _ABSENT), "")
        name = checked_text(f"{named}#{index}", where)
        answers = _answers(entry.get("answer", entry.get("direct_answers")), where)
        turn = (_text(entry.get("question"), f"{where}: question"), most_frequent(answers))
        several = answers if len(set(answers)) > 1 else ()
        return Conversation(name, image, self._type(entry, where), (turn,), several, *_choices(entry, where))

    def _type(self, entry: dict[str, Any], where: str) -> AnyType:
        if entry.get("type") not in _ABSENT:
            return checked_type(entry["type"], where)
        instruction = entry.get("instruction")
        return _TYPES_BY_INSTRUCTION.get(instruction, self.question_type) if isinstance(instruction, str) else self.question_type


def _answers(given: Any, where: str) -> tuple[str, ...]:
    answers = [given] if isinstance(given, str) else given
    if not isinstance(answers, list) or not answers:
        raise BadRecordError(Fault.NO_TEXT, f"{where} has answer {given!r:.80}; expected a text or a list of texts")
    return tuple(_text(answer, f"{where}: answer {number}") for number, answer in enumerate(answers))


def _choices(entry: dict[str, Any], where: str) -> tuple[tuple[str, ...], str]:
    """The choices of a question and the right one of them; empty if the record lists none."""
    given, right = entry.get("choices"), entry.get("correct_choice_idx")
    if given in (None, []):
        return (), ""
    if not isinstance(given, list) or len(given) > len(string.ascii_uppercase):
        expected = f"expected a list of texts, at most {len(string.ascii_uppercase)}"
        raise BadRecordError(Fault.NO_TEXT, f"{where} has choices {given!r:.80}; {expected}")
    choices = tuple(_text(choice, f"{where}: choice {number}") for number, choice in enumerate(given))
    if right is None:
        return choices, ""
    if type(right) is not int or not 0 <= right < len(choices):
        expected = f"expected the index of one of its {len(choices)} choices"
        raise BadRecordError(Fault.NO_TEXT, f"{where} has correct_choice_idx {right!r:.80}; {expected}")
    return choices, choices[right]


def _text(given: Any, where: str) -> str:
    if not isinstance(given, str) or not given.strip():
        fault = Fault.EMPTY if given in (None, "") or isinstance(given, str) else Fault.NO_TEXT
        raise BadRecordError(fault, f"{where} is {given!r:.80}; expected a text that is not empty")
    return checked_text(given, where).strip()
