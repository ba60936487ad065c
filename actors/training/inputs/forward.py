"""The forward pass of training: logits where a token has a loss."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch

from actors.training.batches import Batch
from actors.training.inputs.encoding import IGNORED

_LARGE_VOCABULARY = 4096
"""Below, the logits cost next to nothing, and sums stay in the order that they always had."""


def target_logits(model: Any, batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in float32 [target tokens, vocabulary] at the positions before tokens with a loss, and those tokens."""
    dtype = next(model.parameters()).dtype
    inputs = {name: tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device) for name, tensor in batch.inputs.items()}
    targets = batch.labels[:, 1:].to(device)
    wanted = targets != IGNORED
    if _keeps_some_logits(model):
        kept = wanted.any(0).nonzero()[:, 0]  # of all rows: transformers takes the same positions from each
        logits = model(**inputs, use_cache=False, logits_to_keep=kept).logits
        return logits[wanted[:, kept]].float(), targets[wanted]
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    return logits[wanted].float(), targets[wanted]


def _keeps_some_logits(model: Any) -> bool:
    """Whether to compute only the logits that a row needs: with a large vocabulary, they are most of a pass's memory."""
    inner = getattr(model, "module", model)
    vocabulary = inner.config.get_text_config().vocab_size
    return vocabulary >= _LARGE_VOCABULARY and "logits_to_keep" in signature(inner.forward).parameters


def summed_loss(model: Any, batch: Batch, device: torch.device) -> torch.Tensor:
    """Cross-entropy in float32, summed over the batch's target tokens."""
    logits, targets = target_logits(model, batch, device)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


def answer_logprobs(model: Any, batch: Batch, device: torch.device) -> torch.Tensor:
    """Log-probability of each row's target tokens in nats, summed in float32: [rows]. A row without targets has 0."""
    logits, targets = target_logits(model, batch, device)
    logprobs = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    num_targets = (batch.labels[:, 1:] != IGNORED).sum(1).tolist()
    return torch.stack([row.sum() for row in logprobs.split(num_targets)])
