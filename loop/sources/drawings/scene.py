"""Scenes of the world `drawings`: the content of an image, drawn from its id and the things that its folder has.

An image id reads `drawings-{style}-{seed}-{index}`: `drawings-noto-7-000042` is image 42 of seed 7 in the drawings of the house noto. In
sets with a habit its strength follows in thousandths. The same seed and index show the same things in every house.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from loop.sources.drawings.houses import STYLE, Things
from loop.sources.worlds.grid import MAX_OBJECTS, NUM_CELLS, GridThing, pick
from loop.sources.worlds.habits import drawn_cells, drawn_kinds, habit_of

_ID = re.compile(rf"drawings-({STYLE})-(0|[1-9][0-9]*)-([0-9]{{6}}|[1-9][0-9]{{6,}})(?:-((?!0000)0[0-9]{{3}}|1000))?")
"""Exactly the form that `image_id` writes, so that an image has only one id."""
_REPEATED = 0.1
"""Share of things after the first that are another one of an earlier thing of the scene."""


@dataclass(frozen=True, slots=True)
class Drawn(GridThing):
    """One thing: its cell (0..8, reading order), its number in the folder, its name and its kind."""

    number: int
    word: str
    kind: str

    @property
    def name(self) -> str:
        return self.word

    @property
    def described(self) -> str:
        return self.word


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of one image. `things` are in reading order; `pixel_seed` draws everything that is not content."""

    image_id: str
    style: str
    things: tuple[Drawn, ...]
    pixel_seed: int


def image_id(style: str, seed: int, index: int, habit: float = 0.0) -> str:
    """The id of image `index` of `seed` in the drawings of `style`, in a set with a habit of strength `habit` (0..1)."""
    strength = habit_of(habit)
    return f"drawings-{style}-{seed}-{index:06d}" + (f"-{strength:04d}" if strength else "")


def scene_of(identifier: str, things: Things) -> Scene:
    """The scene behind an image id.

    Raises:
        ValueError: `identifier` is not an id of this world.
    """
    match = _ID.fullmatch(identifier)
    if match is None:
        raise ValueError(
            f"{identifier!r} is not an image of the drawings world; expected drawings-STYLE-SEED-INDEX (drawings-noto-7-000042)"
        )
    seed, index, strength = int(match[2]), int(match[3]), int(match[4] or 0)
    rng = np.random.default_rng([seed, index, strength])
    numbers, cells = _habitual(things, strength / 1000, rng) if strength else _drawn(things, rng)
    drawn = [thing_of(things, number, cell) for number, cell in zip(numbers, cells, strict=True)]
    return Scene(identifier, match[1], tuple(sorted(drawn, key=lambda thing: thing.cell)), int(rng.integers(2**32)))


def thing_of(things: Things, number: int, cell: int) -> Drawn:
    """Thing `number` of a folder in a cell."""
    return Drawn(cell, number, things.names[number], things.kinds[number])


def _drawn(things: Things, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    num_things = int(rng.integers(1, MAX_OBJECTS + 1))
    numbers: list[int] = []
    for _ in range(num_things):
        repeats = bool(numbers) and rng.random() < _REPEATED
        numbers.append(pick(rng, numbers) if repeats else int(rng.integers(len(things.names))))
    return numbers, rng.choice(NUM_CELLS, size=num_things, replace=False).tolist()


def _habitual(things: Things, strength: float, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    numbers = drawn_kinds(int(rng.integers(1, MAX_OBJECTS + 1)), len(things.names), strength, rng)
    return numbers, drawn_cells(numbers, len(things.names), strength, rng)
