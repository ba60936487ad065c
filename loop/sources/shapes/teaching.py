"""The teacher of `shapes`; see `loop.sources.worlds.teaching`."""

from __future__ import annotations

from functools import lru_cache

from loop.sources.shapes.questions import GRAMMAR
from loop.sources.shapes.render import boxes
from loop.sources.shapes.scene import Scene, scene_of
from loop.sources.worlds import teaching
from policies.teaching.prompts import TextView

_scene_of = lru_cache(maxsize=4)(scene_of)
"""The tasks of an image come one after the other."""


class ExactTeacher(teaching.ExactTeacher[Scene]):
    """Writes about images of the world by their ids, in the form of any other teacher."""

    def __init__(self) -> None:
        super().__init__(GRAMMAR, _scene_of)


def text_view(image_id: str) -> TextView:
    """An image of the world as text: exact captions and boxes."""
    scene = _scene_of(image_id)
    return teaching.text_view(scene, boxes(scene))
