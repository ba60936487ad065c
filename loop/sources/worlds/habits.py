"""Habits of a world: what usually goes together in a set.

With the strength h of a set, every thing after the first is with probability h the usual companion of the one before it, lies with
probability h in its usual place, and has with probability h its usual color where things have colors. All else is drawn evenly, and a set
of strength 0 is drawn as if there were no habits. What is usual is the same for all sets of a world.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from loop.sources.worlds.grid import NUM_CELLS, T, pick

_SEED = 20
"""Draws what is usual; another one would be another world."""


def habit_of(strength: float) -> int:
    """The strength in thousandths, as ids write it; raises `ValueError` outside 0..1."""
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"habit {strength} is outside 0..1")
    return round(strength * 1000)


def drawn_kinds(num_things: int, num_kinds: int, strength: float, rng: np.random.Generator) -> list[int]:
    """The kinds of the things of a scene, of `num_kinds` that a world has."""
    kinds = [int(rng.integers(num_kinds))]
    companions = usual(num_kinds, num_kinds)
    while len(kinds) < num_things:
        kinds.append(companions[kinds[-1]] if rng.random() < strength else int(rng.integers(num_kinds)))
    return kinds


def drawn_cells(kinds: Sequence[int], num_kinds: int, strength: float, rng: np.random.Generator) -> list[int]:
    """A cell for every thing, no two the same. A thing whose usual place is taken lies anywhere."""
    places = usual(num_kinds, NUM_CELLS)
    cells: list[int] = []
    for kind in kinds:
        free = [cell for cell in range(NUM_CELLS) if cell not in cells]
        cells.append(places[kind] if rng.random() < strength and places[kind] in free else pick(rng, free))
    return cells


def drawn_property(kind: int, num_kinds: int, options: Sequence[T], strength: float, rng: np.random.Generator) -> T:
    """A property of a thing of a kind, such as its color."""
    return options[usual(num_kinds, len(options))[kind]] if rng.random() < strength else pick(rng, options)


@lru_cache(maxsize=32)
def usual(num_kinds: int, num_options: int) -> tuple[int, ...]:
    """The usual option of every kind, each as often as the others; where the options are the kinds themselves, a cycle through all of
    them, so that none is its own companion."""
    order = np.random.default_rng([_SEED, num_kinds, num_options]).permutation(num_kinds).tolist()
    if num_options == num_kinds:
        return tuple(order[(order.index(kind) + 1) % num_kinds] for kind in range(num_kinds))
    return tuple(order[kind] % num_options for kind in range(num_kinds))
