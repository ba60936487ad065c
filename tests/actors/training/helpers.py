"""A tiny model and shapes to train it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from actors.images import BadImageError
from actors.training.core import run_local
from actors.training.job import Hyperparameters, Progress, TrainingJob
from loop.sources.shapes.questions import ask, truth
from loop.sources.shapes.render import render
from loop.sources.shapes.scene import image_id, scene_of
from policies.records import TrainingSample
from tests.world.untrained import save_untrained


@dataclass(frozen=True)
class Shapes:
    """Implements `ImageSource`; the images of `bad` cannot be read."""

    bad: frozenset[str] = frozenset()

    def image_ids(self) -> list[str]:
        return []

    def open(self, image_id: str) -> Image.Image:
        if image_id in self.bad:
            raise BadImageError(f"{image_id} is corrupt")
        return render(scene_of(image_id))


def samples_of(count: int) -> list[TrainingSample]:
    rng = np.random.default_rng(0)
    samples = []
    for index in range(count):
        scene = scene_of(image_id(1, index, 0.05))
        questions = [ask(scene, question_type, rng) for question_type in ("conversation", "complex", "detail")[: 1 + index % 2]]
        samples.append(TrainingSample(scene.image_id, tuple((question, truth(scene, question).answer) for question in questions)))
    return samples


def pairs_of(count: int) -> list[TrainingSample]:
    """The chosen and the rejected conversation of each pair, in turn: the right answer about the first scenes of `samples_of`, and a wrong
    one."""
    pairs = []
    for sample in samples_of(count):
        question, right = sample.turns[0]
        pairs += [replace(sample, turns=((question, answer),)) for answer in (right, "There is no square at the left.")]
    return pairs


def save_base(folder: Path) -> Path:
    torch.manual_seed(0)
    save_untrained(folder)
    return folder


def job_of(base: Path, output: Path, *, count: int = 24, pairs: Sequence[TrainingSample] = (), **hyper: object) -> TrainingJob:
    settings: dict = {"batch_size": 8, "num_steps": 4, "learning_rate": 1e-3, **hyper}
    return TrainingJob(base, output, samples_of(count), seed=3, hyper=Hyperparameters(**settings), pairs=pairs)


class InterruptedJobError(Exception):
    """What stands for the death of the process, or the loss of its node."""


def interrupt(job: TrainingJob, after: int) -> None:
    """Run a job up to the end of a step."""

    def stop(progress: Progress) -> None:
        if progress.step == after:
            raise InterruptedJobError

    with pytest.raises(InterruptedJobError):
        run_local(job, Shapes(), on_progress=stop)
