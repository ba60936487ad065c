"""The guard against a model that this project would run in another way than the model runs itself.

The engine puts prompts together, places image features, counts positions and keeps a cache by code of its own. For a family that
this code does not fit, every answer and score would be wrong without any error. So before an engine serves, it reads one prompt about
two images of different shape, and two tokens more, in its own way; the log-probabilities must be those of the model's own `generate`
on the processor's own inputs, one image at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from actors.engines.base import Request
from actors.engines.errors import UnfitModelError
from actors.engines.itself import ModelItself
from actors.engines.prompting import patches

_SIZES = ((160, 80), (112, 224))
"""Width and height: a wide image and a tall one, of different areas, so that the two rows differ in length as well."""
_PROMPT = "Describe the image."
_NUM_TOKENS = 2
"""Tokens after the prompt. The first one is read with a cache for the first time, the second one with a cache that decoding made."""
_TOLERANCES = {torch.float32: 5e-3, torch.bfloat16: 0.1, torch.float16: 0.03}
"""Largest error of the log-probabilities relative to their spread over the vocabulary. Padding and the cache change the order of
sums: measured on models of 2 to 32 layers by at most 1e-5 in float32 (convolutions in TF32 add to it) and 0.04 in bfloat16. Families
that are read wrongly are about 1 apart. Relative to the spread, the bound means the same for sharp and for flat distributions, and
the mean over the vocabulary does not depend on its size."""

_LEAST_SPREAD = 1e-3
"""Of a model that makes all tokens nearly equally likely, rounding would look large beside the spread."""

Follow = Callable[[Sequence[Request], torch.Tensor], torch.Tensor]
"""How an engine reads requests and then given tokens [rows, tokens]: log-probabilities [rows, tokens + 1, vocabulary]; -inf where a
token is never written."""


@torch.inference_mode()
def check_equal_to_itself(itself: ModelItself, follow: Follow) -> None:
    """Hold what an engine computes against what the model computes by itself.

    Args:
        itself: the engine's model, with its weights.
        follow: how the engine reads requests.

    Raises:
        UnfitModelError: they differ, or one of the two fails.
    """
    model, rng = itself.model, np.random.default_rng(0)
    requests = [Request(patches(rng, size), _PROMPT) for size in _SIZES]
    try:
        written = [itself.continued(request, _NUM_TOKENS + 1) for request in requests]
    except _NOT_THE_MODELS_FAULT:
        raise
    except Exception as error:  # what a model's code raises on inputs that do not fit it is no closed set
        raise _refusal(model, f"its own generate fails on its processor's inputs with {_brief(error)}") from error
    if not all(logits.isfinite().all() for _, logits in written):
        raise UnfitModelError(f"this {model.config.model_type} model gives logits that are no finite numbers; take one that is intact")
    said = torch.stack([tokens[:_NUM_TOKENS] for tokens, _ in written])
    try:
        found = follow(requests, said)
    except _NOT_THE_MODELS_FAULT:
        raise
    except Exception as error:  # likewise
        raise _refusal(model, f"prompts about two images fail with {_brief(error)}") from error
    for (width, height), row, (_, logits) in zip(_SIZES, found, written, strict=True):
        for step, (one, other) in enumerate(zip(row, logits, strict=True)):
            error, tolerance = _relative_error(one, other), _TOLERANCES[model.dtype]
            if not error <= tolerance:  # NaN is an error too
                place = f"{step} tokens after the prompt" if step else "at the end of the prompt"
                raise _refusal(
                    model,
                    f"about an image of {width}x{height}, {place}, log-probabilities differ by {error:.1%} of their spread, and "
                    f"{tolerance:.1%} is rounding",
                )


_NOT_THE_MODELS_FAULT = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
"""Another machine, or another attempt, may do without it."""


def _relative_error(found: torch.Tensor, logits: torch.Tensor) -> float:
    """Root mean square of the difference of log-probabilities over the tokens that may be written, relative to their standard
    deviation."""
    allowed = found.isfinite()
    expected = logits.to(found.device).masked_fill(~allowed, -torch.inf).log_softmax(-1)[allowed]
    return ((found[allowed] - expected).square().mean().sqrt() / expected.std().clamp(min=_LEAST_SPREAD)).item()


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _refusal(model: Any, what: str) -> UnfitModelError:
    return UnfitModelError(
        f"the transformers engine cannot run this {model.config.model_type} model as it runs by itself: {what}; "
        "set engine.kind to vllm, if vLLM has the model, or take another one"
    )
