"""The guard: checks that an engine computes what its model computes by itself.

The engine assembles prompts, places image features, counts positions and caches with its own code. If this code does not fit a
model's family, every answer and score is silently wrong. So before an engine serves, it reads one prompt about two images of
different shapes, and two more tokens. The log-probabilities must match those of the model's own `generate` on the processor's own
inputs, one image at a time. The transformers engine compares when it is constructed. vLLM, beside which a second copy of the weights has
no room, compares in its first swap with what another process has computed (`actors.engines.probe`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from actors.engines.base import Expected, Request
from actors.engines.errors import UnfitModelError
from actors.engines.prompting import patches
from actors.engines.reference import ReferenceModel

SIZES = ((160, 80), (112, 224))
"""Width and height: a wide and a tall image of different areas, so that the two rows also differ in length."""
_PROMPT = "Describe the image."
_NUM_TOKENS = 2
"""Tokens after the prompt. The first uses the cache of the prefill, the second a cache that decoding has extended."""
TOLERANCES = {torch.float32: 5e-3, torch.bfloat16: 0.1, torch.float16: 0.03}
"""Largest error of the log-probabilities relative to their spread over the vocabulary. Padding and the cache change the order of
sums: on models of 2 to 32 layers the measured error is at most 1e-5 in float32 (more with TF32 convolutions) and 0.04 in bfloat16.
For a family that does not fit it is about 1. Relative to the spread, the bound means the same for sharp and flat distributions,
and the mean over the vocabulary does not depend on its size."""

_OTHER_KERNELS = {torch.float32: 5e-3, torch.bfloat16: 0.3, torch.float16: 0.05}
"""The same for an engine with kernels of its own, vLLM. On small untrained models, which amplify rounding, the measured error is at most
3e-5 in float32 and 0.17 in bfloat16, where the model's own class differs by 0.27 from itself in float32."""

_LEAST_SPREAD = 1e-3
"""If a model makes all tokens almost equally likely, rounding is large relative to the spread."""

_REMEDIES = {
    "transformers": "set engine.kind to vllm, if vLLM supports the model, or use another model",
    "vllm": "set engine.kind to transformers, or use another model",
}
_MACHINE_ERRORS = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
"""Errors that may not occur on another machine or in another attempt."""

Follow = Callable[[Sequence[Request], torch.Tensor], torch.Tensor]
"""Has an engine read requests, then given tokens [rows, tokens]; returns log-probabilities [rows, tokens + 1, vocabulary], -inf for
banned tokens and NaN for those that the engine does not tell."""


def check_matches_reference(reference: ReferenceModel, follow: Follow) -> None:
    """Compare what the transformers engine computes with what the model computes by itself.

    Args:
        reference: the engine's model, with its weights.
        follow: how the engine reads requests.

    Raises:
        UnfitModelError: they differ, or one of them fails.
    """
    expected = expected_of(reference, "transformers")
    if difference := difference_from(expected, follow):
        raise refusal("transformers", expected.model_type, difference)


@torch.inference_mode()
def expected_of(reference: ReferenceModel, engine: str, repeated_id: int | None = None) -> Expected:
    """What a model computes by itself.

    Args:
        reference: the model.
        engine: the kind of the engine that is to run it, for messages.
        repeated_id: the token that continues the prompts, as often as needed; `None` continues them greedily.

    Raises:
        UnfitModelError: the model fails, or its logits are not finite.
    """
    model, rng = reference.model, np.random.default_rng(0)
    requests = tuple(Request(patches(rng, size), _PROMPT) for size in SIZES)
    allowed = None if repeated_id is None else [repeated_id]
    try:
        written = [reference.generate_greedy(request, _NUM_TOKENS + 1, allowed) for request in requests]
    except _MACHINE_ERRORS:
        raise
    except Exception as error:  # a model's code may raise anything on inputs that do not fit
        what = f"its own generate fails on its processor's inputs with {brief(error)}"
        raise refusal(engine, model.config.model_type, what) from error
    if not all(logits.isfinite().all() for _, logits in written):
        raise UnfitModelError(f"this {model.config.model_type} model returns non-finite logits; use an intact checkpoint")
    tokens, logits = (torch.stack(parts) for parts in zip(*written, strict=True))
    tolerances = TOLERANCES if engine == "transformers" else _OTHER_KERNELS
    return Expected(model.config.model_type, requests, tokens[:, :_NUM_TOKENS], logits, tolerances[model.dtype])


@torch.inference_mode()
def difference_from(expected: Expected, follow: Follow) -> str:
    """Describes where an engine does not compute what is expected, or fails; empty if it does."""
    try:
        found = follow(expected.requests, expected.tokens)
    except _MACHINE_ERRORS:
        raise
    except Exception as error:  # a model's code may raise anything on inputs that do not fit
        return f"prompts about two images fail with {brief(error)}"
    for (width, height), row, logits in zip(SIZES, found, expected.logits, strict=True):
        for step, (one, other) in enumerate(zip(row, logits, strict=True)):
            error = relative_error(one, other)
            if not error <= expected.tolerance:  # NaN is an error too
                place = f"{step} tokens after the prompt" if step else "at the end of the prompt"
                return (
                    f"about an image of {width}x{height}, {place}, log-probabilities differ by {error:.1%} of their spread, and "
                    f"{expected.tolerance:.1%} is rounding"
                )
    return ""


def refusal(engine: str, model_type: str, what: str) -> UnfitModelError:
    """The error of an engine of some kind that does not run a model as the model runs by itself."""
    return UnfitModelError(f"the {engine} engine cannot run this {model_type} model as it runs by itself: {what}; {_REMEDIES[engine]}")


def relative_error(found: torch.Tensor, logits: torch.Tensor) -> float:
    """Root mean square difference of the log-probabilities of the tokens that an engine tells, relative to the standard deviation over all
    that are not banned."""
    banned, told = found == -torch.inf, found.isfinite()
    expected = logits.to(found.device).masked_fill(banned, -torch.inf).log_softmax(-1)
    return ((found - expected)[told].square().mean().sqrt() / expected[~banned].std().clamp(min=_LEAST_SPREAD)).item()


def brief(error: Exception) -> str:
    """Type and text of an error as one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
