"""The filter of `drawings`: does the answer follow from the model's own description of the image?

Named in a config as `loop.sources.drawings.consistency:FollowsFromDescription`; see `loop.sources.worlds.consistency`.
"""

from __future__ import annotations

import re

from loop.sources.drawings.houses import SHIPPED, Things, read_things
from loop.sources.drawings.questions import grammar_of
from loop.sources.drawings.scene import Scene, thing_of
from loop.sources.worlds.consistency import FollowsFromOwnDescription, described_things, in_reading_order
from loop.sources.worlds.grammar import Grammar, any_of
from loop.sources.worlds.grid import POSITIONS


class FollowsFromDescription(FollowsFromOwnDescription[Scene]):
    """Filter policy `follows_from_description`; needs `describe: true` in the correction.

    Args:
        path: folder of the drawings, whose things.json says what a description may name; by default that of the shipped houses.
    """

    def __init__(self, path: str = SHIPPED) -> None:
        self._things = read_things(path)

    @property
    def grammar(self) -> Grammar[Scene]:
        return grammar_of(self._things)

    def described_scene(self, description: str) -> Scene | None:
        return described_scene(description, self._things)


def described_scene(description: str, things: Things) -> Scene | None:
    """The scene in a description of the form that the grammar answers with, or None if it contains none."""
    sentence = re.compile(rf"There is an? (?P<name>{any_of(things.names)}) at the (?P<position>{any_of(POSITIONS)})\.")
    found = described_things(description, sentence)
    drawn = [thing_of(things, things.names.index(one["name"]), POSITIONS.index(one["position"])) for one in found]
    return Scene("described", "", in_reading_order(drawn), 0) if drawn else None
