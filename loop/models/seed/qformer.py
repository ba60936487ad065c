"""Train small Q-Former models of transformers classes on the embedded world: what InstructBLIP and MiniGPT-4 have in common.

`make_qformer_model` trains in stages. The vision tower and then the Q-Former learn what is in every cell, in place of BLIP-2's first
stage; the language model learns to look; all groups learn instructions; finally, the groups that the model's authors train alone learn
more of these.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from actors.training.core import run_local
from actors.training.job import RESULT_FILE, Hyperparameters, Progress, TrainingJob
from loop.errors import UserError
from loop.models.seed.model import PATCH_SIZE
from loop.models.seed.vision import pretrain_vision
from loop.sources.shapes.drills import cells
from loop.sources.shapes.render import IMAGE_SIZE
from loop.sources.shapes.scene import scene_of
from loop.sources.shapes.source import ShapesImages
from policies.records import TrainingSample

NUM_QUERY_TOKENS = 12

_NUM_CELLS = 9
INITIALIZER_RANGE = 0.08
"""About 1 / sqrt(hidden size). With transformers' own 0.02, models this small ignore the image for hundreds of steps."""
_LOOKING = Hyperparameters(
    batch_size=32, num_steps=1, learning_rate=1e-3, frozen=("vision_tower",), warmup_share=0.1, min_learning_rate_ratio=0.3
)
_INSTRUCTIONS = replace(_LOOKING, frozen=(), learning_rate_groups={"vision_tower": 1e-4}, warmup_share=0.02, min_learning_rate_ratio=0.1)
_VIGC = replace(_INSTRUCTIONS, learning_rate=3e-4, learning_rate_groups={})

VISION = {
    "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE, "initializer_range": 0.02,
}  # fmt: skip
"""Values of the vision tower's config."""
QFORMER = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512,
    "cross_attention_frequency": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "encoder_hidden_size": 128,
    "pad_token_id": 0, "initializer_range": INITIALIZER_RANGE,
}  # fmt: skip
"""Values of the Q-Former's config."""


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A family of Q-Former models."""

    build: Callable[[], Any]
    """Makes an untrained model from torch's global generator."""
    build_processor: Callable[[], Any]
    frozen: tuple[str, ...]
    """Groups that are not trained in the last stage, as in the training that its authors publish."""


def text_config(vocabulary: Sequence[str]) -> LlamaConfig:
    """The language model: a Llama of 0.75M parameters."""
    return LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=160, intermediate_size=480, num_hidden_layers=2, num_attention_heads=5,
        num_key_value_heads=5, max_position_embeddings=512, tie_word_embeddings=False, initializer_range=INITIALIZER_RANGE,
        pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip


def model_values(vocabulary: Sequence[str]) -> dict[str, Any]:
    """Values of the whole model's config."""
    return {
        "num_query_tokens": NUM_QUERY_TOKENS, "initializer_range": INITIALIZER_RANGE, "image_token_index": vocabulary.index("<image>"),
        "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip


def with_distinct_queries(model: Any) -> Any:
    """The model with random query tokens: transformers initialises all of them to zero, and equal ones stay equal."""
    torch.nn.init.normal_(model.query_tokens, std=0.02)
    return model


def make_qformer_model(
    anatomy: Anatomy,
    out: Path,
    seed: int,
    *,
    num_images: int = 6000,
    vision_steps: int = 350,
    qformer_steps: int = 200,
    looking_steps: int = 160,
    instruction_steps: int = 400,
    vigc_steps: int = 40,
    on_progress: Callable[[str, Progress], None] | None = None,
) -> dict[str, float]:
    """Train the model into `out`, in this process on one thread; the same arguments give the same weights.

    Args:
        anatomy: of the model.
        out: folder of the checkpoint, with its processor.
        seed: of the weights and of the order of the samples.
        num_images: labelled images to learn from, at shifts up to 0.15.
        vision_steps: of the vision tower alone, to say what is in every cell, 64 images each.
        qformer_steps: of the Q-Former on top of it, to say the same by its first nine query tokens, whatever it is asked.
        looking_steps: of the drill that lists every cell, with the vision tower as it is; these and those below take 32 samples each.
        instruction_steps: of VIG and VIC samples, all groups trained.
        vigc_steps: of the same, with the groups frozen that the anatomy names.
        on_progress: called with a stage's name after each step of the last three.

    Returns:
        the last loss of each of these, by its name; of `vision` and `qformer` the share of occupied cells that they get right.

    Raises:
        UserError: `out` exists.
    """
    if out.exists():
        raise UserError(f"{out} exists; choose another folder or remove it first")
    labelled = ShapesImages(seed=1, min_shift=0.0, max_shift=0.15, num_images=num_images)
    batch_size = _LOOKING.batch_size
    stages = [
        ("looking", _listed_cells(labelled, looking_steps * batch_size), replace(_LOOKING, num_steps=looking_steps)),
        (
            "instructions",
            labelled.training_samples(instruction_steps * batch_size, seed),
            replace(_INSTRUCTIONS, num_steps=instruction_steps),
        ),
        (
            "vigc",
            labelled.training_samples(vigc_steps * batch_size, seed + 1),
            replace(_VIGC, num_steps=vigc_steps, frozen=anatomy.frozen),
        ),
    ]
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, processor = anatomy.build(), anatomy.build_processor()
    questions = [turn[0] for sample in (*stages[0][1][:256], *stages[1][1][:256]) for turn in sample.turns]
    reached = _taught_to_see(model, processor, labelled, questions, (vision_steps, qformer_steps), seed)
    with tempfile.TemporaryDirectory(prefix="vigc-qformer-") as scratch:
        base = Path(scratch) / "vision"
        model.save_pretrained(base)
        processor.save_pretrained(base)
        for name, samples, hyper in stages:
            job = TrainingJob(base, Path(scratch) / name, samples, seed, hyper)
            reached[name] = run_local(job, labelled, on_progress=partial(on_progress, name) if on_progress else None).final_loss
            base = Path(scratch) / name
        (base / RESULT_FILE).unlink()
        shutil.copytree(base, out)
    return reached


def _listed_cells(source: ShapesImages, num_samples: int) -> list[TrainingSample]:
    ids = source.image_ids()
    return [TrainingSample(one, (cells(scene_of(one)),)) for one in (ids[index % len(ids)] for index in range(num_samples))]


def _taught_to_see(
    model: Any, processor: Any, source: ShapesImages, questions: list[str], num_steps: tuple[int, int], seed: int
) -> dict[str, float]:
    """The vision tower, then the Q-Former, each trained alone for its number of steps; the share of cells that each gets right."""
    read = _read_by_qformer(model, processor, questions)

    def seen_by_tower(pixels: torch.Tensor) -> torch.Tensor:
        return model.vision_model(pixels).last_hidden_state[:, 1:]

    def seen_by_queries(pixels: torch.Tensor) -> torch.Tensor:
        rows = torch.randint(len(questions), (len(pixels),))
        seen = model.get_image_features(pixels, **{name: tensor[rows] for name, tensor in read.items()})
        return seen.qformer_outputs.last_hidden_state[:, :_NUM_CELLS]

    tower, queries = list(model.vision_model.parameters()), [model.query_tokens, *model.qformer.parameters()]
    shared = (processor.image_processor, source)
    right = {"vision": pretrain_vision(tower, seen_by_tower, *shared, num_steps=num_steps[0], seed=seed)}
    model.vision_model.requires_grad_(False)
    right["qformer"] = pretrain_vision(queries, seen_by_queries, *shared, num_steps=num_steps[1], seed=seed)
    return right


def _read_by_qformer(model: Any, processor: Any, questions: list[str]) -> dict[str, torch.Tensor]:
    """What InstructBLIP's Q-Former reads of each question; BLIP-2's reads no text."""
    if model.config.model_type != "instructblip":
        return {}
    read = processor.qformer_tokenizer(questions, padding=True, return_tensors="pt")
    return {f"qformer_{name}": read[name] for name in ("input_ids", "attention_mask")}
