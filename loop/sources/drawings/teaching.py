"""The teacher of `drawings`; see `loop.sources.worlds.teaching`."""

from __future__ import annotations

from loop.sources.drawings.render import boxes
from loop.sources.drawings.scene import Scene
from loop.sources.drawings.source import DrawingsImages
from loop.sources.worlds import teaching
from policies.teaching.prompts import TextView


class ExactTeacher(teaching.ExactTeacher[Scene]):
    """Writes about images of a set by their ids, in the form of any other teacher."""

    def __init__(self, source: DrawingsImages) -> None:
        super().__init__(source.world.grammar, source.scene)


def text_view(source: DrawingsImages, image_id: str) -> TextView:
    """An image of a set as text: exact captions and boxes."""
    scene = source.scene(image_id)
    return teaching.text_view(scene, boxes(scene))
