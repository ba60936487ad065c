"""Labelled data as records of conversations, whichever file they come from: samples to train on, and questions to be asked."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from loop.errors import UserError, one_line, printable
from loop.sources.first_images import refuse_unreadable
from loop.sources.folder import checked_folder, open_image
from loop.sources.places import ACCESS_ERRORS, Place
from policies.instructions import ALL_TYPES, CANONICAL_INSTRUCTIONS, TRAINING_INSTRUCTIONS, AnyType, vig_target
from policies.knowledge import vic_prompt
from policies.records import HeldOutQuestion, TrainingSample

MAX_TEXT_CHARACTERS = 32_768
"""Bound on a turn, an id or a file name: a held-out question is read whole, whatever memory that takes."""

Turns = Literal["pairs", "conversation"]
"""What a VIC sample is: one question with its answer, as VIGC trains; or the whole conversation, as LLaVA does."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation about one image."""

    name: str
    """`ID#INDEX`: files use an image's id for all its conversations, the index makes it unique."""
    image_id: str
    question_type: AnyType
    turns: tuple[tuple[str, str], ...]
    """`(question, answer)` pairs, without the image token; at least one."""
    answers: tuple[str, ...] = ()
    """Where several people answered the one question: what each of them said. `turns` holds what most of them said."""


class LabelledData(ABC):
    """Questions and answers of files. Pickles without its records, which are read again when asked for."""

    def __init__(self, path: str | Path, turns: Turns = "pairs") -> None:
        """Args:
            path: names the data in errors.
            turns: what a VIC sample is.

        Raises:
            UserError: a file or a record cannot be read (the text names the record), or not one of the first images can be.
        """
        self.path = path
        self.turns: Turns = turns
        self._records: tuple[Conversation, ...] | None = None
        refuse_unreadable(self, self.image_ids(), str(path), self._hint())

    @abstractmethod
    def open(self, image_id: str) -> Image.Image: ...

    @abstractmethod
    def _read(self) -> Iterator[Conversation]:
        """All records, at least one. Raises `UserError`."""

    def _hint(self) -> str:
        """What to do where not one of the first images can be read."""
        return "expected whole JPEG, PNG or WebP images"

    def records(self) -> tuple[Conversation, ...]:
        """All records, in the order of the files."""
        if self._records is None:
            self._records = tuple(self._read())
        return self._records

    def image_ids(self) -> list[str]:
        return list(dict.fromkeys(record.image_id for record in self.records()))

    def training_samples(self, num_samples: int, seed: int) -> list[TrainingSample]:
        """Even samples are VIG, of a single question-answer pair; odd ones VIC, of such a pair or of the whole conversation. Every pair
        (with whole conversations: every record) is used once before any is used again."""
        rng = np.random.default_rng(seed)
        whole = self.turns == "conversation"
        items = [(record, turn) for record in self.records() for turn in (record.turns[:1] if whole else record.turns)]
        samples = []
        for index, item in enumerate(_order(len(items), num_samples, rng)):
            record, turn = items[item]
            if index % 2 == 0:
                turn = record.turns[int(rng.integers(len(record.turns)))] if whole else turn
                samples.append(_vig(record, _drawn(record, turn, rng), rng))
            else:
                samples.append(_vic(record, record.turns if whole else (turn,), rng))
        return samples

    def conversations(self, num_samples: int | None, seed: int) -> list[TrainingSample]:
        """Whole records, every answer of one in one sample."""
        rng = np.random.default_rng(seed)
        records = self.records()
        return [_vic(records[index], records[index].turns, rng) for index in _order(len(records), num_samples, rng)]

    def captions(self, num_samples: int | None, seed: int) -> list[TrainingSample]:
        """Records as LLaVA's caption files have them, of one turn each.

        Raises:
            UserError: a record has several.
        """
        if several := next((record for record in self.records() if len(record.turns) > 1), None):
            raise UserError(
                f"record {several.name} of {self.path} has {len(several.turns)} turns, and a caption has one; take `form: conversations`, "
                "or a file of captions"
            )
        return self.conversations(num_samples, seed)

    def questions(self, num_questions: int, seed: int) -> list[HeldOutQuestion]:
        """The first question of that many records, drawn without repetition; of all records when there are fewer."""
        records = self.records()
        chosen = np.random.default_rng(seed).permutation(len(records))[:num_questions]
        return [_question(records[index]) for index in chosen]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_records": None}


class JsonData(LabelledData):
    """A JSON file beside a folder of images."""

    def __init__(self, path: str | Path, images: str | Path, turns: Turns = "pairs") -> None:
        """Args:
            path: the JSON file, or a URI of it.
            images: the folder that the records' images are relative to, or a URI of it.
            turns: what a VIC sample is.

        Raises:
            UserError: the file or a record of it cannot be read (the text names the record), or the images lie elsewhere.
        """
        self.file = Place.of(path, "labelled file")
        self.images = checked_folder(images)
        super().__init__(path, turns)

    def open(self, image_id: str) -> Image.Image:
        return open_image(self.images, image_id)

    def _hint(self) -> str:
        return f"is {self.images.address} the right folder?"


def json_entries(file: Place, what: str, expected: str) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Index, object, and how errors name it, of every entry of a JSON list; raises `UserError`."""
    try:
        with file.open() as stream:
            entries = json.loads(stream.read())
    except (*ACCESS_ERRORS, RecursionError) as error:
        raise UserError(
            f"{what} {file.address} cannot be read: {printable(one_line(error))}; expected a JSON list of {expected}"
        ) from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{what} {file.address} holds no list of {expected}")
    for index, entry in enumerate(entries):
        where = f"record {index} of {file.address}"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is {type(entry).__name__}; expected an object with image and {expected}")
        yield index, entry, f"{where} (id {entry.get('id')!r:.80})"


def checked_text(text: str, where: str) -> str:
    """`text`, which a tokenizer, a table and memory can take; raises `UserError`."""
    if len(text) > MAX_TEXT_CHARACTERS:
        raise UserError(f"{where} holds a text of {len(text)} characters; the limit is {MAX_TEXT_CHARACTERS}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} holds the text {printable(text[:80])!r}, which is no Unicode: {error.reason}") from error
    return text


def checked_type(kind: object, where: str) -> AnyType:
    """The question type that a record names; raises `UserError`."""
    found = next((one for one in ALL_TYPES if kind == one), None)
    if found is None:
        raise UserError(f"{where} has type {kind!r:.80}; expected one of {[str(one) for one in ALL_TYPES]}")
    return found


def checked_image(image: object, where: str) -> str:
    """The file name of a record's image; raises `UserError`."""
    if not isinstance(image, str) or not image:
        raise UserError(f"{where} has image {image!r:.80}; expected a file name (conversations without an image cannot be used)")
    return checked_text(image, where)


def most_frequent(answers: Sequence[str]) -> str:
    """What most said; of several the first."""
    return Counter(answers).most_common(1)[0][0]


def _order(count: int, num_samples: int | None, rng: np.random.Generator) -> list[int]:
    """Indices below `count`, each once before any comes again; `None`: each once."""
    num_samples = count if num_samples is None else num_samples
    order: list[int] = []
    while len(order) < num_samples:
        order.extend(rng.permutation(count).tolist())
    return order[:num_samples]


def _drawn(record: Conversation, turn: tuple[str, str], rng: np.random.Generator) -> tuple[str, str]:
    """A turn with one of its answers, drawn by how many gave it."""
    return (turn[0], record.answers[int(rng.integers(len(record.answers)))]) if record.answers else turn


def _vig(record: Conversation, turn: tuple[str, str], rng: np.random.Generator) -> TrainingSample:
    wordings = TRAINING_INSTRUCTIONS.get(record.question_type, (CANONICAL_INSTRUCTIONS[record.question_type],))
    instruction = wordings[int(rng.integers(len(wordings)))]
    return TrainingSample(record.image_id, ((instruction, vig_target(*turn)),), question_type=record.question_type)


def _vic(record: Conversation, turns: Sequence[tuple[str, str]], rng: np.random.Generator) -> TrainingSample:
    drawn = (_drawn(record, turn, rng) for turn in turns)
    asked = tuple((vic_prompt(record.question_type, question), answer) for question, answer in drawn)
    return TrainingSample(record.image_id, asked, question_type=record.question_type)


def _question(record: Conversation) -> HeldOutQuestion:
    question, answer = record.turns[0]
    return HeldOutQuestion(record.name, record.image_id, question, answer, record.question_type)
