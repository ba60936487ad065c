"""Scenes of the embedded world: the content of an image, drawn from its id alone.

An image id reads `shapes-{seed}-{index}-{shift}`, the shift in thousandths: `shapes-7-000042-0310` is image 42 of world 7 at
shift 0.31. The scene and every pixel follow from the id, so nothing needs to be stored and the truth is always known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

SHAPES = ("circle", "ring", "square", "triangle", "cross", "star")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
POSITIONS = (
    "top left", "top center", "top right",
    "middle left", "center", "middle right",
    "bottom left", "bottom center", "bottom right",
)  # fmt: skip
"""Names of the nine cells of the 3 x 3 grid, in reading order: the index of a name is the cell."""

MAX_OBJECTS = 4
_ID = re.compile(r"shapes-(0|[1-9][0-9]*)-([0-9]{6}|[1-9][0-9]{6,})-(0[0-9]{3}|1000)")
"""Exactly the form that `image_id` writes, so that an image has only one id."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: its cell (0..8, reading order), shape, color and size."""

    cell: int
    shape: str
    color: str
    size: str

    @property
    def position(self) -> str:
        return POSITIONS[self.cell]

    @property
    def row(self) -> int:
        return self.cell // 3

    @property
    def column(self) -> int:
        return self.cell % 3


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of one image. `things` are in reading order; `shift` is 0..1; `pixel_seed` draws everything that is not content."""

    image_id: str
    shift: float
    things: tuple[Thing, ...]
    pixel_seed: int


def image_id(seed: int, index: int, shift: float) -> str:
    """The id of image `index` of world `seed` at `shift` (0..1, kept to three decimals)."""
    if not 0.0 <= shift <= 1.0:
        raise ValueError(f"shift {shift} is outside 0..1")
    return f"shapes-{seed}-{index:06d}-{round(shift * 1000):04d}"


def scene_of(identifier: str) -> Scene:
    """The scene behind an image id.

    Raises:
        ValueError: `identifier` is not an id of this world.
    """
    match = _ID.fullmatch(identifier)
    if match is None:
        raise ValueError(f"{identifier!r} is not an image of the shapes world; expected shapes-SEED-INDEX-SHIFT (shapes-7-000042-0310)")
    seed, index, shift = int(match[1]), int(match[2]), int(match[3])
    rng = np.random.default_rng([seed, index, shift])
    cells = sorted(rng.choice(9, size=int(rng.integers(1, MAX_OBJECTS + 1)), replace=False).tolist())
    things = tuple(Thing(cell, pick(rng, SHAPES), pick(rng, COLORS), pick(rng, SIZES)) for cell in cells)
    return Scene(identifier, shift / 1000, things, int(rng.integers(2**32)))


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, drawn uniformly."""
    return options[int(rng.integers(len(options)))]
