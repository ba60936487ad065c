"""`vigc seed`: train the embedded model from nothing, in stages.

0. vision: the tower learns shape, color, size and place of every patch (`loop.models.seed.vision`), then stays frozen
1. looking: the language model is drilled to say what is where, and where things are (`loop.sources.shapes.drills`)
2. instructions: VIG and VIC samples of the three types, as the loop itself trains on; then a last stage at a lower rate

All but stage 0 run on the trainer of `actors.training`, the same that every round uses.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from actors.engines.transformers import TransformersEngine
from actors.evaluator import Evaluator
from actors.trainer import TrainerRank
from actors.training.job import RESULT_FILE, Hyperparameters, TrainingJob
from cluster.fleet.weights import prepare
from cluster.resources.connect import connected
from cluster.training.group import Bounds, RankOptions, TrainerGroup
from loop.errors import UserError
from loop.models.seed.model import build_model, build_processor
from loop.models.seed.vision import pretrain_vision
from loop.monitors.progress import RunProgress, loss_remark
from loop.sources.shapes.drills import cells, find
from loop.sources.shapes.scene import scene_of
from loop.sources.shapes.source import ShapesImages
from policies.metrics import share
from policies.records import TrainingSample

LABELLED = ShapesImages(seed=1, min_shift=0.0, max_shift=0.15, num_images=12_000)
"""The labelled images of the world; the recipe's seed data are the first of them."""

_TEST_SETS = {"0-0.15": (0.0, 0.15), "0.2-0.4": (0.2, 0.4), "0.4-0.7": (0.4, 0.7), "0.7-1.0": (0.7, 1.0)}
_NUM_TEST_QUESTIONS = 500
_VISION_STEPS = 1000
_DRILL_SHARE = 0.1
"""Share of drills among the instructions, so that the skill is not forgotten."""

_TIMEOUT_S = 7200.0
_LOOKING = Hyperparameters(
    batch_size=64, num_steps=900, learning_rate=1e-3, frozen=("vision_tower",), warmup_share=0.1, min_learning_rate_ratio=0.1
)
_INSTRUCTIONS = replace(_LOOKING, num_steps=2600, warmup_share=0.02, min_learning_rate_ratio=0.01)
_POLISH = replace(_INSTRUCTIONS, num_steps=1200, learning_rate=5e-4)


def make_seed_model(out: Path, seed: int, num_ranks: int, console: Console) -> dict[str, float]:
    """Train the embedded model into `out` and print its exact accuracy at four shifts; the same seed gives the same weights.

    Raises:
        UserError: `out` exists.
    """
    if out.exists():
        raise UserError(f"{out} exists; choose another --out or remove it first")
    started = time.perf_counter()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vigc-seed-") as scratch, ExitStack() as stack, RunProgress(console) as progress:
        folder = Path(scratch)
        _stage_zero(folder / "vision", seed, console)
        trainer = _trainer(stack, num_ranks)
        base = folder / "vision"
        for name, samples, hyper in _stages(seed):
            with progress.stage(name, total=hyper.num_steps) as stage:
                job = TrainingJob(base, folder / name, samples, seed, hyper)
                bounds = Bounds(_TIMEOUT_S)
                result = trainer.train(job, LABELLED, bounds, lambda now, stage=stage: stage.reach(now.step, loss_remark(now.loss)))
            base = folder / name
            (base / RESULT_FILE).unlink()
            console.print(f"stage {name}: {result.num_steps} steps, final loss {result.final_loss:.4f}, {result.seconds:.0f} s")
        shutil.copytree(base, out)
    scores = score(out)
    console.print(f"exact accuracy by shift: {json.dumps(scores)}; {time.perf_counter() - started:.0f} s in all, checkpoint in {out}")
    return scores


def score(checkpoint: Path) -> dict[str, float]:
    """Exact accuracy of a checkpoint on 500 held-out questions per range of shift."""
    evaluator = Evaluator(served(checkpoint))
    scores = {}
    for number, (name, (low, high)) in enumerate(_TEST_SETS.items()):
        source = ShapesImages(990 + number, low, high, _NUM_TEST_QUESTIONS)
        predictions = evaluator.evaluate(source, source.questions(_NUM_TEST_QUESTIONS, seed=0), max_new_tokens=64)
        scores[name] = share(prediction.correct for prediction in predictions)
    return scores


def served(checkpoint: Path, batch_size: int = 64) -> TransformersEngine:
    """An engine in this process that serves a checkpoint."""
    engine = TransformersEngine(checkpoint, batch_size=batch_size)
    engine.swap(prepare(checkpoint, checkpoint.name, "checkpoint"))
    return engine


def drills(num_samples: int, rng: np.random.Generator) -> list[TrainingSample]:
    """Dense captions: two in three ask to find things by name, which is harder to learn than to list the cells."""
    ids = LABELLED.image_ids()
    samples = []
    for index in range(num_samples):
        identifier = ids[index % len(ids)]
        scene = scene_of(identifier)
        samples.append(TrainingSample(identifier, (cells(scene) if index % 3 == 0 else find(scene, rng),)))
    return samples


def _stage_zero(folder: Path, seed: int, console: Console) -> None:
    torch.manual_seed(seed)
    model, processor = build_model(), build_processor()
    tower = model.model.vision_tower
    right = pretrain_vision(
        tower.parameters(), lambda pixels: tower(pixels).last_hidden_state[:, 1:], processor.image_processor, LABELLED,
        num_steps=_VISION_STEPS, seed=seed,
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    console.print(f"stage vision: {_VISION_STEPS} steps, {right:.1%} of the occupied patches right")


def _stages(seed: int) -> list[tuple[str, list[TrainingSample], Hyperparameters]]:
    rng = np.random.default_rng([seed, 1])
    looking = drills(_LOOKING.num_steps * _LOOKING.batch_size, rng)
    instructions = _taught(_INSTRUCTIONS, seed, rng)
    return [
        ("looking", looking, _LOOKING),
        ("instructions", instructions, _INSTRUCTIONS),
        ("polish", _taught(_POLISH, seed + 1, rng), _POLISH),
    ]


def _taught(hyper: Hyperparameters, seed: int, rng: np.random.Generator) -> list[TrainingSample]:
    """Instructions with some drills among them, each sample used once."""
    num_samples = hyper.num_steps * hyper.batch_size
    num_drills = round(_DRILL_SHARE * num_samples)
    return [*LABELLED.training_samples(num_samples - num_drills, seed), *drills(num_drills, rng)]


def _trainer(stack: ExitStack, num_ranks: int) -> TrainerGroup:
    stack.enter_context(connected(None, num_cpus=num_ranks, temp_dir=None, timeout_s=120.0))
    trainer = TrainerGroup(TrainerRank, num_ranks, RankOptions())
    stack.callback(trainer.shutdown)
    trainer.start(180.0)
    return trainer
