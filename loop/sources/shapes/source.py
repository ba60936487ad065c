"""The embedded world as an image source, a labelled source and an oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from actors.images import BadImageError
from loop.sources.shapes.claims import claims_of
from loop.sources.shapes.drills import caption, cells
from loop.sources.shapes.questions import ask, is_correct, truth
from loop.sources.shapes.render import render
from loop.sources.shapes.scene import Scene, image_id, pick, scene_of
from policies.generation.instructions import TRAINING_INSTRUCTIONS, QuestionType, vig_target
from policies.records import HeldOutQuestion, TrainingSample

_TYPE_SHARES = {QuestionType.CONVERSATION: 0.45, QuestionType.DETAIL: 0.15, QuestionType.COMPLEX: 0.4}
"""Mix of the labelled data: detail answers are long, so a smaller share of them has as many tokens."""

_VIG_SHARE = 0.4
_FALSE_PREMISE_SHARE = 0.12
"""Share of VIC samples and held-out questions whose premise is false, to teach the model to say so."""

_MAX_TURNS = 4
"""Most questions of a conversation about one image."""


@dataclass(frozen=True, slots=True)
class ShapesImages:
    """`num_images` images of world `seed`, the shift of each drawn uniformly from [`min_shift`, `max_shift`]."""

    seed: int
    min_shift: float
    max_shift: float
    num_images: int

    def image_ids(self) -> list[str]:
        shifts = np.random.default_rng([self.seed, 1]).uniform(self.min_shift, self.max_shift, self.num_images)
        return [image_id(self.seed, index, float(shift)) for index, shift in enumerate(shifts)]

    def open(self, image_id: str) -> Image.Image:
        try:
            return render(scene_of(image_id))
        except ValueError as error:
            raise BadImageError(str(error)) from error

    def is_correct(self, image_id: str, question: str, answer: str) -> bool:
        return is_correct(scene_of(image_id), question, answer)

    def names_absent_object(self, image_id: str, question: str, answer: str) -> bool:
        return claims_of(scene_of(image_id), question, answer).num_objects_not_there > 0

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

    def _drawn(
        self, num_samples: int | None, rng: np.random.Generator, make: Callable[[str, np.random.Generator], TrainingSample]
    ) -> list[TrainingSample]:
        ids = self.image_ids()
        num_samples = len(ids) if num_samples is None else num_samples
        order = np.concatenate([rng.permutation(len(ids)) for _ in range(-(-num_samples // len(ids)))])[:num_samples]
        return [make(ids[index], rng) for index in order.tolist()]

    def questions(self, num_questions: int, seed: int) -> list[HeldOutQuestion]:
        """Held-out questions, the three types in equal shares; one per image while images last."""
        rng = np.random.default_rng([self.seed, seed, 3])
        ids = self.image_ids()
        types = list(QuestionType)
        return [self._question(index, ids[index % len(ids)], types[index % len(types)], rng) for index in range(num_questions)]

    def _sample(self, identifier: str, rng: np.random.Generator) -> TrainingSample:
        scene, question_type = scene_of(identifier), _drawn_type(rng)
        if rng.random() < _VIG_SHARE:
            question = ask(scene, question_type, rng)
            turn = (pick(rng, TRAINING_INSTRUCTIONS[question_type]), vig_target(question, truth(scene, question).answer))
        else:
            turn = _answered(scene, question_type, rng)
        return TrainingSample(identifier, (turn,), question_type=question_type)

    def _conversation(self, identifier: str, rng: np.random.Generator) -> TrainingSample:
        scene, question_type = scene_of(identifier), _drawn_type(rng)
        num_turns = int(rng.integers(1, _MAX_TURNS + 1)) if question_type is QuestionType.CONVERSATION else 1
        turns = dict(_answered(scene, question_type, rng) for _ in range(num_turns))  # ask each question only once
        return TrainingSample(identifier, tuple(turns.items()), question_type=question_type)

    def _caption(self, identifier: str, rng: np.random.Generator) -> TrainingSample:
        scene = scene_of(identifier)
        return TrainingSample(identifier, (caption(scene) if rng.random() < 0.5 else cells(scene),))

    def _question(self, index: int, identifier: str, question_type: QuestionType, rng: np.random.Generator) -> HeldOutQuestion:
        scene = scene_of(identifier)
        question = ask(scene, question_type, rng, false_premise=rng.random() < _FALSE_PREMISE_SHARE)
        return HeldOutQuestion(f"{identifier}-{index}", identifier, question, truth(scene, question).answer, question_type)


def _drawn_type(rng: np.random.Generator) -> QuestionType:
    return list(_TYPE_SHARES)[int(rng.choice(len(_TYPE_SHARES), p=list(_TYPE_SHARES.values())))]


def _answered(scene: Scene, question_type: QuestionType, rng: np.random.Generator) -> tuple[str, str]:
    question = ask(scene, question_type, rng, false_premise=rng.random() < _FALSE_PREMISE_SHARE)
    return question, truth(scene, question).answer
