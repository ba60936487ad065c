"""A world as an image source, a labelled source and an oracle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from actors.images import BadImageError
from loop.sources.worlds.claims import ClaimsReader
from loop.sources.worlds.grammar import Grammar
from loop.sources.worlds.grid import GridScene, pick
from policies.generation.instructions import TRAINING_INSTRUCTIONS, QuestionType, vig_target
from policies.records import HeldOutQuestion, TrainingSample

SceneT = TypeVar("SceneT", bound=GridScene)
Box = tuple[float, float, float, float]

_TYPE_SHARES = {QuestionType.CONVERSATION: 0.45, QuestionType.DETAIL: 0.15, QuestionType.COMPLEX: 0.4}
"""Mix of the labelled data: detail answers are long, so a smaller share of them has as many tokens."""

_VIG_SHARE = 0.4
_FALSE_PREMISE_SHARE = 0.12
"""Share of VIC samples and held-out questions whose premise is false, to teach the model to say so."""

_MAX_TURNS = 4
"""Most questions of a conversation about one image."""


@dataclass(frozen=True)
class World(Generic[SceneT]):
    """What is asked and said about the scenes of a world."""

    grammar: Grammar[SceneT]
    claims: ClaimsReader[SceneT]
    caption: Callable[[SceneT], tuple[str, str]]
    """Prompt and answer: the things by name."""
    cells: Callable[[SceneT], tuple[str, str]]
    """Prompt and answer: what is in every cell."""
    find: Callable[[SceneT, np.random.Generator], tuple[str, str]]
    """Prompt and answer: names, each with what it finds."""


class WorldImages(ABC, Generic[SceneT]):
    """Images of a world. A subclass names them, and draws the scene behind a name."""

    __slots__ = ()

    seed: int
    """Of the set: sets of a world with different seeds share no image."""

    @property
    @abstractmethod
    def world(self) -> World[SceneT]: ...

    @abstractmethod
    def image_ids(self) -> list[str]: ...

    @abstractmethod
    def scene(self, image_id: str) -> SceneT:
        """The scene behind an id; raises `ValueError` for one that is not of this world."""

    @abstractmethod
    def render(self, scene: SceneT) -> Image.Image:
        """The RGB image of a scene."""

    @abstractmethod
    def boxes(self, scene: SceneT) -> list[tuple[str, Box]]:
        """Name and box (x1, y1, x2, y2) of every thing, as shares of width and height."""

    @property
    @abstractmethod
    def origin(self) -> str:
        """What the content of an image depends on besides its number: equal sets of other sizes have the same."""

    def open(self, image_id: str) -> Image.Image:
        try:
            scene = self.scene(image_id)
        except ValueError as error:
            raise BadImageError(str(error)) from error
        return self.render(scene)

    def is_correct(self, image_id: str, question: str, answer: str) -> bool:
        return self.world.grammar.is_correct(self.scene(image_id), question, answer)

    def names_absent_object(self, image_id: str, question: str, answer: str) -> bool:
        return self.world.claims.read(self.scene(image_id), question, answer).num_objects_not_there > 0

    def objects(self) -> dict[str, list[str]]:
        """The names of the things in every image."""
        return {image_id: [thing.name for thing in self.scene(image_id).things] for image_id in self.image_ids()}

    def training_samples(self, num_samples: int, seed: int) -> list[TrainingSample]:
        """VIG and VIC samples, images taken in turn so that each is seen about equally often."""
        return self._drawn(num_samples, np.random.default_rng([self.seed, seed, 2]), self._sample)

    def conversations(self, num_samples: int | None, seed: int) -> list[TrainingSample]:
        """Questions of one type about an image with their answers, images taken in turn: up to four for a conversation, as in LLaVA's
        data, and one for the other types."""
        return self._drawn(num_samples, np.random.default_rng([self.seed, seed, 4]), self._conversation)

    def captions(self, num_samples: int | None, seed: int) -> list[TrainingSample]:
        """Exact captions, images taken in turn: half of them name the things, the others list what is where, cell by cell."""
        return self._drawn(num_samples, np.random.default_rng([self.seed, seed, 5]), self._caption)

    def questions(self, num_questions: int, seed: int) -> list[HeldOutQuestion]:
        """Held-out questions, the three types in equal shares; one per image while images last."""
        rng = np.random.default_rng([self.seed, seed, 3])
        ids = self.image_ids()
        types = list(QuestionType)
        return [self._question(index, ids[index % len(ids)], types[index % len(types)], rng) for index in range(num_questions)]

    def _drawn(
        self, num_samples: int | None, rng: np.random.Generator, make: Callable[[str, np.random.Generator], TrainingSample]
    ) -> list[TrainingSample]:
        ids = self.image_ids()
        num_samples = len(ids) if num_samples is None else num_samples
        order = np.concatenate([rng.permutation(len(ids)) for _ in range(-(-num_samples // len(ids)))])[:num_samples]
        return [make(ids[index], rng) for index in order.tolist()]

    def _sample(self, identifier: str, rng: np.random.Generator) -> TrainingSample:
        scene, question_type, grammar = self.scene(identifier), _drawn_type(rng), self.world.grammar
        if rng.random() < _VIG_SHARE:
            question = grammar.ask(scene, question_type, rng)
            turn = (pick(rng, TRAINING_INSTRUCTIONS[question_type]), vig_target(question, grammar.truth(scene, question).answer))
        else:
            turn = self._answered(scene, question_type, rng)
        return TrainingSample(identifier, (turn,), question_type=question_type)

    def _conversation(self, identifier: str, rng: np.random.Generator) -> TrainingSample:
        scene, question_type = self.scene(identifier), _drawn_type(rng)
        num_turns = int(rng.integers(1, _MAX_TURNS + 1)) if question_type is QuestionType.CONVERSATION else 1
        turns = dict(self._answered(scene, question_type, rng) for _ in range(num_turns))  # ask each question only once
        return TrainingSample(identifier, tuple(turns.items()), question_type=question_type)

    def _caption(self, identifier: str, rng: np.random.Generator) -> TrainingSample:
        make = self.world.caption if rng.random() < 0.5 else self.world.cells
        return TrainingSample(identifier, (make(self.scene(identifier)),))

    def _question(self, index: int, identifier: str, question_type: QuestionType, rng: np.random.Generator) -> HeldOutQuestion:
        question, answer = self._answered(self.scene(identifier), question_type, rng)
        return HeldOutQuestion(f"{identifier}-{index}", identifier, question, answer, question_type)

    def _answered(self, scene: SceneT, question_type: QuestionType, rng: np.random.Generator) -> tuple[str, str]:
        grammar = self.world.grammar
        question = grammar.ask(scene, question_type, rng, false_premise=rng.random() < _FALSE_PREMISE_SHARE)
        return question, grammar.truth(scene, question).answer


def _drawn_type(rng: np.random.Generator) -> QuestionType:
    return list(_TYPE_SHARES)[int(rng.choice(len(_TYPE_SHARES), p=list(_TYPE_SHARES.values())))]
