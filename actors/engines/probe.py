"""Probes: outputs of weights on fixed inputs, computed outside the engine that is to serve them.

An engine that packs its weights for a kernel or shards them over devices cannot read them back. Its output is then compared
instead: the log-probabilities for fixed questions and images must match those of transformers with the same weights. A probe also
holds what the guard expects of an engine that is not transformers; so the first swap of every vLLM engine has one.
"""

from __future__ import annotations

import numpy as np

from actors.engines.base import Engine, Probe, Request
from actors.engines.prompting import Prompter, patches
from actors.folders import Folder, local_path
from actors.process.skipped_imports import skip_sklearn

_PROMPTS = ("Describe the image.", "What can be seen in the image?")
_MAX_NEW_TOKENS = 12
_TOLERANCES = {"float32": 2e-3, "bfloat16": 0.15, "float16": 0.03}
"""Largest difference of a mean log-probability per token between different kernels in these precisions."""


def make_probe(checkpoint: Folder, dtype: str, num_threads: int) -> Probe:
    """Continue texts greedily with a checkpoint's own transformers class on the CPU, and score what it wrote.

    Raises:
        UnfitModelError: the model cannot be run by its own class.
    """
    skip_sklearn()
    import torch

    from actors.engines.families import image_token_id
    from actors.engines.guard import SIZES, expected_of
    from actors.engines.reference import ReferenceModel
    from actors.engines.transformers import load_model

    torch.set_num_threads(num_threads)
    folder = local_path(checkpoint)
    model, prompter = load_model(folder, dtype), Prompter(folder)
    reference, end_ids = ReferenceModel(model, prompter), prompter.end_ids(model.generation_config.eos_token_id)
    banned_ids = prompter.banned_ids(image_token_id(model), end_ids)
    expected = expected_of(reference, "vllm", prompter.token_ids(_PROMPTS[0])[-1])
    rng = np.random.default_rng(1)
    requests = tuple(Request(patches(rng, size), prompt) for prompt in _PROMPTS for size in SIZES)
    written = [reference.generate_greedy(request, _MAX_NEW_TOKENS)[0].tolist() for request in requests]
    continuations = tuple(prompter.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written)
    logprobs = tuple(reference.logprob(request, text, banned_ids) for request, text in zip(requests, continuations, strict=True))
    return Probe(requests, continuations, logprobs, _TOLERANCES[dtype], expected)


def difference_from_probe(engine: Engine, probe: Probe) -> str:
    """Describes where an engine's log-probabilities differ from the probe's by more than the tolerance; empty if nowhere."""
    scores = engine.score(probe.requests, probe.continuations)
    for number, (score, expected) in enumerate(zip(scores, probe.logprobs, strict=True)):
        difference = abs(score.logprob - expected) / max(1, score.num_tokens)
        if not difference <= probe.tolerance:
            return (
                f"probe {number} has log-probability {score.logprob:.4f}, the weights that were sent give it {expected:.4f}: "
                f"{difference:.4f} per token apart, {probe.tolerance:g} allowed"
            )
    return ""
