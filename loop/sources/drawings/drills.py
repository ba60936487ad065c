"""Drills on `drawings`; see `loop.sources.worlds.drills`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from loop.sources.drawings.houses import Things
from loop.sources.drawings.questions import plural
from loop.sources.drawings.scene import Scene
from loop.sources.worlds import drills
from loop.sources.worlds.drills import Query, QueryMaker, by_property
from loop.sources.worlds.grid import pick

_SHARES = (0.65, 0.15, 0.2)


@lru_cache(maxsize=8)
def finder_of(things: Things) -> Callable[[Scene, np.random.Generator], tuple[str, str]]:
    """Prompt and answer about a scene: six names of things and kinds, each with what it finds."""

    def by_name(scene: Scene, rng: np.random.Generator) -> Query:
        """Of the things here three times in five; else one of the same kind or any, most of which are not here."""
        thing, draw = pick(rng, scene.things), rng.random()
        alike = [name for name, kind in zip(things.names, things.kinds, strict=True) if kind == thing.kind or draw > 0.8]
        name = thing.name if draw < 0.6 else pick(rng, alike)
        return name, lambda other: other.name == name

    def by_plural(scene: Scene, rng: np.random.Generator) -> Query:
        name, fits = of_kind(scene, rng)
        return plural(name), fits

    of_kind = by_property("kind", things.all_kinds)
    queries: tuple[QueryMaker[Scene], ...] = (by_name, of_kind, by_plural)
    plurals = tuple(map(plural, things.all_kinds))
    return lambda scene, rng: drills.find(scene, rng, queries, _SHARES, plurals)
