"""The world `drawings` as an image source, a labelled source and an oracle."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from actors.images import BadImageError
from loop.errors import UserError
from loop.sources.drawings.claims import reader_of
from loop.sources.drawings.drills import finder_of
from loop.sources.drawings.houses import SHIPPED, Things, read_house, read_things
from loop.sources.drawings.questions import grammar_of
from loop.sources.drawings.render import boxes, render
from loop.sources.drawings.scene import Scene, image_id, scene_of
from loop.sources.worlds.drills import caption, cells
from loop.sources.worlds.source import Box, World, WorldImages


@lru_cache(maxsize=8)
def world_of(things: Things) -> World[Scene]:
    """What is asked and said about things of a folder."""
    return World(grammar_of(things), reader_of(things), caption, cells, finder_of(things))


@dataclass(frozen=True, slots=True)
class DrawingsImages(WorldImages[Scene]):
    """`num_images` images of `seed`, each in the drawings of one of the houses `styles`, drawn evenly."""

    seed: int
    styles: tuple[str, ...]
    num_images: int
    path: str = SHIPPED
    """Folder of the drawings, see `loop.sources.drawings.houses`."""
    habit: float = 0.0
    """How often what usually goes together does, see `loop.sources.worlds.habits`."""

    @property
    def world(self) -> World[Scene]:
        return world_of(read_things(self.path))

    def image_ids(self) -> list[str]:
        houses = np.random.default_rng([self.seed, 1]).integers(len(self.styles), size=self.num_images)
        return [image_id(self.styles[house], self.seed, index, self.habit) for index, house in enumerate(houses.tolist())]

    def scene(self, image_id: str) -> Scene:
        return scene_of(image_id, read_things(self.path))

    def render(self, scene: Scene) -> Image.Image:
        if scene.style not in self.styles:
            raise BadImageError(f"image {scene.image_id} is drawn in the style {scene.style}; this set has {', '.join(self.styles)}")
        try:
            return render(scene, read_house(self.path, scene.style))
        except UserError as error:
            raise BadImageError(f"image {scene.image_id} cannot be drawn", str(error)) from error

    def boxes(self, scene: Scene) -> list[tuple[str, Box]]:
        return boxes(scene)

    @property
    def origin(self) -> str:
        return f"drawings {self.seed} {' '.join(self.styles)} {self.path} {self.habit}"
