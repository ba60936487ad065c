"""The guard: checks that an engine computes what its model computes by itself.

The engine assembles prompts, places image features, counts positions and caches with its own code. If this code does not fit a
model's family, every answer and score is silently wrong. So before an engine serves, it reads one prompt about two images of
different shapes, and two more tokens. The log-probabilities must match those of the model's own `generate` on the processor's own
inputs, one image at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from actors.engines.base import Request
from actors.engines.errors import UnfitModelError
from actors.engines.prompting import patches
from actors.engines.reference import ReferenceModel

_SIZES = ((160, 80), (112, 224))
"""Width and height: a wide and a tall image of different areas, so that the two rows also differ in length."""
_PROMPT = "Describe the image."
_NUM_TOKENS = 2
"""Tokens after the prompt. The first uses the cache of the prefill, the second a cache that decoding has extended."""
TOLERANCES = {torch.float32: 5e-3, torch.bfloat16: 0.1, torch.float16: 0.03}
"""Largest error of the log-probabilities relative to their spread over the vocabulary. Padding and the cache change the order of
sums: on models of 2 to 32 layers the measured error is at most 1e-5 in float32 (more with TF32 convolutions) and 0.04 in bfloat16.
For a family that does not fit it is about 1. Relative to the spread, the bound means the same for sharp and flat distributions,
and the mean over the vocabulary does not depend on its size."""

_LEAST_SPREAD = 1e-3
"""If a model makes all tokens almost equally likely, rounding is large relative to the spread."""

Follow = Callable[[Sequence[Request], torch.Tensor], torch.Tensor]
"""Has an engine read requests, then given tokens [rows, tokens]; returns log-probabilities [rows, tokens + 1, vocabulary], -inf for
banned tokens."""


@torch.inference_mode()
def check_matches_reference(reference: ReferenceModel, follow: Follow) -> None:
    """Compare what an engine computes with what the model computes by itself.

    Args:
        reference: the engine's model, with its weights.
        follow: how the engine reads requests.

    Raises:
        UnfitModelError: they differ, or one of them fails.
    """
    model, rng = reference.model, np.random.default_rng(0)
    requests = [Request(patches(rng, size), _PROMPT) for size in _SIZES]
    try:
        written = [reference.generate_greedy(request, _NUM_TOKENS + 1) for request in requests]
    except _MACHINE_ERRORS:
        raise
    except Exception as error:  # a model's code may raise anything on inputs that do not fit
        raise _refusal(model, f"its own generate fails on its processor's inputs with {_brief(error)}") from error
    if not all(logits.isfinite().all() for _, logits in written):
        raise UnfitModelError(f"this {model.config.model_type} model returns non-finite logits; use an intact checkpoint")
    said = torch.stack([tokens[:_NUM_TOKENS] for tokens, _ in written])
    try:
        found = follow(requests, said)
    except _MACHINE_ERRORS:
        raise
    except Exception as error:  # as above
        raise _refusal(model, f"prompts about two images fail with {_brief(error)}") from error
    for (width, height), row, (_, logits) in zip(_SIZES, found, written, strict=True):
        for step, (one, other) in enumerate(zip(row, logits, strict=True)):
            error, tolerance = relative_error(one, other), TOLERANCES[model.dtype]
            if not error <= tolerance:  # NaN is an error too
                place = f"{step} tokens after the prompt" if step else "at the end of the prompt"
                raise _refusal(
                    model,
                    f"about an image of {width}x{height}, {place}, log-probabilities differ by {error:.1%} of their spread, and "
                    f"{tolerance:.1%} is rounding",
                )


_MACHINE_ERRORS = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
"""Errors that may not occur on another machine or in another attempt."""


def relative_error(found: torch.Tensor, logits: torch.Tensor) -> float:
    """Root mean square difference of the log-probabilities of tokens that are not banned, relative to their standard deviation."""
    allowed = found.isfinite()
    expected = logits.to(found.device).masked_fill(~allowed, -torch.inf).log_softmax(-1)[allowed]
    return ((found[allowed] - expected).square().mean().sqrt() / expected.std().clamp(min=_LEAST_SPREAD)).item()


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _refusal(model: Any, what: str) -> UnfitModelError:
    return UnfitModelError(
        f"the transformers engine cannot run this {model.config.model_type} model as it runs by itself: {what}; "
        "set engine.kind to vllm, if vLLM supports the model, or use another model"
    )
