"""A teacher for the embedded world: its program writes correct conversations, descriptions and reasoning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

from loop.sources.shapes.questions import ask, captions, truth
from loop.sources.shapes.render import boxes
from loop.sources.shapes.scene import Scene, scene_of
from policies.chat import Reply, Usage
from policies.generation.instructions import QuestionType
from policies.teaching.prompts import SeenObject, TeachingTask, TextView

_NUM_TURNS = 3
_ATTEMPTS = 8
_scene_of = lru_cache(maxsize=4)(scene_of)
"""The tasks of an image come one after the other."""


class ExactTeacher:
    """Writes about images of the world by their ids, in the form of any other teacher."""

    name = "exact"

    def write(self, tasks: Iterable[TeachingTask]) -> Iterator[Reply]:
        for task in tasks:
            yield Reply(task.key, _written(task), Usage(num_requests=1))


def text_view(image_id: str) -> TextView:
    """An image of the world as text: exact captions and boxes."""
    scene = _scene_of(image_id)
    objects = tuple(SeenObject(category, box) for category, box in boxes(scene))
    return TextView(image_id, f"{image_id}.png", tuple(captions(scene)), objects)


def _written(task: TeachingTask) -> str:
    scene = _scene_of(task.view.image_id)
    if task.question_type is QuestionType.DETAIL:
        return truth(scene, task.question).answer
    rng = np.random.default_rng(task.seed)
    if task.question_type is QuestionType.COMPLEX:
        question = ask(scene, QuestionType.COMPLEX, rng)
        return f"Question: {question}\n===\nAnswer: {truth(scene, question).answer}"
    return "\n===\n".join(f"Question: {question}\nAnswer: {truth(scene, question).answer}" for question in _questions(scene, rng))


def _questions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Different questions of a conversation."""
    found: dict[str, None] = {}
    for _ in range(_ATTEMPTS):
        found[ask(scene, QuestionType.CONVERSATION, rng)] = None
        if len(found) == _NUM_TURNS:
            break
    return list(found)
