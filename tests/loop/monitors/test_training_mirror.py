"""`vigc train` in MLflow: its stages as child runs, each once, however often the mirror is cut short."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from actors.training.checkpoint import RESULT_FILE
from loop.config.run_config import validated
from loop.config.train_config import TrainConfig
from loop.errors import UserError
from loop.monitors.mirror.answering import checkpoint_of
from loop.monitors.mirror.live import LivePoints
from loop.monitors.mirror.training import SUMMARY, FinishedStage, TrainingMirror, finished_stages
from loop.monitors.tracking import Mirror
from loop.monitors.tracking_process import TrainingInBackground
from tests.loop.config.test_train_config import document
from tests.loop.monitors.test_tracking import Seen

ENDED_AT = (1_700_000_100.0, 1_700_000_200.0)


@pytest.fixture
def stages(tmp_path: Path) -> list[FinishedStage]:
    """Two finished stages."""
    config, results = validated(TrainConfig, document(name="small")), []
    for number, stage in enumerate(config.stages, 1):
        checkpoint = f"checkpoints/{number}-{stage.name}"
        (tmp_path / checkpoint).mkdir(parents=True)
        (tmp_path / checkpoint / RESULT_FILE).touch()
        os.utime(tmp_path / checkpoint / RESULT_FILE, (0, ENDED_AT[number - 1]))
        results.append({
            "name": stage.name, "checkpoint": checkpoint, "form": stage.form, "num_samples": 40, "num_skipped_samples": number - 1,
            "mean_loss": 2.0, "final_loss": 1.0 / number, "num_target_tokens": 900, "seconds": 50.0, "digest": f"{number}" * 64,
            "held_out_losses": [[4, 1.5], [8, 1.25]],
        })  # fmt: skip
    (tmp_path / SUMMARY).write_text(json.dumps({"stages": results}))
    return finished_stages(config, tmp_path)


@pytest.fixture
def training(mirror: Mirror) -> TrainingMirror:
    return TrainingMirror(mirror.tracking_uri, "shapes", "a training", "training-7", {"seed": "17"}, stage_names=["align", "instruct"])


def inputs_of(run: Run) -> list[tuple[str, str, str]]:
    """Name, context and profile of each data set of a run."""
    found = run.inputs.dataset_inputs if run.inputs else []
    return [(one.dataset.name, one.tags[0].value, one.dataset.profile or "{}") for one in found]


def test_a_training_is_mirrored_once_with_its_curves_data_and_models(
    training: TrainingMirror, stages: list[FinishedStage], tmp_path: Path
) -> None:
    points = LivePoints(tmp_path)
    ids: list[tuple[str, str]] = []
    for number, ended_at in enumerate(ENDED_AT, 1):
        points.open(number, ended_at - 50)
        points.add(number, [("train/loss", 0.5 * step, round(1000 * ended_at) - 9000 + step, step) for step in (1, 2, 3)])

    training.log_stages(stages[:1])
    background = TrainingInBackground(training, lambda: stages, tmp_path / "mirror.log", points, lambda *one: ids.append(one))
    background.log_stages()
    assert background.finish("FINISHED", timeout_s=60.0), (tmp_path / "mirror.log").read_text()
    assert list(points.files()) == []
    seen = Seen(training)
    (parent,) = seen.parents
    assert ids[-1] == (seen.experiment_id, parent.info.run_id)
    assert (parent.info.status, parent.info.run_name, parent.data.params) == ("FINISHED", "a training", {"seed": "17"})
    assert [step for step, _, _ in seen.history(parent, "train/final_loss")] == [1, 2]
    assert "all stages are trained" in parent.data.tags["mlflow.note.content"]
    assert [(run.info.run_name, run.info.status, run.info.end_time) for run in seen.children] == [
        ("1-align", "FINISHED", 1_700_000_100_000),
        ("2-instruct", "FINISHED", 1_700_000_200_000),
    ]
    for run in seen.children:
        assert [(step, value) for step, value, _ in seen.history(run, "train/held_out_loss")] == [(4, 1.5), (8, 1.25)]
        assert [(name, context, json.loads(profile)) for name, context, profile in inputs_of(run)] == [
            (str(run.info.run_name)[2:], "training", {"num_rows": 40})
        ]
    curve = [(step, value) for step, value, _ in seen.history(seen.children[1], "train/loss")]
    assert curve == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert seen.children[0].data.params["form"] == "captions"
    assert "1 of them were skipped" in seen.children[1].data.tags["mlflow.note.content"]
    models = {one.name: one.tags["checkpoint"] for one in seen.client.search_logged_models([seen.experiment_id])}
    assert models == {f"weights-{'1' * 12}": stages[0].checkpoint, f"weights-{'2' * 12}": stages[1].checkpoint}
    assert checkpoint_of(stages[1].checkpoint) == (tmp_path / "checkpoints" / "2-instruct").resolve()
    with pytest.raises(UserError, match="does not exist; restore it, or train the model again"):
        checkpoint_of(f"{tmp_path.as_uri()}/checkpoints/absent")


@pytest.mark.parametrize("write", ["log_batch", "log_inputs", "create_logged_model", "set_terminated"])
def test_a_mirror_that_is_cut_short_is_completed_without_duplicates(
    training: TrainingMirror, stages: list[FinishedStage], monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    real = getattr(MlflowClient, write)

    def lands_and_then_fails(*args: object, **kwargs: object) -> object:
        real(*args, **kwargs)
        raise ConnectionError("cut short")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, write, lands_and_then_fails)
        with pytest.raises(ConnectionError):
            training.log_stages(stages)
    training.log_stages(stages)
    training.close_training("FAILED", stages)
    seen = Seen(replace(training))
    assert [run.info.run_name for run in seen.children] == ["1-align", "2-instruct"]
    assert len(seen.client.search_logged_models([seen.experiment_id])) == 2
    assert [len(inputs_of(run)) for run in seen.children] == [1, 1]
    assert [step for step, _, _ in seen.history(seen.parents[0], "time/train")] == [1, 2]
    assert seen.parents[0].info.status == "FAILED"
