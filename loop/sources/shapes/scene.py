"""Scenes of the world `shapes`: the content of an image, drawn from its id alone.

An image id reads `shapes-{seed}-{index}-{shift}`, the shift in thousandths: `shapes-7-000042-0310` is image 42 of world 7 at
shift 0.31. In sets with a habit its strength follows, also in thousandths. The scene and every pixel follow from the id, so nothing needs
to be stored and the truth is always known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from loop.sources.worlds.grid import MAX_OBJECTS, POSITIONS, GridThing, pick
from loop.sources.worlds.habits import drawn_cells, drawn_kinds, drawn_property, habit_of

__all__ = ["COLORS", "MAX_OBJECTS", "POSITIONS", "SHAPES", "SIZES", "Scene", "Thing", "image_id", "pick", "scene_of"]

SHAPES = ("circle", "ring", "square", "triangle", "cross", "star")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")

_ID = re.compile(r"shapes-(0|[1-9][0-9]*)-([0-9]{6}|[1-9][0-9]{6,})-(0[0-9]{3}|1000)(?:-((?!0000)0[0-9]{3}|1000))?")
"""Exactly the form that `image_id` writes, so that an image has only one id."""


@dataclass(frozen=True, slots=True)
class Thing(GridThing):
    """One object: its cell (0..8, reading order), shape, color and size."""

    shape: str
    color: str
    size: str

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def described(self) -> str:
        return f"{self.size} {self.color} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of one image. `things` are in reading order; `shift` is 0..1; `pixel_seed` draws everything that is not content."""

    image_id: str
    shift: float
    things: tuple[Thing, ...]
    pixel_seed: int


def image_id(seed: int, index: int, shift: float, habit: float = 0.0) -> str:
    """The id of image `index` of world `seed` at `shift` (0..1, kept to three decimals), in a set with a habit of strength `habit`."""
    if not 0.0 <= shift <= 1.0:
        raise ValueError(f"shift {shift} is outside 0..1")
    strength = habit_of(habit)
    return f"shapes-{seed}-{index:06d}-{round(shift * 1000):04d}" + (f"-{strength:04d}" if strength else "")


def scene_of(identifier: str) -> Scene:
    """The scene behind an image id.

    Raises:
        ValueError: `identifier` is not an id of this world.
    """
    match = _ID.fullmatch(identifier)
    if match is None:
        raise ValueError(f"{identifier!r} is not an image of the shapes world; expected shapes-SEED-INDEX-SHIFT (shapes-7-000042-0310)")
    seed, index, shift = int(match[1]), int(match[2]), int(match[3])
    if match[4]:
        rng = np.random.default_rng([seed, index, shift, int(match[4])])
        things = _habitual(int(match[4]) / 1000, rng)
    else:
        rng = np.random.default_rng([seed, index, shift])
        cells = sorted(rng.choice(9, size=int(rng.integers(1, MAX_OBJECTS + 1)), replace=False).tolist())
        things = tuple(Thing(cell, pick(rng, SHAPES), pick(rng, COLORS), pick(rng, SIZES)) for cell in cells)
    return Scene(identifier, shift / 1000, things, int(rng.integers(2**32)))


def _habitual(strength: float, rng: np.random.Generator) -> tuple[Thing, ...]:
    kinds = drawn_kinds(int(rng.integers(1, MAX_OBJECTS + 1)), len(SHAPES), strength, rng)
    cells = drawn_cells(kinds, len(SHAPES), strength, rng)
    things = [
        Thing(cell, SHAPES[kind], drawn_property(kind, len(SHAPES), COLORS, strength, rng), pick(rng, SIZES))
        for kind, cell in zip(kinds, cells, strict=True)
    ]
    return tuple(sorted(things, key=lambda thing: thing.cell))
