"""Step checkpoints: an interrupted job ends with the weights of an undisturbed one, whatever was lost or damaged."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.training.core import run_local
from actors.training.job import Lora, Progress, TrainerError, TrainingJob
from policies.training.objectives import Dpo
from tests.actors.training.helpers import Shapes, interrupt, job_of, pairs_of, save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def stepping(job: TrainingJob, folder: Path) -> TrainingJob:
    return replace(job, steps_folder=folder, steps_between=2)


def finish(job: TrainingJob) -> tuple[list[int], tuple[Any, ...]]:
    """The steps that were still done, and what came of the job."""
    seen: list[Progress] = []
    result = run_local(job, Shapes(), on_progress=seen.append)
    steps = [progress.step for progress in seen if not progress.num_measured]
    assert [(one.step, one.loss) for one in result.steps] == [(step, pytest.approx(loss)) for step, loss in result.losses if step in steps]
    logged = (result.losses, result.mean_loss, result.num_target_tokens, result.skipped, result.num_pairs, result.pair_points)
    return steps, (result.digest, *logged)


OFFLOADED = {"zero_stage": 2, "offload": ("optimizer",), "max_micro_batch_tokens": 100, "max_tokens": 100, "activation_checkpointing": True}
LORA = {"frozen": ("vision_tower", "language_model"), "lora": Lora(rank=2, dropout=0.3)}


PAIRS = {"dpo": Dpo(pairs_per_step=3)}


@pytest.mark.parametrize(
    "hyper",
    [
        {"zero_stage": 0, **PAIRS},
        {**LORA, "zero_stage": 2, **PAIRS},
        OFFLOADED,
        pytest.param({"zero_stage": 3, **PAIRS}, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_job_ends_with_the_weights_of_an_undisturbed_one(base: Path, tmp_path: Path, hyper: dict[str, Any]) -> None:
    job = job_of(base, tmp_path / "out", num_steps=7, pixel_noise=0.05, pairs=pairs_of(5) if "dpo" in hyper else (), **hyper)
    _, undisturbed = finish(replace(job, output=tmp_path / "undisturbed"))
    job = stepping(job, tmp_path / "steps")
    interrupt(job, after=3)
    torch.manual_seed(99)
    interrupt(job, after=6)  # which goes on from the second step, to be cut off again
    steps, resumed = finish(job)
    assert steps == [5, 6, 7]
    assert resumed == undisturbed


def test_only_the_newest_step_checkpoint_is_kept(base: Path, tmp_path: Path) -> None:
    interrupt(stepping(job_of(base, tmp_path / "out", num_steps=7), tmp_path / "steps"), after=6)
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["step-00000004"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "flipped bit in the weights": lambda folder: flip(folder / "engine" / "mp_rank_00_model_states.pt"),
    "flipped bit in the receipt": lambda folder: flip(folder / "receipt.json"),
    "lost file": lambda folder: (folder / "rank-0.pt").unlink(),
    "never finished": lambda folder: folder.rename(folder.with_name(folder.name + ".tmp")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_checkpoint_is_as_good_as_none(base: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    job = stepping(job_of(base, tmp_path / "out"), tmp_path / "steps")
    interrupt(job, after=3)
    DAMAGES[damage](tmp_path / "steps" / "step-00000002")
    steps, resumed = finish(job)
    assert steps == [1, 2, 3, 4]
    assert resumed == finish(replace(job, output=tmp_path / "undisturbed", steps_folder=None))[1]
    assert ("is not used" in caplog.text) == (damage != "never finished")


def test_another_job_does_not_go_on_from_it(base: Path, tmp_path: Path) -> None:
    job = stepping(job_of(base, tmp_path / "out"), tmp_path / "steps")
    interrupt(job, after=3)
    steps, _ = finish(replace(job, seed=4))
    assert steps == [1, 2, 3, 4]


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_what_a_stranger_put_there_is_not_unpickled(base: Path, tmp_path: Path) -> None:
    job = stepping(job_of(base, tmp_path / "out"), tmp_path / "steps")
    interrupt(job, after=3)
    folder = tmp_path / "steps" / "step-00000002"
    torch.save({"step": 2, "random": {}, "position": Payload(tmp_path / "executed")}, folder / "rank-0.pt")
    said = json.loads((folder / "receipt.json").read_text())
    data = (folder / "rank-0.pt").read_bytes()
    said["files"]["rank-0.pt"] = [len(data), hashlib.sha256(data).hexdigest()]
    (folder / "receipt.json").write_text(json.dumps(said))
    with pytest.raises(pickle.UnpicklingError):
        run_local(job, Shapes())
    assert not (tmp_path / "executed").exists()


def test_a_folder_that_cannot_be_written_is_named(base: Path, tmp_path: Path) -> None:
    (tmp_path / "steps").touch()
    with pytest.raises(TrainerError, match=r"cannot write the step checkpoint .*step-00000002: .*then resume"):
        run_local(stepping(job_of(base, tmp_path / "out"), tmp_path / "steps"), Shapes())
