"""Stage 0 of the embedded models: train the vision tower to tell apart what can be seen and where it is, patch by patch.

It replaces a pretrained CLIP tower: without it the language model learns to ignore the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from actors.images import ImageSource
from loop.sources.shapes.scene import COLORS, SHAPES, SIZES, scene_of

_NUM_CLASSES = (len(SHAPES) + 1, len(COLORS) + 1, len(SIZES) + 1, 9)
"""Per cell: shape, color and size, class 0 for an empty cell; and the cell's number, so that the features encode their position."""

Batches = Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]
"""Draws a batch of a size: pixel values [images, 3, height, width] and labels [images, patches, parts], int64, 0 in the first part where a
patch is empty."""


def pretrain_vision(
    parameters: Iterable[nn.Parameter],
    features: Callable[[torch.Tensor], torch.Tensor],
    image_processor: Any,
    source: ImageSource,
    *,
    num_steps: int,
    batch_size: int = 64,
    seed: int = 0,
) -> float:
    """Train `parameters` in place, so that features say what is in every cell of an image of `shapes`; see `pretrain_on`.

    Args:
        parameters: of the vision tower, and of what stands between it and the features.
        features: from pixel values [images, 3, height, width] to one vector per cell [images, 9, hidden].
        image_processor: makes the pixel values.
        source: images of `shapes`.
        num_steps: of `batch_size` images each.
        batch_size: images per step.
        seed: of the order of the images.
    """
    ids = source.image_ids()
    chunks = ([source.open(one) for one in ids[start : start + 256]] for start in range(0, len(ids), 256))
    pixels = torch.cat([image_processor(images, return_tensors="pt")["pixel_values"] for images in chunks])
    labels = torch.from_numpy(patch_labels(ids))

    def batches(size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(len(ids), (size,), generator=generator)
        return pixels[rows], labels[rows]

    return pretrain_on(batches, _NUM_CLASSES, parameters, features, num_steps=num_steps, batch_size=batch_size, seed=seed)


def pretrain_on(
    batches: Batches,
    num_classes: Sequence[int],
    parameters: Iterable[nn.Parameter],
    features: Callable[[torch.Tensor], torch.Tensor],
    *,
    num_steps: int,
    batch_size: int = 64,
    seed: int = 0,
) -> float:
    """Train `parameters` in place, so that features say what is in every patch, with AdamW (peak 1e-3, cosine).

    Args:
        batches: draws the images of a step with their labels.
        num_classes: of every part of a label.
        parameters: of the vision tower, and of what stands between it and the features.
        features: from pixel values [images, 3, height, width] to one vector per patch [images, patches, hidden].
        num_steps: of `batch_size` images each.
        batch_size: images per step.
        seed: of the draws.

    Returns:
        the share of occupied patches whose labels are all right in the last 20 batches.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head = nn.Linear(features(batches(1, torch.Generator().manual_seed(seed))[0]).shape[-1], sum(num_classes))
    optimizer = torch.optim.AdamW([*parameters, *head.parameters()], lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / num_steps))
    )
    right: list[torch.Tensor] = []
    for _ in range(num_steps):
        pixels, target = batches(batch_size, generator)
        scores = head(features(pixels)).split(list(num_classes), dim=-1)
        losses = [nn.functional.cross_entropy(score.flatten(0, 1), target[..., part].flatten()) for part, score in enumerate(scores)]
        loss = sum(losses, torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        hits = torch.stack([score.argmax(-1) == target[..., part] for part, score in enumerate(scores)]).all(0)
        right.append(hits[target[..., 0] > 0].float().mean())
    return float(torch.stack(right[-20:]).mean())


def patch_labels(ids: Sequence[str]) -> np.ndarray:
    """Shape, color and size class (0 where the cell is empty) and number of every cell: [images, 9, 4], int64."""
    labels = np.zeros((len(ids), 9, 4), dtype=np.int64)
    labels[..., 3] = np.arange(9)
    for row, identifier in enumerate(ids):
        for thing in scene_of(identifier).things:
            labels[row, thing.cell, :3] = (1 + SHAPES.index(thing.shape), 1 + COLORS.index(thing.color), 1 + SIZES.index(thing.size))
    return labels
