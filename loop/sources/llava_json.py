"""Labelled data in LLaVA's format: a JSON file of conversations beside a folder of images.

    {"id": "...", "image": "000000000001.jpg", "type": "conversation",
     "conversations": [{"from": "human", "value": "<image>\\nWhat ...?"}, {"from": "gpt", "value": "..."}]}

`type` (conversation, detail, complex) is optional: LLaVA's own files do not have it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from actors.images import BadImageError
from loop.errors import UserError, printable
from loop.sources.folder import checked_folder, open_image
from policies.instructions import TRAINING_INSTRUCTIONS, QuestionType, vig_target
from policies.records import HeldOutQuestion, TrainingSample

IMAGE_TOKEN = "<image>"
MAX_TEXT_CHARACTERS = 32_768
"""Bound on a turn, an id or a file name: a held-out question is read whole, whatever memory that takes."""


@dataclass(frozen=True, slots=True)
class LlavaRecord:
    """One conversation about one image."""

    name: str
    """`ID#INDEX`: LLaVA's own files use an image's id for all its conversations, the index makes it unique."""
    image_id: str
    question_type: QuestionType
    turns: tuple[tuple[str, str], ...]
    """`(question, answer)` pairs, without the image token; at least one."""


class LlavaJsonData:
    """Questions and answers of a LLaVA JSON file. Pickles without its records, which are read again when asked for."""

    def __init__(self, path: str | Path, images: str | Path) -> None:
        """Args:
            path: the JSON file.
            images: the folder that the records' `image` is relative to.

        Raises:
            UserError: the file or a record of it cannot be read (the text names the record), or the images lie elsewhere.
        """
        self.path = Path(path).expanduser().absolute()
        self.images = checked_folder(images)
        self._records: tuple[LlavaRecord, ...] | None = None
        first = self.records()[0]
        try:
            self.open(first.image_id)
        except BadImageError as error:
            raise UserError(f"record {first.name} of {path}: its image cannot be read ({error}); is {images} the right folder?") from error

    def records(self) -> tuple[LlavaRecord, ...]:
        """All records, in the file's order."""
        if self._records is None:
            self._records = tuple(_parse(self.path))
        return self._records

    def image_ids(self) -> list[str]:
        return list(dict.fromkeys(record.image_id for record in self.records()))

    def open(self, image_id: str) -> Image.Image:
        return open_image(self.images, image_id)

    def training_samples(self, num_samples: int, seed: int) -> list[TrainingSample]:
        """Single question-answer pairs, as VIGC trains on them: even samples are VIG, odd ones VIC. Every pair is used once
        before any is used again."""
        rng = np.random.default_rng(seed)
        pairs = [(record, turn) for record in self.records() for turn in record.turns]
        return [_sample(*pairs[pair], vig=index % 2 == 0, rng=rng) for index, pair in enumerate(_order(len(pairs), num_samples, rng))]

    def conversations(self, num_samples: int | None, seed: int) -> list[TrainingSample]:
        """Whole records, every answer of one in one sample."""
        records = self.records()
        order = _order(len(records), num_samples, np.random.default_rng(seed))
        return [
            TrainingSample(records[index].image_id, records[index].turns, question_type=records[index].question_type) for index in order
        ]

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


def _order(count: int, num_samples: int | None, rng: np.random.Generator) -> list[int]:
    """Indices below `count`, each once before any comes again; `None`: each once."""
    num_samples = count if num_samples is None else num_samples
    order: list[int] = []
    while len(order) < num_samples:
        order.extend(rng.permutation(count).tolist())
    return order[:num_samples]


def _sample(record: LlavaRecord, turn: tuple[str, str], *, vig: bool, rng: np.random.Generator) -> TrainingSample:
    if vig:
        wordings = TRAINING_INSTRUCTIONS[record.question_type]
        turn = (wordings[int(rng.integers(len(wordings)))], vig_target(*turn))
    return TrainingSample(record.image_id, (turn,), question_type=record.question_type)


def _question(record: LlavaRecord) -> HeldOutQuestion:
    question, answer = record.turns[0]
    return HeldOutQuestion(record.name, record.image_id, question, answer, record.question_type)


def _parse(path: Path) -> Iterator[LlavaRecord]:
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"LLaVA file {path} cannot be read: {error}; expected a JSON list of conversations") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"LLaVA file {path} holds no list of conversations")
    for index, entry in enumerate(entries):
        where = f"record {index} of {path}"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is {type(entry).__name__}; expected an object with image and conversations")
        yield _record(entry, index, f"{where} (id {entry.get('id')!r:.80})")


def _record(entry: dict[str, Any], index: int, where: str) -> LlavaRecord:
    image = entry.get("image")
    if not isinstance(image, str) or not image:
        raise UserError(f"{where} has image {image!r:.80}; expected a file name (conversations without an image cannot be used)")
    types = [str(kind) for kind in QuestionType]
    kind = entry.get("type", QuestionType.CONVERSATION)
    if kind not in types:
        raise UserError(f"{where} has type {kind!r:.80}; expected one of {types}")
    name = f"{entry.get('id', '')}#{index}"
    return LlavaRecord(_checked(name, where), _checked(image, where), QuestionType(kind), _turns(entry.get("conversations"), where))


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
    return _checked(turn["value"], where).strip()


def _checked(text: str, where: str) -> str:
    """`text`, which a tokenizer, a table and memory can take."""
    if len(text) > MAX_TEXT_CHARACTERS:
        raise UserError(f"{where} holds a text of {len(text)} characters; the limit is {MAX_TEXT_CHARACTERS}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} holds the text {printable(text[:80])!r}, which is no Unicode: {error.reason}") from error
    return text
