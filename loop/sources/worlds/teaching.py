"""A teacher for embedded worlds: their program writes correct conversations, descriptions and reasoning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np

from loop.sources.worlds.grid import GridScene
from loop.sources.worlds.kinds import captions
from loop.sources.worlds.source import WorldImages
from policies.chat import Reply, Usage
from policies.generation.instructions import QuestionType
from policies.teaching.prompts import SeenObject, TeachingTask, TextView

SceneT = TypeVar("SceneT", bound=GridScene)

_NUM_TURNS = 3
_ATTEMPTS = 8


class ExactTeacher(Generic[SceneT]):
    """Writes about images of a world by their ids, in the form of any other teacher."""

    name = "exact"

    def __init__(self, source: WorldImages[SceneT]) -> None:
        self._grammar = source.world.grammar
        self._scene = lru_cache(maxsize=4)(source.scene)  # the tasks of an image come one after the other

    def write(self, tasks: Iterable[TeachingTask]) -> Iterator[Reply]:
        for task in tasks:
            yield Reply(task.key, self._written(task), Usage(num_requests=1))

    def _written(self, task: TeachingTask) -> str:
        scene = self._scene(task.view.image_id)
        if task.question_type is QuestionType.DETAIL:
            return self._grammar.truth(scene, task.question).answer
        rng = np.random.default_rng(task.seed)
        if task.question_type is QuestionType.COMPLEX:
            question = self._grammar.ask(scene, QuestionType.COMPLEX, rng)
            return f"Question: {question}\n===\nAnswer: {self._grammar.truth(scene, question).answer}"
        asked = self._questions(scene, rng)
        return "\n===\n".join(f"Question: {question}\nAnswer: {self._grammar.truth(scene, question).answer}" for question in asked)

    def _questions(self, scene: SceneT, rng: np.random.Generator) -> list[str]:
        """Different questions of a conversation."""
        found: dict[str, None] = {}
        for _ in range(_ATTEMPTS):
            found[self._grammar.ask(scene, QuestionType.CONVERSATION, rng)] = None
            if len(found) == _NUM_TURNS:
                break
        return list(found)


def text_view(source: WorldImages[SceneT], image_id: str) -> TextView:
    """An image of a world as text: exact captions and boxes."""
    scene = source.scene(image_id)
    objects = tuple(SeenObject(category, box) for category, box in source.boxes(scene))
    return TextView(image_id, f"{image_id}.png", tuple(captions(scene)), objects)
