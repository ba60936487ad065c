"""The forward pass of training: logits where a token has a loss."""

from __future__ import annotations

from typing import Any

import torch

from actors.training.batches import IGNORED, Batch


def target_logits(model: Any, batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in float32 [target tokens, vocabulary] at the positions before tokens with a loss, and those tokens."""
    dtype = next(model.parameters()).dtype
    inputs = {name: tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device) for name, tensor in batch.inputs.items()}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    targets = batch.labels[:, 1:].to(device)
    wanted = targets != IGNORED
    return logits[wanted].float(), targets[wanted]
