"""What the tests of the vLLM engine share: requests about the embedded world, updates, and changed weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from actors.engines.base import Probe, Request, WeightUpdate
from actors.engines.weights import digest_of, manifest_of, read_checkpoint
from loop.config.run_config import EMBEDDED_MODEL
from loop.sources.shapes.source import ShapesImages
from policies.generation.instructions import CANONICAL_INSTRUCTIONS, QuestionType

Weights = dict[str, torch.Tensor]


def seed_weights() -> Weights:
    return read_checkpoint(EMBEDDED_MODEL)


def changed(
    weights: Mapping[str, torch.Tensor], seed: int, belongs: Callable[[str], bool] = lambda name: True, by: float = 0.05
) -> Weights:
    """The weights with noise on the matrices of the names that `belongs` takes."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + by * torch.randn(tensor.shape, generator=generator) if belongs(name) and tensor.ndim > 1 else tensor.clone()
        for name, tensor in weights.items()
    }


def update_of(weights: Weights, version: str, *, digest: str | None = None, probe: Probe | None = None) -> WeightUpdate:
    return WeightUpdate(version, digest or digest_of(weights), manifest_of(weights), tensors=weights, probe=probe)


def checkpoint_update(folder: Path, version: str, probe: Probe | None = None) -> WeightUpdate:
    weights = read_checkpoint(folder)
    return WeightUpdate(version, digest_of(weights), manifest_of(weights), checkpoint=folder, probe=probe)


def requests(num_questions: int) -> list[Request]:
    """Questions about images, and for every fourth of these images VIG's instruction."""
    source = ShapesImages(5, 0.0, 0.5, num_questions)
    asked = source.questions(num_questions, 3)
    questions = [Request(source.open(one.image_id), one.question, image_key=one.image_id) for one in asked]
    instruction = CANONICAL_INSTRUCTIONS[QuestionType.CONVERSATION]
    return questions + [Request(source.open(one.image_id), instruction, image_key=one.image_id) for one in asked[::4]]
