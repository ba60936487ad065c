"""The world `shapes` as an image source, a labelled source and an oracle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from loop.sources.shapes.claims import READER
from loop.sources.shapes.drills import caption, cells, find
from loop.sources.shapes.questions import GRAMMAR
from loop.sources.shapes.render import boxes, render
from loop.sources.shapes.scene import Scene, image_id, scene_of
from loop.sources.worlds.source import Box, World, WorldImages

WORLD: World[Scene] = World(GRAMMAR, READER, caption, cells, find)


@dataclass(frozen=True, slots=True)
class ShapesImages(WorldImages[Scene]):
    """`num_images` images of world `seed`, the shift of each drawn uniformly from [`min_shift`, `max_shift`]."""

    seed: int
    min_shift: float
    max_shift: float
    num_images: int
    habit: float = 0.0
    """How often what usually goes together does, see `loop.sources.worlds.habits`."""

    @property
    def world(self) -> World[Scene]:
        return WORLD

    def image_ids(self) -> list[str]:
        shifts = np.random.default_rng([self.seed, 1]).uniform(self.min_shift, self.max_shift, self.num_images)
        return [image_id(self.seed, index, float(shift), self.habit) for index, shift in enumerate(shifts)]

    def scene(self, image_id: str) -> Scene:
        return scene_of(image_id)

    def render(self, scene: Scene) -> Image.Image:
        return render(scene)

    def boxes(self, scene: Scene) -> list[tuple[str, Box]]:
        return boxes(scene)

    @property
    def origin(self) -> str:
        return f"shapes {self.seed} {self.min_shift} {self.max_shift}" + (f" {self.habit}" if self.habit else "")
