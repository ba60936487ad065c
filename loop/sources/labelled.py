"""Turn labelled data, from any kind of file, into training samples and held-out questions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from loop.errors import UserError
from loop.sources.folder import checked_folder, open_image
from loop.sources.reading.chats import checked_text
from loop.sources.reading.first_images import refuse_unreadable
from loop.sources.reading.json_text import checked_object, read_entries
from loop.sources.reading.odd_records import BadRecordError, Fault, OddRecords, OnBadRecord
from loop.sources.reading.places import Place
from loop.sources.reading.unread import say_once
from policies.generation.instructions import ALL_TYPES, CANONICAL_INSTRUCTIONS, TRAINING_INSTRUCTIONS, AnyType, vig_target
from policies.generation.knowledge import vic_prompt
from policies.records import HeldOutQuestion, TrainingSample

_NO_FILES = ("http://", "https://", "data:")

Turns = Literal["pairs", "conversation"]
"""What a VIC sample is: one question with its answer, as VIGC trains; or the whole conversation, as LLaVA does."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation about one image, several or none."""

    name: str
    """`ID#INDEX`: files use an image's id for all its conversations, the index makes it unique."""
    image_id: str
    """The image, the first of several; empty if there is none."""
    question_type: AnyType
    turns: tuple[tuple[str, str], ...]
    """`(question, answer)` pairs; at least one. Several images have their `IMAGE_MARK` in the questions, a single one has none."""
    answers: tuple[str, ...] = ()
    """All answers, if several people answered the one question. `turns` holds the most frequent one."""
    choices: tuple[str, ...] = ()
    """The choices for the one question, if the record lists them beside the question."""
    right_choice: str = ""
    """The right one of `choices`."""
    further_images: tuple[str, ...] = ()
    """Ids of the second image and those after it."""

    @property
    def images(self) -> tuple[str, ...]:
        """Ids of all images, in order."""
        return (self.image_id, *self.further_images) if self.image_id else ()


class LabelledData(ABC):
    """Questions and answers of files. It is pickled without its records, which are read again on demand."""

    always_left_out: tuple[Fault, ...] = ()
    """Kinds of records that such files often contain: they are always left out and counted."""

    def __init__(self, path: str | Path, turns: Turns = "pairs", on_bad_record: OnBadRecord = "refuse") -> None:
        """Args:
            path: names the data in errors.
            turns: what a VIC sample is.
            on_bad_record: whether records that cannot be used are refused, all of them at once, or left out and counted.

        Raises:
            UserError: a file cannot be read, records are refused (the text names the first of each kind), or not one of the first images
                can be read.
        """
        self.path = path
        self.turns: Turns = turns
        self.on_bad_record: OnBadRecord = on_bad_record
        self._records: tuple[Conversation, ...] | None = None
        refuse_unreadable(self, self.image_ids(), str(path), self._hint())

    @abstractmethod
    def open(self, image_id: str) -> Image.Image: ...

    @abstractmethod
    def _read(self, odd: OddRecords) -> Iterator[Conversation]:
        """All records that can be used; `odd` counts the others. Raises `UserError` for a file that cannot be read."""

    def _hint(self) -> str:
        """What to do if none of the first images can be read."""
        return "expected whole JPEG, PNG or WebP images"

    def records(self) -> tuple[Conversation, ...]:
        """All records, in the order of the files."""
        if self._records is None:
            odd = OddRecords()
            records = tuple(self._read(odd))
            odd.refuse_or_report(str(self.path), len(records), self.on_bad_record, self.always_left_out)
            self._records = records
        return self._records

    def image_ids(self) -> list[str]:
        return list(dict.fromkeys(image_id for record in self.records() for image_id in record.images))

    def training_samples(self, num_samples: int, seed: int) -> list[TrainingSample]:
        """Even samples are VIG, of a single question-answer pair; odd ones VIC, of such a pair or of the whole conversation. Every pair
        (with whole conversations: every record) is used once before any is repeated. Records about several images or none are always
        VIC, of the whole conversation: VIG is about one image."""
        rng = np.random.default_rng(seed)
        whole = self.turns == "conversation"
        items = [
            (record, turn) for record in self.records() for turn in (record.turns[:1] if whole or not _has_one(record) else record.turns)
        ]
        samples = []
        for index, item in enumerate(_order(len(items), num_samples, rng)):
            record, turn = items[item]
            if not _has_one(record):
                samples.append(_vic(record, record.turns, rng))
            elif index % 2 == 0:
                turn = record.turns[int(rng.integers(len(record.turns)))] if whole else turn
                samples.append(_vig(record, _drawn(record, turn, rng), rng))
            else:
                samples.append(_vic(record, record.turns if whole else (turn,), rng))
        return samples

    def conversations(self, num_samples: int | None, seed: int) -> list[TrainingSample]:
        """Whole records: one sample with all answers of each."""
        return self._whole(self.records(), num_samples, seed)

    def _whole(self, records: Sequence[Conversation], num_samples: int | None, seed: int) -> list[TrainingSample]:
        rng = np.random.default_rng(seed)
        return [_vic(records[index], records[index].turns, rng) for index in _order(len(records), num_samples, rng)]

    def captions(self, num_samples: int | None, seed: int) -> list[TrainingSample]:
        """Records of one turn each about one image, as in LLaVA's caption files.

        Raises:
            UserError: a record has several turns, or none is about one image.
        """
        records = self._about_one_image("a caption is about one image")
        if several := next((record for record in records if len(record.turns) > 1), None):
            raise UserError(
                f"record {several.name} of {self.path} has {len(several.turns)} turns, but a caption has one; use `form: conversations`, "
                "or a file of captions"
            )
        return self._whole(records, num_samples, seed)

    def questions(self, num_questions: int, seed: int) -> list[HeldOutQuestion]:
        """The first question of that many records about one image, drawn without repetition; of all of them when there are fewer.

        Raises:
            UserError: none is about one image.
        """
        records = self._about_one_image("a question is asked about one image")
        chosen = np.random.default_rng(seed).permutation(len(records))[:num_questions]
        return [_question(records[index]) for index in chosen]

    def _about_one_image(self, reason: str) -> list[Conversation]:
        records = self.records()
        fitting = [record for record in records if _has_one(record)]
        if not fitting:
            raise UserError(f"all {len(records)} records of {self.path} are about several images or none, but {reason}")
        if len(fitting) < len(records):
            say_once(f"{self.path}: {len(records) - len(fitting)} of {len(records)} records are about several images or none; {reason}")
        return fitting

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_records": None}


class JsonData(LabelledData):
    """A file of JSON or JSON Lines beside a folder of images."""

    what: str
    """Name of the file in errors."""
    holds: str
    """Content of its records, beside an image."""

    def __init__(
        self, path: str | Path, images: str | Path, turns: Turns = "pairs", on_bad_record: OnBadRecord = "refuse"
    ) -> None:  # fmt: skip
        """Args:
            path: the file, or a URI of it.
            images: the folder that the records' images are relative to, or a URI of it.
            turns: what a VIC sample is.
            on_bad_record: whether records that cannot be used are refused, all of them at once, or left out and counted.

        Raises:
            UserError: the file cannot be read, records are refused (the text names the first of each kind), or the images lie elsewhere.
        """
        self.file = Place.of(path, "labelled file")
        self.images = checked_folder(images)
        super().__init__(path, turns, on_bad_record)

    def open(self, image_id: str) -> Image.Image:
        return open_image(self.images, image_id)

    def _read(self, odd: OddRecords) -> Iterator[Conversation]:
        def convert(numbered: tuple[int, tuple[str, Any]]) -> Conversation:
            index, (where, given) = numbered
            entry = checked_object(given, where, self.holds)
            return self._conversation(index, entry, f"{where} (id {entry.get('id')!r:.80})", odd)

        return odd.usable(enumerate(read_entries(self.file, self.what, self.holds)), convert)

    @abstractmethod
    def _conversation(self, index: int, entry: dict[str, Any], where: str, odd: OddRecords) -> Conversation:
        """The record with the number `index`. Raises `BadRecordError`, which names it as `where`."""

    def _hint(self) -> str:
        return f"is {self.images.address} the right folder? (`images: /` goes with names from the root)"


def checked_type(kind: object, where: str) -> AnyType:
    """The question type that a record names; raises `BadRecordError`."""
    found = next((one for one in ALL_TYPES if kind == one), None)
    if found is None:
        raise BadRecordError(Fault.TYPE, f"{where} has type {kind!r:.80}; expected one of {[str(one) for one in ALL_TYPES]}")
    return found


def checked_images(given: object, where: str) -> tuple[str, ...]:
    """The file names of a record's images: one name, or a list of at least one; raises `BadRecordError`."""
    images = given if isinstance(given, list) and given else [given]
    return tuple(_checked_name(image, where) for image in images)


def checked_image(image: object, where: str) -> str:
    """The file name of a record's image, which may be the only one of a list.

    Raises:
        BadRecordError: there are none or several.
    """
    if isinstance(image, list) and len(image) > 1:
        raise BadRecordError(Fault.SEVERAL_IMAGES, f"{where} has {len(image)} images, {image!r:.80}; expected one")
    return checked_images(image, where)[0]


def _checked_name(image: object, where: str) -> str:
    name: object = image.get("path") if isinstance(image, dict) else image
    if not isinstance(name, str) or not name:
        raise BadRecordError(Fault.NO_IMAGE, f"{where} has image {image!r:.80}; expected a file name")
    if name.startswith(_NO_FILES):
        raise BadRecordError(Fault.NO_IMAGE, f"{where} has image {name!r:.80}; expected the name of a file: download it first")
    return checked_text(name, where)


def most_frequent(answers: Sequence[str]) -> str:
    """The most frequent answer; the first of several."""
    return Counter(answers).most_common(1)[0][0]


def _has_one(record: Conversation) -> bool:
    return len(record.images) == 1


def _order(count: int, num_samples: int | None, rng: np.random.Generator) -> list[int]:
    """Indices below `count`, each once before any is repeated; `None`: each once."""
    num_samples = count if num_samples is None else num_samples
    order: list[int] = []
    while len(order) < num_samples:
        order.extend(rng.permutation(count).tolist())
    return order[:num_samples]


def _drawn(record: Conversation, turn: tuple[str, str], rng: np.random.Generator) -> tuple[str, str]:
    """A turn with one of its answers, drawn by frequency."""
    return (turn[0], record.answers[int(rng.integers(len(record.answers)))]) if record.answers else turn


def _vig(record: Conversation, turn: tuple[str, str], rng: np.random.Generator) -> TrainingSample:
    wordings = TRAINING_INSTRUCTIONS.get(record.question_type, (CANONICAL_INSTRUCTIONS[record.question_type],))
    instruction = wordings[int(rng.integers(len(wordings)))]
    return TrainingSample(record.image_id, ((instruction, vig_target(*turn)),), question_type=record.question_type)


def _vic(record: Conversation, turns: Sequence[tuple[str, str]], rng: np.random.Generator) -> TrainingSample:
    drawn = (_drawn(record, turn, rng) for turn in turns)
    asked = tuple((vic_prompt(record.question_type, question), answer) for question, answer in drawn)
    return TrainingSample(record.image_id, asked, question_type=record.question_type, further_images=record.further_images)


def _question(record: Conversation) -> HeldOutQuestion:
    question, answer = record.turns[0]
    return HeldOutQuestion(
        record.name, record.image_id, question, answer, record.question_type, record.answers, record.choices, record.right_choice
    )
