"""`vigc seed`: train the seed model of an embedded world from nothing, in stages.

0. vision: the tower learns what is in every patch (`loop.models.seed.vision`), then stays frozen
1. looking: the language model is drilled to say what is where, and where things are (`loop.sources.worlds.drills`)
2. instructions: VIG and VIC samples of the three types, as the loop itself trains on; then a last stage at a lower rate

All but stage 0 run on the trainer of `actors.training`, the same that every round uses.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from loop.models.seed.drawings import AugmentedDrawings, num_classes
from loop.models.seed.model import DRAWINGS_ANATOMY, SHAPES_ANATOMY, Anatomy, build_model, build_processor
from loop.models.seed.vision import pretrain_on, pretrain_vision
from loop.monitors.progress import RunProgress, loss_remark
from loop.sources.drawings.houses import SHIPPED, read_things
from loop.sources.drawings.source import DrawingsImages
from loop.sources.shapes.source import ShapesImages
from loop.sources.worlds.source import WorldImages
from policies.metrics import share
from policies.records import TrainingSample

_NUM_TEST_QUESTIONS = 500
_DRILL_SHARE = 0.1
"""Share of drills among the instructions, so that the skill is not forgotten."""

_TIMEOUT_S = 7200.0
_LOOKING = Hyperparameters(
    batch_size=64, num_steps=900, learning_rate=1e-3, frozen=("vision_tower",), warmup_share=0.1, min_learning_rate_ratio=0.1
)
_INSTRUCTIONS = replace(_LOOKING, num_steps=2600, warmup_share=0.02, min_learning_rate_ratio=0.01)
_POLISH = replace(_INSTRUCTIONS, num_steps=1200, learning_rate=5e-4)

Pretraining = Callable[[Any, Any, int, int], float]
"""Trains the vision tower of a model with its image processor for a number of steps from a seed; returns the share of patches right."""


@dataclass(frozen=True)
class Lesson:
    """How a stage after the first is trained."""

    hyper: Hyperparameters
    num_turns: int = 1
    """Questions about an image that a sample asks one after the other: more to learn from each image that is encoded."""

    @property
    def num_asked(self) -> int:
        """Questions of the whole stage."""
        return self.hyper.num_steps * self.hyper.batch_size * self.num_turns


@dataclass(frozen=True)
class Curriculum:
    """How the seed model of a world is trained and tested."""

    anatomy: Anatomy
    labelled: WorldImages[Any]
    """The labelled images of the world; a recipe's seed data are the first of them."""
    test_sets: Mapping[str, WorldImages[Any]]
    pretrain: Pretraining
    vision_steps: int
    looking: Lesson
    instructions: Lesson
    polish: Lesson


def _pretrain_on_shapes(tower: Any, image_processor: Any, num_steps: int, seed: int) -> float:
    return pretrain_vision(
        tower.parameters(), lambda pixels: tower(pixels).last_hidden_state[:, 1:], image_processor, SHAPES.labelled,
        num_steps=num_steps, seed=seed,
    )  # fmt: skip


def _pretrain_on_drawings(tower: Any, image_processor: Any, num_steps: int, seed: int) -> float:
    batches = AugmentedDrawings("noto", image_processor, num_images=6000, seed=seed)
    return pretrain_on(
        batches, num_classes(read_things(SHIPPED)), tower.parameters(), lambda pixels: tower(pixels).last_hidden_state[:, 1:],
        num_steps=num_steps, seed=seed,
    )  # fmt: skip


_SHIFTS = {"0-0.15": (0.0, 0.15), "0.2-0.4": (0.2, 0.4), "0.4-0.7": (0.4, 0.7), "0.7-1.0": (0.7, 1.0)}
_HOUSES = ("noto", "twemoji", "fluent", "openmoji")
SHAPES = Curriculum(
    SHAPES_ANATOMY,
    ShapesImages(seed=1, min_shift=0.0, max_shift=0.15, num_images=12_000),
    {name: ShapesImages(990 + number, *shift, _NUM_TEST_QUESTIONS) for number, (name, shift) in enumerate(_SHIFTS.items())},
    _pretrain_on_shapes,
    vision_steps=1000,
    looking=Lesson(_LOOKING),
    instructions=Lesson(_INSTRUCTIONS),
    polish=Lesson(_POLISH),
)
_ROBUST = {"pixel_noise": 0.05, "brightness": 0.2, "color_jitter": 0.1}
DRAWINGS = Curriculum(
    DRAWINGS_ANATOMY,
    DrawingsImages(seed=1, styles=("noto",), num_images=5000),
    {house: DrawingsImages(990 + number, (house,), _NUM_TEST_QUESTIONS) for number, house in enumerate(_HOUSES)},
    _pretrain_on_drawings,
    vision_steps=1500,
    looking=Lesson(replace(_LOOKING, batch_size=32, num_steps=500, **_ROBUST), num_turns=3),
    instructions=Lesson(replace(_INSTRUCTIONS, batch_size=32, num_steps=1000, **_ROBUST), num_turns=5),
    polish=Lesson(replace(_POLISH, batch_size=32, num_steps=2400, learning_rate=8e-4, **_ROBUST)),
)
CURRICULA = {"shapes": SHAPES, "drawings": DRAWINGS}


def make_seed_model(curriculum: Curriculum, out: Path, seed: int, num_ranks: int, console: Console) -> dict[str, float]:
    """Train the seed model of a world into `out` and print its exact accuracy on the test sets; the same seed gives the same weights.

    Raises:
        UserError: `out` exists.
    """
    if out.exists():
        raise UserError(f"{out} exists; choose another --out or remove it first")
    started = time.perf_counter()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vigc-seed-") as scratch, ExitStack() as stack, RunProgress(console) as progress:
        folder = Path(scratch)
        _stage_zero(curriculum, folder / "vision", seed, console)
        trainer = _trainer(stack, num_ranks)
        base = folder / "vision"
        for name, samples, hyper in _stages(curriculum, seed):
            with progress.stage(name, total=hyper.num_steps) as stage:
                job = TrainingJob(base, folder / name, samples, seed, hyper)
                bounds = Bounds(_TIMEOUT_S)
                result = trainer.train(
                    job, curriculum.labelled, bounds, lambda now, stage=stage: stage.reach(now.step, loss_remark(now.loss))
                )
            base = folder / name
            (base / RESULT_FILE).unlink()
            console.print(f"stage {name}: {result.num_steps} steps, final loss {result.final_loss:.4f}, {result.seconds:.0f} s")
        shutil.copytree(base, out)
    scores = score(out, curriculum)
    console.print(f"exact accuracy: {json.dumps(scores)}; {time.perf_counter() - started:.0f} s in all, checkpoint in {out}")
    return scores


def score(checkpoint: Path, curriculum: Curriculum = SHAPES) -> dict[str, float]:
    """Exact accuracy of a checkpoint on 500 questions about each of the test sets."""
    evaluator = Evaluator(served(checkpoint))
    scores = {}
    for name, source in curriculum.test_sets.items():
        predictions = evaluator.evaluate(source, source.questions(_NUM_TEST_QUESTIONS, seed=0), max_new_tokens=64)
        scores[name] = share(prediction.correct for prediction in predictions)
    return scores


def served(checkpoint: Path, batch_size: int = 64) -> TransformersEngine:
    """An engine in this process that serves a checkpoint."""
    engine = TransformersEngine(checkpoint, batch_size=batch_size)
    engine.swap(prepare(checkpoint, checkpoint.name, "checkpoint"))
    return engine


def drills(source: WorldImages[Any], num_samples: int, rng: np.random.Generator) -> list[TrainingSample]:
    """Dense captions: two in three ask to find things by name, which is harder to learn than to list the cells."""
    ids, world = source.image_ids(), source.world
    samples = []
    for index in range(num_samples):
        identifier = ids[index % len(ids)]
        scene = source.scene(identifier)
        samples.append(TrainingSample(identifier, (world.cells(scene) if index % 3 == 0 else world.find(scene, rng),)))
    return samples


def _stage_zero(curriculum: Curriculum, folder: Path, seed: int, console: Console) -> None:
    torch.manual_seed(seed)
    started = time.perf_counter()
    model, processor = build_model(anatomy=curriculum.anatomy), build_processor(anatomy=curriculum.anatomy)
    right = curriculum.pretrain(model.model.vision_tower, processor.image_processor, curriculum.vision_steps, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    seconds = time.perf_counter() - started
    console.print(f"stage vision: {curriculum.vision_steps} steps, {right:.1%} of the occupied patches right, {seconds:.0f} s")


def _stages(curriculum: Curriculum, seed: int) -> list[tuple[str, list[TrainingSample], Hyperparameters]]:
    rng = np.random.default_rng([seed, 1])
    source, looking = curriculum.labelled, curriculum.looking
    lessons = {"instructions": (curriculum.instructions, seed), "polish": (curriculum.polish, seed + 1)}
    return [
        ("looking", several_turns(drills(source, looking.num_asked, rng), looking.num_turns), looking.hyper),
        *((name, _taught(source, lesson, drawn, rng), lesson.hyper) for name, (lesson, drawn) in lessons.items()),
    ]


def _taught(source: WorldImages[Any], lesson: Lesson, seed: int, rng: np.random.Generator) -> list[TrainingSample]:
    """Instructions with some drills among them, each used once."""
    num_drills = round(_DRILL_SHARE * lesson.num_asked)
    asked = [*source.training_samples(lesson.num_asked - num_drills, seed), *drills(source, num_drills, rng)]
    return several_turns(asked, lesson.num_turns)


def several_turns(samples: Sequence[TrainingSample], num_turns: int) -> list[TrainingSample]:
    """The turns of samples about the same image together, up to `num_turns` in a sample, in the order of the samples."""
    if num_turns == 1:
        return list(samples)
    turns: dict[str, list[tuple[str, str]]] = {}
    for sample in samples:
        turns.setdefault(sample.image_id, []).extend(sample.turns)
    return [
        TrainingSample(image_id, tuple(about[start : start + num_turns]))
        for image_id, about in turns.items()
        for start in range(0, len(about), num_turns)
    ]


def _trainer(stack: ExitStack, num_ranks: int) -> TrainerGroup:
    stack.enter_context(connected(None, num_cpus=num_ranks, temp_dir=None, timeout_s=120.0))
    trainer = TrainerGroup(TrainerRank, num_ranks, RankOptions())
    stack.callback(trainer.shutdown)
    trainer.start(180.0)
    return trainer
