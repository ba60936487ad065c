"""Packing: several conversations in one row, none of which sees another.

Positions restart at every conversation. Without an attention mask, transformers derives from such positions a block-diagonal mask (SDPA,
flex attention) or the lengths of the sequences (flash attention). What a model does besides attention (convolutions, linear attention,
states) may still mix conversations; so training starts with a check on the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from actors.engines.guard import TOLERANCES, brief, relative_error
from actors.training.batches import Batch, BatchBuilder, Row
from actors.training.inputs.encoding import IGNORED, EncodedText
from actors.training.inputs.forward import target_logits

_PROBES = (((64, 64), (("How many?", "Two."), ("Which ones?", "Both of them."))), ((97, 151), (("What is it?", "A house."),)))
"""Image size and turns of the conversations of the check."""


class Packer:
    """Packs rows into batches of one row."""

    def __init__(self, builder: BatchBuilder, model: Any) -> None:
        self._builder = builder
        self._rope_index = getattr(model.base_model, "get_rope_index", None)

    def batch(self, rows: Sequence[Row]) -> Batch:
        """One row [1, tokens] of all conversations, one after the other, with `position_ids` [1, tokens]. For models with positions on
        several axes they are [1 + axes, 1, tokens]: first the positions in the conversation, by which the model tells conversations
        apart. The padding at the end is a conversation of its own.

        Raises:
            ValueError: the images' tensors do not fit together.
        """
        rows = self._builder.with_image(rows)
        one = Row(rows[0].position, _joined([row.text for row in rows]), tuple(image for row in rows for image in row.images))
        batch = self._builder.batch([one])
        inputs = {name: tensor for name, tensor in batch.inputs.items() if name != "attention_mask"}
        positions = [self._positions(row) for row in rows]
        num_padding = batch.labels.shape[1] - sum(one.shape[-1] for one in positions)
        padding = torch.arange(num_padding).expand(*positions[0].shape[:-1], num_padding)
        return Batch({**inputs, "position_ids": torch.cat([*positions, padding], -1)}, batch.labels, batch.num_target_tokens)

    def _positions(self, row: Row) -> torch.Tensor:
        positions = torch.arange(len(row.text.ids))[None]
        if self._rope_index is None or row.text.kinds is None:
            return positions
        axes = positions.expand(3, -1, -1)
        if row.images:
            ids, kinds = (torch.from_numpy(one.astype(np.int64))[None] for one in (row.text.ids, row.text.kinds))
            grids = torch.cat([image.tensors["image_grid_thw"] for image in row.images])
            axes, _ = self._rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grids)
        return torch.cat([positions[None], axes])


@torch.no_grad()
def check_packing(model: Any, builder: BatchBuilder, packer: Packer, device: torch.device) -> None:
    """Compare the logits of packed conversations with those of each alone; every rank must call this.

    Raises:
        ValueError: they differ, or the model fails on packed conversations.
    """
    rng = np.random.default_rng(0)
    rows = [_with_all_targets(builder.row_about(turns, _noise(rng, size))) for size, turns in _PROBES]
    was_training = model.training
    model.eval()
    try:
        alone = torch.cat([target_logits(model, builder.batch([row]), device)[0] for row in rows])
        error = _error(model, packer.batch(rows), alone, device)
    except (TypeError, ValueError, RuntimeError) as failure:  # from the model's code, for inputs that it does not take
        if isinstance(failure, torch.OutOfMemoryError):
            raise
        raise _refusal(model, f"its forward pass fails with {brief(failure)}") from failure
    finally:
        model.train(was_training)
    tolerance = TOLERANCES[_dtype_of(model)]
    if not error <= tolerance:  # NaN is an error too
        raise _refusal(model, f"log-probabilities differ by {error:.1%} of their spread, and {tolerance:.1%} is rounding")


def _dtype_of(model: Any) -> torch.dtype:
    return next(model.parameters()).dtype


def _error(model: Any, batch: Batch, alone: torch.Tensor, device: torch.device) -> float:
    """The largest error of any token: what a convolution mixes concerns only the first tokens of a conversation."""
    packed, _ = target_logits(model, batch, device)
    return max(relative_error(one.log_softmax(-1), other) for one, other in zip(packed, alone, strict=True))


def _with_all_targets(row: Row) -> Row:
    return replace(row, text=replace(row.text, labels=row.text.ids))


def _noise(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))


def _joined(texts: Sequence[EncodedText]) -> EncodedText:
    """The texts one after the other. None has a loss on its first token, which nothing predicts."""
    labels = [np.concatenate([[IGNORED], text.labels[1:]]).astype(np.int32) for text in texts]
    kinds = [text.kinds for text in texts if text.kinds is not None]
    ids, joined = np.concatenate([text.ids for text in texts]), np.concatenate(kinds) if kinds else None
    return EncodedText(ids, np.concatenate(labels), None, joined, texts[0].kinds_name)


def _refusal(model: Any, what: str) -> ValueError:
    return ValueError(
        f"this {model.config.model_type} model does not keep packed conversations apart: {what}; set training.packing to false"
    )
