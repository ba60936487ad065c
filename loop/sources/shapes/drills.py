"""Drills on `shapes`; see `loop.sources.worlds.drills`."""

from __future__ import annotations

import numpy as np

from loop.sources.shapes.scene import COLORS, SHAPES, SIZES, Scene, Thing, pick
from loop.sources.worlds import drills
from loop.sources.worlds.drills import CAPTION_PROMPT, CELLS_PROMPT, Query, QueryMaker, by_property, caption, cells
from loop.sources.worlds.grid import GridThing

__all__ = ["CAPTION_PROMPT", "CELLS_PROMPT", "caption", "cells", "find"]


def find(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Prompt and answer: six names, each with what it finds: a thing and its place, `none`, or how many."""
    return drills.find(scene, rng, _QUERIES, _SHARES, plurals=("objects",))


def _by_color_and_shape(scene: Scene, rng: np.random.Generator) -> Query:
    """Of the things here three times in five; else one property of one of them with any other, most of which are not here."""
    thing = pick(rng, scene.things)
    color, shape = thing.color, thing.shape
    if rng.random() < 0.4:
        color, shape = (color, pick(rng, SHAPES)) if rng.random() < 0.5 else (pick(rng, COLORS), shape)
    name = f"{color} {shape}"
    return name, lambda other: other.name == name


def _count_size(scene: Scene, rng: np.random.Generator) -> Query:
    size = pick(rng, SIZES)

    def fits(other: GridThing) -> bool:
        assert isinstance(other, Thing)
        return other.size == size

    return f"{size} objects", fits


_QUERIES: tuple[QueryMaker[Scene], ...] = (
    _by_color_and_shape,
    by_property("shape", SHAPES),
    by_property("color", COLORS, " object"),
    by_property("color", COLORS, " objects"),
    _count_size,
)
_SHARES = (0.5, 0.15, 0.1, 0.1, 0.15)
