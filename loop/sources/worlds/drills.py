"""Drills: dense captions that teach a model to look before it is asked anything.

Instruction tuning from scratch learns only from the text. A drill asks for many details in one answer: `cells` goes from place to
content, `find` from content to place and count. Both are needed: a model that was only drilled on cells describes perfectly but cannot
find the green ring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from loop.sources.worlds.grid import POSITIONS, GridScene, GridThing, pick
from loop.sources.worlds.kinds import captions

SceneT = TypeVar("SceneT", bound=GridScene)

CELLS_PROMPT = "List every cell of the image."
CAPTION_PROMPT = "What can be seen?"
_NUM_FINDS = 6

Query = tuple[str, Callable[[GridThing], bool]]
"""What a drill looks for: a name, and what fits it."""
QueryMaker = Callable[[SceneT, np.random.Generator], Query]


def cells(scene: GridScene) -> tuple[str, str]:
    """Prompt and answer: every cell by name in reading order, `empty` or the thing."""
    by_cell = {thing.cell: thing.described for thing in scene.things}
    return CELLS_PROMPT, ", ".join(f"{position} {by_cell.get(cell, 'empty')}" for cell, position in enumerate(POSITIONS)) + "."


def caption(scene: GridScene) -> tuple[str, str]:
    """Prompt and answer: the objects by name, in reading order, without places."""
    return CAPTION_PROMPT, captions(scene)[1]


def find(
    scene: SceneT, rng: np.random.Generator, queries: Sequence[QueryMaker[SceneT]], shares: Sequence[float], plurals: tuple[str, ...]
) -> tuple[str, str]:
    """Prompt and answer: six names, each with what it finds: a thing and its place, `none`, or how many.

    Args:
        scene: what is looked at.
        rng: draws the queries.
        queries: makers of queries.
        shares: how often each is drawn.
        plurals: endings of names that ask how many there are.
    """
    names, answers = [], []
    for _ in range(_NUM_FINDS):
        name, fits = queries[int(rng.choice(len(queries), p=shares))](scene, rng)
        found = [thing for thing in scene.things if fits(thing)]
        names.append(name)
        answers.append(f"{name} {_found(name, found, counts=name.endswith(plurals))}")
    return f"Find: {', '.join(names)}.", ", ".join(answers) + "."


def _found(name: str, things: Sequence[GridThing], *, counts: bool) -> str:
    if not things:
        return "none"
    if counts or len(things) > 1:
        return str(len(things))
    thing = things[0]
    return thing.position if thing.described == name else f"{thing.described} {thing.position}"


def by_property(property_name: str, options: Sequence[str], suffix: str = "") -> QueryMaker[GridScene]:
    """Asks for a property: of a thing that is here seven times in ten, else any."""

    def query(scene: GridScene, rng: np.random.Generator) -> Query:
        value = getattr(pick(rng, scene.things), property_name) if rng.random() < 0.7 else pick(rng, options)
        return f"{value}{suffix}", lambda thing: getattr(thing, property_name) == value

    return query
