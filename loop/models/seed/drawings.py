"""The images that the vision tower of the drawings' seed model is pretrained on: augmented, with a label for every patch.

One house has one drawing of a thing. What changes nothing about its name is varied, so that other drawings of it are more likely to be
recognised: position, scale, outline, colors, sharpness, and mirroring. No drawing of another house is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from loop.models.seed.model import PATCH_SIZE
from loop.sources.drawings.houses import SHIPPED, Things, read_house, read_things
from loop.sources.drawings.render import IMAGE_SIZE, render
from loop.sources.drawings.scene import Scene, thing_of
from loop.sources.worlds.grid import NUM_CELLS

_SIDE = IMAGE_SIZE // PATCH_SIZE
"""Patches along an edge; a cell is two of them wide."""
_GROUP = 8
"""Images of a batch that share one draw of the augmentation, which is faster than a draw for each."""
_OCCUPIED_SHARE = 0.75
_PLAIN_SHARE = 0.25
"""Share of groups that are not augmented."""


def num_classes(things: Things) -> tuple[int, ...]:
    """Of the parts of a label: thing and kind, 0 for an empty patch, and the number of the patch's cell."""
    return len(things.names) + 1, len(things.all_kinds) + 1, NUM_CELLS


class AugmentedDrawings:
    """Batches for `loop.models.seed.vision.pretrain_on`. All images are drawn once and kept: 28 KB each.

    Args:
        style: house whose drawings are used.
        image_processor: its mean and standard deviation normalise the pixels.
        num_images: scenes with something in most cells, so that an image teaches more than those of a set do.
        seed: of the scenes.
    """

    def __init__(self, style: str, image_processor: Any, num_images: int, seed: int) -> None:
        from torchvision.transforms import v2

        rng, things, tiles = np.random.default_rng([seed, 6]), read_things(SHIPPED), read_house(SHIPPED, style)
        scenes = [_crowded(style, things, rng) for _ in range(num_images)]
        self._images = torch.stack([torch.from_numpy(np.array(render(scene, tiles))).permute(2, 0, 1) for scene in scenes])
        self._labels = torch.from_numpy(patch_labels(scenes, things))
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1) for values in (image_processor.image_mean, image_processor.image_std))
        self._augment = v2.Compose([
            v2.RandomApply([v2.ElasticTransform(alpha=35.0, sigma=4.0, fill=128)], p=0.5),
            v2.RandomAffine(degrees=(-8.0, 8.0), translate=(0.03, 0.03), scale=(0.9, 1.08), shear=6, fill=128),
            v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.6, hue=0.08),
            v2.RandomGrayscale(p=0.15),
            v2.RandomApply([v2.GaussianBlur(kernel_size=5, sigma=(0.3, 1.5))], p=0.3),
            v2.RandomApply([v2.RandomAdjustSharpness(sharpness_factor=3.0, p=1.0)], p=0.2),
        ])  # fmt: skip

    def __call__(self, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """`size` images: pixel values [images, 3, 96, 96], and labels [images, 36, 3]."""
        rows = torch.randint(len(self._images), (size,), generator=generator)
        images, labels = self._images[rows], self._labels[rows]
        mirrored = torch.rand(size, generator=generator) < 0.5
        images[mirrored] = images[mirrored].flip(-1)
        grid = labels.view(size, _SIDE, _SIDE, 3)
        grid[mirrored, ..., :2] = grid[mirrored, ..., :2].flip(2)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
            groups = [self._augment(group) if torch.rand(()) >= _PLAIN_SHARE else group for group in images.split(_GROUP)]
        return (torch.cat(groups).float() / 255 - self._mean) / self._std, labels


def _crowded(style: str, things: Things, rng: np.random.Generator) -> Scene:
    cells = [cell for cell in range(NUM_CELLS) if rng.random() < _OCCUPIED_SHARE]
    drawn = tuple(thing_of(things, int(rng.integers(len(things.names))), cell) for cell in cells)
    return Scene("crowded", style, drawn, int(rng.integers(2**32)))


def patch_labels(scenes: Sequence[Scene], things: Things) -> np.ndarray:
    """Thing and kind (0 where the patch's cell is empty) and number of its cell: [images, 36, 3], int64."""
    kinds = things.all_kinds
    labels = np.zeros((len(scenes), _SIDE, _SIDE, 3), dtype=np.int64)
    patches = np.arange(_SIDE) // 2
    labels[..., 2] = patches[:, None] * 3 + patches[None, :]
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            top, left = 2 * thing.row, 2 * thing.column
            labels[row, top : top + 2, left : left + 2, :2] = (1 + thing.number, 1 + kinds.index(thing.kind))
    return labels.reshape(len(scenes), _SIDE * _SIDE, 3)
