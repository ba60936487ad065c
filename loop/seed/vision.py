"""Stage 0 of the seed model: its vision tower learns to tell shapes, colors, sizes and places apart, patch by patch.

The stand-in for a CLIP tower that has seen the world: without it the language model learns to ignore the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from actors.images import ImageSource
from loop.sources.shapes.scene import COLORS, SHAPES, SIZES, scene_of

_NUM_CLASSES = (len(SHAPES) + 1, len(COLORS) + 1, len(SIZES) + 1, 9)
"""Per patch: shape, color and size, class 0 for an empty cell; and which cell it is, so that the features say where they are."""


def pretrain_vision(tower: Any, image_processor: Any, source: ImageSource, *, num_steps: int, batch_size: int = 64, seed: int = 0) -> float:
    """Train `tower` in place on per-patch labels with AdamW (peak 1e-3, cosine); returns the share of occupied patches whose
    labels are all right in the last 20 batches."""
    generator = torch.Generator().manual_seed(seed)
    ids = source.image_ids()
    chunks = ([source.open(one) for one in ids[start : start + 256]] for start in range(0, len(ids), 256))
    pixels = torch.cat([image_processor(images, return_tensors="pt")["pixel_values"] for images in chunks])
    labels = torch.from_numpy(patch_labels(ids))
    head = nn.Linear(tower.config.hidden_size, sum(_NUM_CLASSES))
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / num_steps))
    )
    tower.train()
    right: list[torch.Tensor] = []
    for _ in range(num_steps):
        rows = torch.randint(len(ids), (batch_size,), generator=generator)
        scores = head(tower(pixels[rows]).last_hidden_state[:, 1:]).split(_NUM_CLASSES, dim=-1)
        target = labels[rows]
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
