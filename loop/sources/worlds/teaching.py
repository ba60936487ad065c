"""A teacher for embedded worlds: their program writes correct conversations, descriptions and reasoning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from loop.sources.worlds.grammar import Grammar
from loop.sources.worlds.grid import GridScene
from loop.sources.worlds.kinds import captions
from policies.chat import Reply, Usage
from policies.generation.instructions import QuestionType
from policies.teaching.prompts import SeenObject, TeachingTask, TextView

SceneT = TypeVar("SceneT", bound=GridScene)
Box = tuple[float, float, float, float]

_NUM_TURNS = 3
_ATTEMPTS = 8


@dataclass(frozen=True)
class ExactTeacher(Generic[SceneT]):
    """Writes about images of a world by their ids, in the form of any other teacher."""

    grammar: Grammar[SceneT]
    scene_of: Callable[[str], SceneT]
    name = "exact"

    def write(self, tasks: Iterable[TeachingTask]) -> Iterator[Reply]:
        for task in tasks:
            yield Reply(task.key, self._written(task), Usage(num_requests=1))

    def _written(self, task: TeachingTask) -> str:
        scene = self.scene_of(task.view.image_id)
        if task.question_type is QuestionType.DETAIL:
            return self.grammar.truth(scene, task.question).answer
        rng = np.random.default_rng(task.seed)
        if task.question_type is QuestionType.COMPLEX:
            question = self.grammar.ask(scene, QuestionType.COMPLEX, rng)
            return f"Question: {question}\n===\nAnswer: {self.grammar.truth(scene, question).answer}"
        asked = self._questions(scene, rng)
        return "\n===\n".join(f"Question: {question}\nAnswer: {self.grammar.truth(scene, question).answer}" for question in asked)

    def _questions(self, scene: SceneT, rng: np.random.Generator) -> list[str]:
        """Different questions of a conversation."""
        found: dict[str, None] = {}
        for _ in range(_ATTEMPTS):
            found[self.grammar.ask(scene, QuestionType.CONVERSATION, rng)] = None
            if len(found) == _NUM_TURNS:
                break
        return list(found)


def text_view(scene: GridScene, boxes: Iterable[tuple[str, Box]]) -> TextView:
    """An image of a world as text: exact captions and boxes."""
    objects = tuple(SeenObject(category, box) for category, box in boxes)
    return TextView(scene.image_id, f"{scene.image_id}.png", tuple(captions(scene)), objects)
