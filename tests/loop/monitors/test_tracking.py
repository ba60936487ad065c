"""The MLflow mirror, against a real MLflow on a SQLite file and against a server that is not there."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from loop.monitors.mirror.facts import DataSet, RoundFacts
from loop.monitors.mirror.live import LivePoints
from loop.monitors.tracking import Mirror, cut, default_tracking_uri, flatten_parameters, mlflow_key
from loop.monitors.tracking_process import BackgroundMirror
from loop.store.commits import Decision, FilterCount, Finding, RoundCommit, RoundState
from policies.records import Reason, Record
from tests.loop.monitors.conftest import EXPERIMENT, RUN_ID

NUMBERS = {"difference": 0.04, "difference/acceptance/near": 0.05, "level": 0.017}


def commit(number: int, state: RoundState, champion: str, accuracy: float) -> RoundCommit:
    return RoundCommit(
        run_id=RUN_ID,
        round=number,
        state=state,
        epoch=1,
        started_at=1_700_000_000.0 + 100 * number,
        committed_at=1_700_000_060.5 + 100 * number,
        champion=champion,
        champion_path=f"checkpoints/{champion}",
        mean_teacher="t-0001" if number else None,
        counts={"generated": 96, "accepted": 31},
        filters=[FilterCount(filter="user.policies:short", seen=96, kept=31)],
        metrics={"accuracy/near": accuracy, "candidate_accuracy/near": accuracy - 0.02},
        decision=None
        if state is RoundState.BASELINE
        else Decision(accepted=state is RoundState.ACCEPTED, reason="margin 0.005", numbers=NUMBERS),
        stage_seconds={"round": 60.5},
        findings=FINDINGS if number == 2 else [],
    )


FINDINGS = [
    Finding(kind="passed_over", count=3, message="too long", example="sample 7"),
    Finding(kind="passed_over", count=2, message="no answer"),
    Finding(kind="left_out", count=1, message="no image"),
]
COMMITS = [
    commit(0, RoundState.BASELINE, "w-0000", 0.60),
    commit(1, RoundState.ACCEPTED, "w-0001", 0.64),
    commit(2, RoundState.REJECTED, "w-0001", 0.64),
]


def samples(commit: RoundCommit) -> tuple[list[Record], list[Record]]:
    record = Record("r1-s0-0", commit.round, 0, "image-1", "conversation", "Ask.", 5, question="What is red?", original_answer="A cube.")
    kept = Record(**{**_fields(record), "answer": "A ball.", "answer_logprob": -0.6, "answer_num_tokens": 3, "accepted": True})
    return [kept], [record.rejected(Reason.EMPTY, Reason.TOO_SHORT), record.rejected(Reason.UNPARSABLE)]


def _fields(record: Record) -> dict[str, object]:
    return {name: getattr(record, name) for name in Record.__dataclass_fields__}


def facts(commit: RoundCommit) -> RoundFacts:
    selected = DataSet(f"round {commit.round} selected", "selected", "0123abcd", "/runs/shapes-7/selected.parquet", 31)
    return RoundFacts({"accuracy/near": (0.5, 0.75)}, [selected] if commit.round else [])


def champion_folder(commit: RoundCommit) -> Path:
    return Path("/runs/shapes-7") / commit.champion_path


class Seen:
    """What MLflow holds of one loop."""

    def __init__(self, mirror: Mirror) -> None:
        self.client = MlflowClient(mirror.tracking_uri, mirror.tracking_uri)
        experiment = self.client.get_experiment_by_name(mirror.experiment)
        assert experiment is not None
        self.experiment_id: str = experiment.experiment_id
        runs = list(self.client.search_runs([self.experiment_id]))
        self.parents = [run for run in runs if "vigc.round" not in run.data.tags]
        self.children: list[Run] = sorted(
            (run for run in runs if "vigc.round" in run.data.tags), key=lambda run: run.data.tags["vigc.round"]
        )
        self.versions = sorted(self.client.search_model_versions(f"name='{mirror.model_name}'"), key=lambda version: int(version.version))

    @property
    def child_ids(self) -> list[str]:
        return [run.info.run_id for run in self.children]

    def history(self, run: Run, key: str) -> list[tuple[int, float, int]]:
        return sorted((metric.step, metric.value, metric.timestamp) for metric in self.client.get_metric_history(run.info.run_id, key))


def assert_mirrored_once(mirror: Mirror) -> Seen:
    seen = Seen(mirror)
    assert len(seen.parents) == 1
    assert [run.data.tags["vigc.round"] for run in seen.children] == ["0", "1", "2"]
    assert all(run.data.tags["vigc.mirrored"] == "complete" and run.info.status == "FINISHED" for run in seen.children)
    (parent,) = seen.parents
    assert {run.data.tags["mlflow.parentRunId"] for run in seen.children} == {parent.info.run_id}
    times_ms = [1_700_000_060_500, 1_700_000_160_500, 1_700_000_260_500]
    assert seen.history(parent, "accuracy/near") == [(0, 0.60, times_ms[0]), (1, 0.64, times_ms[1]), (2, 0.64, times_ms[2])]
    assert [step for step, _, _ in seen.history(parent, "decision/level")] == [1, 2]
    assert seen.history(parent, "decision/difference.acceptance.near") == [(n, 0.05, times_ms[n]) for n in (1, 2)]
    assert [seen.history(run, "counts/accepted") for run in seen.children] == [[(n, 31.0, times_ms[n])] for n in range(3)]
    assert [(version.tags["weight_version"], version.tags["round"]) for version in seen.versions] == [("w-0000", "0"), ("w-0001", "1")]
    assert str(seen.client.get_model_version_by_alias(mirror.model_name, "champion").version) == str(seen.versions[-1].version)
    return seen


def test_a_loop_is_mirrored_once_however_often_it_is_published(mirror: Mirror, tmp_path: Path) -> None:
    assert mirror.log_commits(COMMITS[:2], samples, champion_folder, facts) == [0, 1]
    assert mirror.log_commits(COMMITS, samples, champion_folder, facts) == [2]
    assert mirror.log_commits(COMMITS, samples, champion_folder, facts) == []
    mirror.close("FINISHED", COMMITS)
    seen = assert_mirrored_once(mirror)
    (parent,) = seen.parents
    assert parent.info.status == "FINISHED"
    assert parent.data.params["run.sets.0.name"] == "near"
    assert parent.data.params["note"].endswith("n ... (cut, 900 characters)")
    assert seen.versions[-1].tags["checkpoint"] == "file:///runs/shapes-7/checkpoints/w-0001"
    models = seen.client.search_logged_models([seen.experiment_id])
    assert {model.name: (model.tags["round"], model.status.name) for model in models} == {
        "w-0000": ("0", "READY"),
        "w-0001": ("1", "READY"),
    }
    scores = {model.name: {metric.key: metric.value for metric in model.metrics} for model in models}
    assert scores["w-0001"] == {"accuracy/near": 0.64, "candidate_accuracy/near": 0.62}
    assert seen.versions[-1].source == "models:/" + next(model.model_id for model in models if model.name == "w-0001")
    assert "| 1 | accepted | 96 | 31 | 64.0 |" in parent.data.tags["mlflow.note.content"]
    child = seen.children[1]
    assert (child.info.start_time, child.info.end_time) == (1_700_000_100_000, 1_700_000_160_500)
    assert child.data.metrics["kept/user.policies_short"] == pytest.approx(31 / 96)
    assert (child.data.metrics["accuracy_low/near"], child.data.metrics["accuracy_high/near"]) == (0.5, 0.75)
    assert {key: child.data.params[key] for key in ("round", "written_with", "training.num_steps")} == {
        "round": "1", "written_with": "w-0000", "training.num_steps": "6",
    }  # fmt: skip
    assert "the candidate is accepted**: margin 0.005. The champion is `w-0001`" in child.data.tags["mlflow.note.content"]
    assert (child.data.tags["mlflow.source.name"], child.data.tags["mlflow.user"]) == ("vigc run x.yaml", "ada")
    inputs = [(one.dataset.name, one.dataset.digest, one.tags[0].value) for one in child.inputs.dataset_inputs]
    assert inputs == [("round 1 selected", "0123abcd", "selected")]
    found = seen.children[2].data
    assert found.params["written_with"] == "t-0001"
    assert {name: value for name, value in found.metrics.items() if name.startswith("findings/")} == {
        "findings/passed_over": 5,
        "findings/left_out": 1,
    }
    assert found.tags["vigc.findings"].splitlines() == [
        "passed_over (3): too long; for example: sample 7",
        "passed_over (2): no answer",
        "left_out (1): no image",
    ]
    figure = Path(seen.client.download_artifacts(parent.info.run_id, "accuracy_by_round.png", str(tmp_path)))
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "mlartifacts").is_dir()
    _assert_samples(seen)


def _assert_samples(seen: Seen) -> None:
    ids = [seen.children[1].info.run_id]
    accepted = seen.client.load_table(seen.experiment_id, "accepted.json", run_ids=ids)
    assert list(accepted.columns) == ["image_id", "type", "question", "original_answer", "answer", "reasons", "mean_logprob"]
    assert accepted["answer"].tolist() == ["A ball."]
    assert accepted["mean_logprob"].tolist() == pytest.approx([-0.2])
    rejected = seen.client.load_table(seen.experiment_id, "rejected.json", run_ids=ids)
    assert rejected["reasons"].tolist() == ["empty, too_short", "unparsable"]


@pytest.mark.parametrize(
    "write", ["log_batch", "log_text", "create_logged_model", "log_outputs", "create_model_version", "log_figure", "set_terminated"]
)
def test_a_mirror_that_is_cut_short_is_completed_without_duplicates(mirror: Mirror, monkeypatch: pytest.MonkeyPatch, write: str) -> None:
    mirror.log_commits(COMMITS[:1], samples, champion_folder)
    real = getattr(MlflowClient, write)

    def lands_and_then_fails(*args: object, **kwargs: object) -> object:
        real(*args, **kwargs)
        raise ConnectionError("cut short")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, write, lands_and_then_fails)
        with pytest.raises(ConnectionError):
            mirror.log_commits(COMMITS, samples, champion_folder)
    mirror.log_commits(COMMITS, samples, champion_folder)
    seen = assert_mirrored_once(mirror)
    _assert_samples(seen)
    assert sorted(model.name for model in seen.client.search_logged_models([seen.experiment_id])) == ["w-0000", "w-0001"]
    assert [len(run.outputs.model_outputs) for run in map(seen.client.get_run, seen.child_ids)] == [1, 1, 0]


def test_a_run_that_was_created_twice_is_reduced_to_one(mirror: Mirror) -> None:
    mirror.log_commits(COMMITS[:2], samples, champion_folder)
    seen = Seen(mirror)
    for run in (seen.parents[0], seen.children[1]):
        tags = {key: value for key, value in run.data.tags.items() if key.startswith("vigc.") or key == "mlflow.parentRunId"}
        seen.client.create_run(seen.experiment_id, tags=tags)
    mirror.log_commits(COMMITS, samples, champion_folder)
    assert_mirrored_once(mirror)


def test_a_resumed_run_with_other_parameters_keeps_the_first_and_notes_the_change(mirror: Mirror) -> None:
    mirror.log_commits([], samples, champion_folder)
    changed = Mirror(mirror.tracking_uri, EXPERIMENT, "a loop", RUN_ID, {**mirror.parameters, "run.rounds": "5"})
    changed.log_commits([], samples, champion_folder)
    (parent,) = Seen(mirror).parents
    assert parent.data.params["run.rounds"] == "2"
    assert json.loads(parent.data.tags["vigc.changed_parameters"]) == {"run.rounds": "5"}


def test_the_background_mirror_keeps_nobody_waiting_and_catches_up_after_an_outage(
    mirror: Mirror, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []

    def away_at_first(commit: RoundCommit) -> tuple[list[Record], list[Record]]:
        asked.append(commit.round)
        if len(asked) == 1:
            raise OSError("the store is away")
        return samples(commit)

    points, ids = LivePoints(tmp_path), list[tuple[str, str]]()
    for round in range(4):
        points.open(round, 1_700_000_000.0 + 100 * round)
        points.add(round, [("train/loss", 0.5, 1_700_000_030_000 + 100_000 * round, 1)])
    background = BackgroundMirror(
        mirror, away_at_first, champion_folder, tmp_path / "mirror.log", facts=facts, live=points, on_ids=lambda *found: ids.append(found)
    )
    started_s = time.monotonic()
    background.log_commits(COMMITS[:2])
    background.log_commits(COMMITS)
    assert time.monotonic() - started_s < 0.5
    wait_until(lambda: "the store is away" in caplog.text)
    assert background.finish("FINISHED", timeout_s=60.0), (tmp_path / "mirror.log").read_text()
    assert asked == [0, 0, 1, 2]
    assert list(points.files()) == [3], "the points of complete rounds are no longer needed"
    seen = Seen(mirror)
    running = seen.children.pop()
    assert (running.data.tags["vigc.round"], running.info.status) == ("3", "FINISHED")
    seen.client.delete_run(running.info.run_id)
    seen = assert_mirrored_once(mirror)
    assert [seen.history(run, "train/loss") for run in seen.children] == [[(1, 0.5, 1_700_000_030_000 + 100_000 * n)] for n in range(3)]
    assert ids[-1] == (seen.experiment_id, seen.parents[0].info.run_id)
    assert seen.parents[0].info.status == "FINISHED"
    _assert_samples(seen)


def wait_until(condition: Callable[[], bool], timeout_s: float = 40.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not happen in time"
        time.sleep(0.05)


def server_mirror(port: int) -> Mirror:
    return Mirror(f"http://127.0.0.1:{port}", EXPERIMENT, "a loop", RUN_ID, {})


def test_a_dead_server_is_warned_of_once_and_costs_the_loop_no_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        background = BackgroundMirror(server_mirror(unused.getsockname()[1]), samples, champion_folder, tmp_path / "mirror.log")
        started_s = time.monotonic()
        background.log_commits(COMMITS[:1])
        assert time.monotonic() - started_s < 0.5
        wait_until(lambda: "lags behind" in caplog.text)
        background.log_commits(COMMITS)
        assert not background.finish("FINISHED", timeout_s=20.0)
    assert [record.levelno for record in caplog.records if record.name == "loop.monitors.tracking_process"] == [logging.WARNING]


def test_a_server_that_does_not_answer_is_given_up_at_the_time_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # connections are taken and never served
        background = BackgroundMirror(server_mirror(silent.getsockname()[1]), samples, champion_folder, tmp_path / "mirror.log")
        background.log_commits(COMMITS)
        started_s = time.monotonic()
        assert not background.finish("FAILED", timeout_s=1.0)
        assert time.monotonic() - started_s < 4.0
    assert "did not take everything within 1 s" in caplog.text


class _Broken(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(500, "broken")

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: what a server prints has no place among the dots of the tests."""


def test_a_broken_server_is_an_outage(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with HTTPServer(("127.0.0.1", 0), _Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        background = BackgroundMirror(server_mirror(server.server_port), samples, champion_folder, tmp_path / "mirror.log")
        background.log_commits(COMMITS)
        assert not background.finish("FINISHED", timeout_s=30.0)
        server.shutdown()
    assert "500" in caplog.text


def test_the_tracking_uri_of_the_environment_wins(tmp_path: Path) -> None:
    assert default_tracking_uri(tmp_path / "run", {}) == f"sqlite:///{tmp_path}/mlflow.db"
    assert default_tracking_uri(tmp_path / "run", {"MLFLOW_TRACKING_URI": "http://tracker:5000"}) == "http://tracker:5000"


def test_parameters_are_flattened_with_dots() -> None:
    config = {"run": {"rounds": 2, "name": "a"}, "sets": [{"name": "near"}, {"name": "far"}], "shift": [0.2, 0.4], "gpu": None}
    assert flatten_parameters(config) == {
        "run.rounds": "2",
        "run.name": "a",
        "sets.0.name": "near",
        "sets.1.name": "far",
        "shift": "[0.2, 0.4]",
        "gpu": "null",
    }


@pytest.mark.parametrize(
    ("name", "key"),
    [("accuracy/near", "accuracy/near"), ("a:b=c%", "a_b_c_"), ("/abs//x/../y/", "abs/x/y"), ("..", "_"), ("mean words", "mean words")],
)
def test_metric_names_become_keys_that_mlflow_takes(name: str, key: str) -> None:
    assert mlflow_key(name) == key


def test_a_cut_text_says_so() -> None:
    assert cut("short", 10) == "short"
    assert cut("x" * 100, 40) == "x" * 14 + " ... (cut, 100 characters)"


def test_the_champion_of_a_run_is_not_moved_by_a_run_of_another_name(mirror: Mirror) -> None:
    mirror.log_commits(COMMITS[:2], samples, champion_folder)
    other = replace(mirror, run_name="another loop", run_id="other")
    other.log_commits(COMMITS[:1], samples, champion_folder)
    named = replace(mirror, run_name="a third", run_id="third", registered_model="mine")
    named.log_commits(COMMITS[:1], samples, champion_folder)
    client = MlflowClient(mirror.tracking_uri, mirror.tracking_uri)
    champions = {name: client.get_model_version_by_alias(name, "champion") for name in ("vigc-a loop", "vigc-another loop", "mine")}
    assert {name: one.tags["weight_version"] for name, one in champions.items()} == {
        "vigc-a loop": "w-0001", "vigc-another loop": "w-0000", "mine": "w-0000",
    }  # fmt: skip


def test_a_champion_whose_weights_were_pruned_is_registered_without_them(mirror: Mirror, tmp_path: Path) -> None:
    background = BackgroundMirror(
        mirror, samples, lambda commit: champion_folder(commit) if commit.round else None, tmp_path / "mirror.log"
    )
    background.log_commits(COMMITS)
    assert background.finish("FINISHED", timeout_s=120)
    assert [version.tags["checkpoint"] for version in assert_mirrored_once(mirror).versions] == [
        "pruned",
        "file:///runs/shapes-7/checkpoints/w-0001",
    ]
