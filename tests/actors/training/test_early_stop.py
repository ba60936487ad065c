"""Early stop: the weights of the best evaluation are the result, and a resumed training ends with the same bytes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from actors.engines.weights import digest_of, read_checkpoint
from actors.training.core import run_local
from actors.training.early_stop import EarlyStopping, split_by_image
from actors.training.job import RESULT_FILE, EarlyStop, Progress, TrainerError, TrainingJob
from policies.records import TrainingSample
from tests.actors.training.helpers import Shapes, job_of, save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def stopping_job(base: Path, output: Path, **hyper: Any) -> TrainingJob:
    """A training whose rate is so high that the held-out loss soon rises."""
    settings: dict[str, Any] = {"num_steps": 40, "learning_rate": 3e-2, "warmup_share": 0.3, "early_stop": EarlyStop(2, 2, 4), **hyper}
    return job_of(base, output, **settings)


def test_no_image_is_on_both_sides() -> None:
    turns = (("q", "a"),)
    chain = [TrainingSample("a", turns, further_images=("b",)), TrainingSample("b", (("p", "a"),)), TrainingSample("", turns)]
    samples = [*chain, *(TrainingSample(f"{number}", turns) for number in range(20)), *chain]
    for seed in range(20):
        kept, held = split_by_image(samples, 3, seed)
        assert not {one for sample in kept for one in sample.images} & {one for sample in held for one in sample.images}
        assert 3 <= len(held) <= 4
        assert len({(sample.images, sample.turns) for sample in [*kept, *held]}) == 23
        assert (kept, held) == split_by_image(samples, 3, seed)
    with pytest.raises(ValueError, match=r"^early_stop would hold out 2 of 3 samples, those about 2 conversations .*; lower early_stop"):
        split_by_image([TrainingSample("a", turns), TrainingSample("a", (("p", "a"),)), TrainingSample("b", turns)], 2, 0)


def test_the_checkpoint_is_that_of_the_best_evaluation(base: Path, tmp_path: Path) -> None:
    job = stopping_job(base, tmp_path / "out")
    result = run_local(job, Shapes())
    losses = dict(result.held_out_losses)
    assert losses[result.best_step] == min(losses.values())
    assert result.num_steps < 40
    assert list(losses) == list(range(2, result.num_steps + 1, 2))
    assert result.num_steps == result.best_step + 4, "patience is two evaluations"
    assert digest_of(read_checkpoint(job.output)) == result.digest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert run_local(job, Shapes()) == result, "the stored result says the same"
    until = dataclasses.replace(job, output=tmp_path / "until", hyper=dataclasses.replace(job.hyper, early_stop=EarlyStop(2, 99, 4)))
    short: list[str] = []

    def note(progress: Progress) -> None:
        short.append(str(progress.loss))

    assert run_local(until, Shapes(), on_progress=note).num_steps == 40 == len(short)


def test_a_killed_training_stops_at_the_same_step_with_the_same_bytes(base: Path, tmp_path: Path) -> None:
    killed_after = 5
    expected = run_local(stopping_job(base, tmp_path / "whole"), Shapes())
    assert expected.best_step + 4 == expected.num_steps
    job = dataclasses.replace(stopping_job(base, tmp_path / "out"), steps_folder=tmp_path / "steps", steps_between=1)

    def die(progress: Progress) -> None:
        if progress.step == killed_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local(job, Shapes(), on_progress=die)
    result = run_local(job, Shapes())
    assert result.resumed_from_step == killed_after - 1
    assert (result.digest, result.held_out_losses, result.losses) == (expected.digest, expected.held_out_losses, expected.losses)


def test_damaged_best_weights_are_named(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget = EarlyStopping.best_state

    def damage(self: EarlyStopping) -> Any:
        for path in (tmp_path / "out.best").glob("best-*.pt"):
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        return forget(self)

    monkeypatch.setattr(EarlyStopping, "best_state", damage)
    with pytest.raises(TrainerError, match=r"best-\d+\.pt is not what training wrote"):
        run_local(stopping_job(base, tmp_path / "out"), Shapes())


def test_results_of_earlier_versions_are_read(base: Path, tmp_path: Path) -> None:
    job = job_of(base, tmp_path / "out", num_steps=1)
    result = run_local(job, Shapes())
    file = job.output / RESULT_FILE
    said = json.loads(file.read_text())
    del said["result"]["held_out_losses"]
    file.write_text(json.dumps(said))
    assert run_local(job, Shapes()) == result
    assert result.best_step == 1
