"""Probes: outputs of weights on fixed inputs, computed outside the engine that is to serve them.

An engine that packs its weights for a kernel or shards them over devices cannot read them back. Its output is then compared
instead: the log-probabilities for fixed questions and images must match those of transformers with the same weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from actors.engines.base import Engine, Probe, Request
from actors.engines.errors import SwapError
from actors.engines.prompting import Prompter, patches
from actors.skipped_imports import skip_sklearn

_PROMPTS = ("Describe the image.", "What can be seen in the image?")
_IMAGES_PER_PROMPT = 3
_IMAGE_SIZE = (96, 96)
_MAX_NEW_TOKENS = 12
_TOLERANCES = {"float32": 2e-3, "bfloat16": 0.15, "float16": 0.03}
"""Largest difference of a mean log-probability per token between different kernels in these precisions."""


def make_probe(checkpoint: Path, dtype: str, num_threads: int) -> Probe:
    """Continue texts greedily with a checkpoint's own transformers class on the CPU, and score what it wrote."""
    skip_sklearn()
    import torch

    from actors.engines.families import image_token_id
    from actors.engines.reference import ReferenceModel
    from actors.engines.transformers import load_model

    torch.set_num_threads(num_threads)
    model, prompter = load_model(checkpoint, dtype), Prompter(checkpoint)
    reference, end_ids = ReferenceModel(model, prompter), prompter.end_ids(model.generation_config.eos_token_id)
    banned_ids = prompter.banned_ids(image_token_id(model), end_ids)
    rng = np.random.default_rng(0)
    requests = tuple(Request(patches(rng, _IMAGE_SIZE), prompt) for prompt in _PROMPTS for _ in range(_IMAGES_PER_PROMPT))
    written = [reference.generate_greedy(request, _MAX_NEW_TOKENS)[0].tolist() for request in requests]
    continuations = tuple(prompter.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written)
    logprobs = tuple(reference.logprob(request, text, banned_ids) for request, text in zip(requests, continuations, strict=True))
    return Probe(requests, continuations, logprobs, _TOLERANCES[dtype])


def check_probe(engine: Engine, probe: Probe) -> None:
    """Check that an engine's log-probabilities match the probe's.

    Raises:
        SwapError: they differ by more than the tolerance.
    """
    scores = engine.score(probe.requests, probe.continuations)
    for number, (score, expected) in enumerate(zip(scores, probe.logprobs, strict=True)):
        difference = abs(score.logprob - expected) / max(1, score.num_tokens)
        if not difference <= probe.tolerance:
            raise SwapError(
                f"probe {number} has log-probability {score.logprob:.4f}, the weights that were sent give it {expected:.4f}: "
                f"{difference:.4f} per token apart, {probe.tolerance:g} allowed"
            )
