"""`vigc train` with real ranks: what each stage changes, and what a killed training ends with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient

from actors.engines.weights import digest_of, read_checkpoint
from actors.training.checkpoint import group_of
from loop.config.run_config import EMBEDDED_MODEL
from loop.models.files import model_files
from loop.sources.shapes.source import ShapesImages
from tests.loop.config.test_train_config import document
from tests.loop.run.small_run import lose_machine, start, vigc, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = {"learning_rate": 1e-3, "checkpoint_steps": 2, "batch_size": 8, "num_steps": 8, "zero_stage": 1}


def config_file(folder: Path) -> Path:
    content: dict[str, Any] = document(name="small", cluster={"trainer_ranks": 2})
    for stage in content["stages"]:
        stage["training"] = {**stage["training"], **STEPS}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def train(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return vigc("train", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed training."""
    folder = tmp_path_factory.mktemp("finished")
    done = train(str(config_file(folder)), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "the trained model: runs/small/checkpoints/2-instruct" in done.stdout
    return folder / "runs" / "small"


def changed(before: Path, after: Path) -> set[str]:
    """Groups of which a weight differs."""
    first, second = read_checkpoint(before), read_checkpoint(after)
    assert set(first) == set(second)
    return {group_of(name) for name in first if not torch.equal(first[name], second[name])}


def test_each_stage_changes_what_it_trains_and_nothing_else(trained: Path) -> None:
    align, instruct = trained / "checkpoints" / "1-align", trained / "checkpoints" / "2-instruct"
    assert changed(EMBEDDED_MODEL, align) == {"projector"}
    assert changed(align, instruct) == {"projector", "language_model"}


def test_the_summary_says_what_is_there(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["finished"]
    assert summary["model_digest"] == digest_of(read_checkpoint(EMBEDDED_MODEL))
    assert [(stage["name"], stage["form"], stage["num_steps"]) for stage in summary["stages"]] == [
        ("align", "captions", 8),
        ("instruct", "conversations", 8),
    ]
    for stage in summary["stages"]:
        assert stage["digest"] == digest_of(read_checkpoint(trained / stage["checkpoint"]))
        assert stage["num_target_tokens"] > 0
    assert summary["digest"] == summary["stages"][-1]["digest"]
    assert not list(trained.glob("checkpoints/*.steps"))
    assert "training_result.json" not in {path.name for path in model_files(trained / "checkpoints" / "2-instruct")}


def curves(out: Path) -> dict[str, list[tuple[int, float]]]:
    """The loss of each training step in MLflow, by stage."""
    uri = f"sqlite:///{out.parent / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    ids = json.loads((out / "mlflow.json").read_text())
    parent = client.get_run(ids["run_id"])
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "small")
    stages = client.search_runs([ids["experiment_id"]], f"tags.`mlflow.parentRunId` = '{ids['run_id']}'")
    histories = {str(run.info.run_name): client.get_metric_history(run.info.run_id, "train/loss") for run in stages}
    return {name: sorted((point.step, point.value) for point in history) for name, history in histories.items()}


def test_mlflow_has_the_curves_of_each_stage_and_its_model(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = curves(trained)
    assert {name: [step for step, _ in curve] for name, curve in found.items()} == {
        "1-align": list(range(1, 9)),
        "2-instruct": list(range(1, 9)),
    }
    uri = f"sqlite:///{trained.parent / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    models = {one.tags["stage"]: one for one in MlflowClient(uri, uri).search_logged_models(["1"])}
    assert {name: one.tags["checkpoint"].rpartition("/")[2] for name, one in models.items()} == {
        "align": "1-align", "instruct": "2-instruct",
    }  # fmt: skip
    image = ShapesImages(1, 0.0, 0.1, 24)
    asked = [{"image": str(trained.parent / "image.png"), "question": "What is it?"}]
    image.open(image.image_ids()[0]).save(asked[0]["image"])
    model: Any = mlflow.pyfunc.load_model(models["instruct"].model_uri)
    assert len(model.predict(asked)) == 1


def test_the_same_command_keeps_what_is_finished(trained: Path) -> None:
    folder = trained.parents[1]
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*.safetensors")}
    done = train(str(folder / "config.yaml"), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is finished and verified") == 2
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*.safetensors")}
    other = train(str(folder / "config.yaml"), "stages.1.training.learning_rate=1e-4", cwd=folder)
    assert other.returncode == 2
    assert "holds a training with another stages.1.training.learning_rate; give the same config" in other.stderr


def test_a_training_killed_in_its_second_stage_ends_with_the_same_weights(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    driver = start("train", str(config_file(tmp_path)), "--out", str(out), cwd=tmp_path)
    wait_until(lambda: any(out.glob("checkpoints/2-instruct.steps/step-*[0-9]")), 500)
    lose_machine(driver)
    done = train("--resume", str(out), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "stage 1-align is finished and verified" in done.stdout
    assert "training resumed after step" in done.stdout
    found, wanted = (json.loads((folder / "summary.json").read_text()) for folder in (out, trained))
    assert [stage["digest"] for stage in found["stages"]] == [stage["digest"] for stage in wanted["stages"]]
    assert found["stages"][1]["losses"] == wanted["stages"][1]["losses"]
    seen, whole = curves(out), curves(trained)
    assert seen["1-align"] == whole["1-align"]
    points = seen["2-instruct"]
    assert len(points) == len(dict(points)), "a step that was trained again has one point"
    assert {*points} <= {*whole["2-instruct"]}
    assert points[-1] == whole["2-instruct"][-1], "the driver may be lost before it hears of the last steps, but not after"


def test_a_damaged_stage_is_named(trained: Path) -> None:
    weights = trained / "checkpoints" / "1-align" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = train("--resume", str(trained), cwd=trained)
    assert done.returncode == 2
    assert "1-align are not those that training wrote; remove the folder to train again" in " ".join(done.stderr.split())
