"""Drills: dense captions that teach a model to look before it is asked anything.

Instruction tuning from scratch learns only from the text. A drill asks for many details in one answer: `cells` goes from place to
content, `find` from content to place and count. Both are needed: a model that was only drilled on cells describes perfectly but cannot
find the green ring.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from loop.sources.shapes.questions import captions
from loop.sources.shapes.scene import COLORS, POSITIONS, SHAPES, SIZES, Scene, Thing, pick

CELLS_PROMPT = "List every cell of the image."
CAPTION_PROMPT = "What can be seen?"
_NUM_FINDS = 6


def cells(scene: Scene) -> tuple[str, str]:
    """Prompt and answer: every cell by name in reading order, `empty` or size, color and shape."""
    by_cell = {thing.cell: f"{thing.size} {thing.color} {thing.shape}" for thing in scene.things}
    return CELLS_PROMPT, ", ".join(f"{position} {by_cell.get(cell, 'empty')}" for cell, position in enumerate(POSITIONS)) + "."


def caption(scene: Scene) -> tuple[str, str]:
    """Prompt and answer: the objects by color and shape, in reading order, without places."""
    return CAPTION_PROMPT, captions(scene)[1]


def find(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Prompt and answer: six names, each with what it finds: a thing and its place, `none`, or how many."""
    names, answers = [], []
    for _ in range(_NUM_FINDS):
        name, fits = _QUERIES[int(rng.choice(len(_QUERIES), p=_SHARES))](scene, rng)
        names.append(name)
        answers.append(f"{name} {_found([thing for thing in scene.things if fits(thing)], name)}")
    return f"Find: {', '.join(names)}.", ", ".join(answers) + "."


def _found(things: list[Thing], name: str) -> str:
    if not things:
        return "none"
    if name.endswith("objects") or len(things) > 1:
        return str(len(things))
    thing = things[0]
    return f"{thing.size} {thing.color} {thing.shape} {thing.position}"


_Query = tuple[str, Callable[[Thing], bool]]


def _by_color_and_shape(scene: Scene, rng: np.random.Generator) -> _Query:
    """Of the things here three times in five; else one property of one of them with any other, most of which are not here."""
    thing = pick(rng, scene.things)
    color, shape = thing.color, thing.shape
    if rng.random() < 0.4:
        color, shape = (color, pick(rng, SHAPES)) if rng.random() < 0.5 else (pick(rng, COLORS), shape)
    return f"{color} {shape}", lambda other: other.color == color and other.shape == shape


def _by(property_name: str, options: tuple[str, ...], kind: str = "") -> Callable[[Scene, np.random.Generator], _Query]:
    """Asks for a property: of a thing that is here seven times in ten, else any."""

    def query(scene: Scene, rng: np.random.Generator) -> _Query:
        value = getattr(pick(rng, scene.things), property_name) if rng.random() < 0.7 else pick(rng, options)
        return f"{value} {kind}".rstrip(), lambda other: getattr(other, property_name) == value

    return query


def _count_size(scene: Scene, rng: np.random.Generator) -> _Query:
    size = pick(rng, SIZES)
    return f"{size} objects", lambda other: other.size == size


_QUERIES: tuple[Callable[[Scene, np.random.Generator], _Query], ...] = (
    _by_color_and_shape,
    _by("shape", SHAPES),
    _by("color", COLORS, "object"),
    _by("color", COLORS, "objects"),
    _count_size,
)
_SHARES = (0.5, 0.15, 0.1, 0.1, 0.15)
