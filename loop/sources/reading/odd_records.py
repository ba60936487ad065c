"""Collect the records of labelled files that cannot be used, count them by reason, and refuse them all at once or leave them out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeVar

from loop.errors import UserError, printable
from loop.sources.reading.unread import say_once

OnBadRecord = Literal["refuse", "leave_out"]
"""What to do with records that cannot be used."""

_MAX_SHOWN = 300
_Raw = TypeVar("_Raw")
_Made = TypeVar("_Made")


class Fault(StrEnum):
    """Why a record cannot be used, as it is counted."""

    NOT_AN_OBJECT = "not an object"
    NO_JSON = "not JSON"
    TWICE = "a key appears twice in one object, with different values"
    TEXT_ONLY = "about no image, and not a usable conversation"
    NO_IMAGE = "no usable image name"
    SEVERAL_IMAGES = "about several images"
    OTHER_MEDIA = "about a video or audio"
    IMAGE_TAG = "the place of the image is unclear"
    TURNS = "turns are not user and assistant in turn"
    EMPTY = "an empty text"
    NO_TEXT = "a text is expected"
    TYPE = "an unknown question type"
    TOO_LONG = "a text is too long"
    NOT_UNICODE = "a text is not valid Unicode"


class BadRecordError(ValueError):
    """One record cannot be used. The text names it."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(fault, text)
        self.fault, self.text = fault, text

    def __str__(self) -> str:
        return self.text


@dataclass
class OddRecords:
    """The unusable records of a set by reason: their number, and the first of them."""

    counts: dict[Fault, int] = field(default_factory=dict)
    examples: dict[Fault, str] = field(default_factory=dict)
    num_records: int = 0
    num_system_turns: int = 0
    """Records with a system turn, which is not trained on: LLaVA's own trainer skips it as well."""

    def usable(self, raw: Iterable[_Raw], convert: Callable[[_Raw], _Made]) -> Iterator[_Made]:
        """The records that can be used; the others are noted."""
        for one in raw:
            self.num_records += 1
            try:
                made = convert(one)
            except BadRecordError as error:
                self.counts[error.fault] = self.counts.get(error.fault, 0) + 1
                self.examples.setdefault(error.fault, printable(error.text)[:_MAX_SHOWN])
            else:
                yield made

    def refuse_or_report(self, path: str, num_used: int, on_bad_record: OnBadRecord, always_left_out: Iterable[Fault] = ()) -> None:
        """Refuse the set, or report what is left out of it.

        Args:
            path: of the set.
            num_used: records that can be used.
            on_bad_record: what the config says.
            always_left_out: kinds that such files often contain, which are never refused.

        Raises:
            UserError: records are to be refused, or none is left.
        """
        refused = [fault for fault in self.counts if on_bad_record == "refuse" and fault not in tuple(always_left_out)]
        if refused:
            num_bad = sum(self.counts[fault] for fault in refused)
            if num_bad == 1:
                raise UserError(f"{self.examples[refused[0]]}; correct it, or set on_bad_record leave_out to leave it out")
            lines = [
                f"{num_bad} of {self.num_records} records of {path} cannot be used; correct them, or set on_bad_record leave_out to "
                "leave them out",
                *self._lines(refused),
            ]
            raise UserError("\n".join(lines))
        if not num_used:
            raise UserError("\n".join([f"none of the {self.num_records} records of {path} can be used", *self._lines(self.counts)]))
        for fault in self.counts:
            say_once(f"{path}: {self.counts[fault]} of {self.num_records} records are left out, {fault}: {self.examples[fault]}")
        if self.num_system_turns:
            say_once(f"{path}: the system turns of {self.num_system_turns} records are left out; the conversations after them are used")

    def _lines(self, faults: Iterable[Fault]) -> list[str]:
        return [f"{self.counts[fault]} x {fault}, such as {self.examples[fault]}" for fault in faults]
