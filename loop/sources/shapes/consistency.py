"""The filter of `shapes`: does the answer follow from the model's own description of the image?

Named in a config as `loop.sources.shapes.consistency:FollowsFromDescription`; see `loop.sources.worlds.consistency`.
"""

from __future__ import annotations

import re

from loop.sources.shapes.questions import GRAMMAR
from loop.sources.shapes.scene import COLORS, POSITIONS, SHAPES, SIZES, Scene, Thing
from loop.sources.worlds.consistency import FollowsFromOwnDescription, described_things, in_reading_order
from loop.sources.worlds.grammar import Grammar

_SENTENCE = re.compile(
    rf"There is an? (?P<size>{'|'.join(SIZES)}) (?P<color>{'|'.join(COLORS)}) (?P<shape>{'|'.join(SHAPES)})"
    rf" at the (?P<position>{'|'.join(POSITIONS)})\."
)


class FollowsFromDescription(FollowsFromOwnDescription[Scene]):
    """Filter policy `follows_from_description`; needs `describe: true` in the correction."""

    @property
    def grammar(self) -> Grammar[Scene]:
        return GRAMMAR

    def described_scene(self, description: str) -> Scene | None:
        return described_scene(description)


def described_scene(description: str) -> Scene | None:
    """The scene in a description of the form of `questions.description`, or None if it contains none."""
    found = described_things(description, _SENTENCE)
    things = [Thing(POSITIONS.index(one["position"]), one["shape"], one["color"], one["size"]) for one in found]
    return Scene("described", 0.0, in_reading_order(things), 0) if things else None
