"""A finished run in MLflow: its curves, the page that `vigc ui` opens, and its champion, which answers questions."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from mlflow.tracking import MlflowClient

from loop.config.run_config import stored_config
from loop.errors import UserError
from loop.setup.data import build_data
from loop.store.commits import champion_commit
from loop.store.run_store import Store
from policies.scoring.predictions import from_table
from tests.loop.run.small_run import vigc
from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def client(finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    uri = f"sqlite:///{finished[0].parent / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return MlflowClient(uri, uri)


def children(client: MlflowClient) -> list[Any]:
    experiment = client.get_experiment_by_name("vigc")
    assert experiment is not None
    found = [run for run in client.search_runs([experiment.experiment_id]) if "vigc.round" in run.data.tags]
    return sorted(found, key=lambda run: int(run.data.tags["vigc.round"]))


def test_each_round_shows_the_curves_of_its_training_and_the_progress_of_its_stages(
    finished: tuple[Path, str], client: MlflowClient
) -> None:
    commits = Store.open(finished[0]).commits()
    for run, commit in zip(children(client)[1:], commits[1:], strict=True):
        losses = client.get_metric_history(run.info.run_id, "train/loss")
        assert sorted(point.step for point in losses) == list(range(1, 7))
        assert sum(point.value for point in losses) / 6 == pytest.approx(commit.metrics["train_loss"])
        assert {"train/learning_rate", "train/gradient_norm", "train/tokens_per_s"} <= run.data.metrics.keys()
        assert run.data.metrics["progress/evaluate"] == 1.0
        assert 0 < run.data.metrics["kept/so_far"] <= 1
        assert 0 < run.data.metrics["idle/engines"] < 1, "engines wait while it trains, and work otherwise"
        train_s, round_s = (run.data.metrics[f"time/{name}"] for name in ("train", "round"))
        assert 1 - train_s / round_s <= run.data.metrics["idle/trainer"] < 1
        client.download_artifacts(run.info.run_id, f"gallery/round-{commit.round:04d}.html")
        assert run.data.metrics["accuracy_low/near"] < run.data.metrics["accuracy/near"] < run.data.metrics["accuracy_high/near"]
        assert {one.dataset.name for one in run.inputs.dataset_inputs} >= {"seed data", "near", "dev", f"round {commit.round} generated"}
    assert not list(finished[0].glob("mlflow-live/*")), "MLflow has all of it"


def test_the_champion_that_mlflow_loads_gives_the_answers_of_the_run(
    finished: tuple[Path, str], client: MlflowClient, tmp_path: Path
) -> None:
    store = Store.open(finished[0])
    model: Any = mlflow.pyfunc.load_model("models:/vigc-small@champion")
    held_out = build_data(stored_config(store.read_run().config)).held_out[0]
    predictions, _ = from_table(store.read_part(champion_commit(store.commits()).file("predictions.parquet")))
    asked, expected = [], []
    for number, (question, prediction) in enumerate(zip(held_out.questions[:4], predictions["held_out/near"], strict=False)):
        path = tmp_path / f"{number}.png"
        held_out.source.open(question.image_id).save(path)
        asked.append({"image": str(path), "question": held_out.metric.prompt(question)})
        expected.append(prediction.answer)
    assert model.predict(asked) == expected
    with pytest.raises(UserError, match=r"the image 'absent\.png' cannot be read: .*; give the path of an image"):
        model.predict([{"image": "absent.png", "question": "What is it?"}])


def test_vigc_ui_serves_the_page_of_the_run_and_leaves_no_process(finished: tuple[Path, str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "loop", "ui", str(finished[0])], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as command:
        try:
            assert command.stdout is not None
            line = command.stdout.readline()
            processes = psutil.Process(command.pid).children(recursive=True)
            address, _, place = line.split()[-1].partition("/#/")
            assert address.startswith("http://127.0.0.1:")
            _, experiment_id, _, rest = place.split("/")
            run_id, _, kind = rest.partition("?")
            assert kind == "workflowType=machine_learning"
            with urllib.request.urlopen(f"{address}/api/2.0/mlflow/runs/get?run_id={run_id}", timeout=30) as answer:
                shown = json.load(answer)["run"]
            assert (shown["info"]["experiment_id"], shown["info"]["run_name"], shown["info"]["status"]) == (
                experiment_id,
                "small",
                "FINISHED",
            )
            command.send_signal(signal.SIGINT)
            assert command.wait(60) == 0
        finally:
            command.kill()
    assert processes
    assert psutil.wait_procs(processes, timeout=0)[1] == []


def test_a_run_says_how_it_is_watched(finished: tuple[Path, str]) -> None:
    run_dir, said = finished
    assert f"watch it from another terminal with `vigc ui {run_dir}` (MLflow) or `vigc watch {run_dir}`" in said
    status, report, ui = said.splitlines()[-3:]
    assert (" status " in status, " report " in report, " ui " in ui) == (True, True, True)
    shown = vigc("watch", str(run_dir), cwd=run_dir).stdout
    assert "finished, champion" in shown
    assert "round 2 was accepted" in shown
