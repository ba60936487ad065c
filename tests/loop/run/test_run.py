"""The whole loop with real actors on a small config: what an undisturbed run leaves behind."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import psutil
import pytest

from loop.store.run_store import Store
from loop.store.selected import records_of
from tests.loop.run.seen_run import SeenRun
from tests.loop.run.small_run import vigc

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_run_ends_with_its_tables_and_says_where_it_is(finished: tuple[Path, str]) -> None:
    run_dir, printed = finished
    assert "What each round wrote" in printed
    assert "points over the seed model" in printed
    status = json.loads(vigc("status", str(run_dir), "--json", cwd=run_dir).stdout)
    assert status["state"] == "finished"
    assert [one["state"] for one in status["rounds"]] == ["baseline", "accepted", "accepted"]
    assert status["rounds"][1]["counts"]["generated"] == 80


def test_every_record_says_where_it_came_from(finished: tuple[Path, str]) -> None:
    store = Store.open(finished[0])
    baseline, first, second = store.commits()
    for commit, champion in ((first, baseline.champion), (second, first.champion)):
        records = list(records_of(store, commit))
        assert len({record.record_id for record in records}) == len(records) == commit.counts["generated"]
        assert {record.generator_weight_version for record in records} == {champion}
        assert {record.corrector_weight_version for record in records if record.question} == {champion}
        assert all(bool(record.reasons) != record.accepted for record in records)
        assert sum(record.accepted for record in records) == commit.counts["accepted"] > 0
        rejected = sum(count for name, count in commit.counts.items() if name.startswith("rejected_"))
        assert rejected + commit.counts["accepted"] == commit.counts["generated"]
        assert commit.filters[-1].kept == commit.counts["accepted"]


def test_mlflow_shows_what_the_store_says(finished: tuple[Path, str]) -> None:
    from mlflow.tracking import MlflowClient

    run_dir = finished[0]
    commits = Store.open(run_dir).commits()
    client = MlflowClient(f"sqlite:///{run_dir.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("vigc")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.status for run in parents] == ["FINISHED"]
    assert len(runs) == 1 + len(commits)
    shown = {entry.step: entry.value for entry in client.get_metric_history(parents[0].info.run_id, "accuracy/near")}
    assert shown == {commit.round: commit.metrics["accuracy/near"] for commit in commits}
    assert client.get_model_version_by_alias("vigc-small", "champion").tags["weight_version"] == commits[-1].champion


def test_a_second_run_in_the_same_folder_is_refused(finished: tuple[Path, str]) -> None:
    run_dir = finished[0]
    result = vigc("run", str(run_dir.parents[1] / "config.yaml"), "--run-dir", str(run_dir), cwd=run_dir)
    assert result.returncode == 2
    assert "vigc resume" in result.stderr


def test_engines_sleep_while_a_run_trains_and_wake_for_the_next_round(finished: tuple[Path, str]) -> None:
    first, second = Store.open(finished[0]).commits()[1:]
    assert first.stage_seconds["sleep"] > 0
    assert second.stage_seconds["sleep"] > 0


def test_a_run_listens_on_loopback_alone(seen_run: SeenRun) -> None:
    assert seen_run.num_looks > 10
    assert {"gcs_server", "raylet"} <= {name for name, _, _ in seen_run.open_ends}, "what was looked at is no run with Ray"
    assert [end for end in seen_run.open_ends if not ipaddress.ip_address(end[2].removeprefix("::ffff:")).is_loopback] == []


def test_a_run_writes_where_it_is_meant_to_and_nowhere_else(seen_run: SeenRun) -> None:
    assert seen_run.written[""] == {"config.yaml", "errors", "out", "home", "runs"}
    assert seen_run.written["runs"] <= {"small", "mlflow.db", "mlartifacts"}
    assert seen_run.written["home"] <= {".cache", ".config", ".ray", ".triton"}  # Ray keeps its token in .ray
    assert not seen_run.code_changed


def test_a_run_leaves_no_process_behind(finished: tuple[Path, str]) -> None:
    run_dir = finished[0]
    mine = [process for process in psutil.process_iter(["cmdline", "cwd"]) if process.info["cwd"] == str(run_dir.parents[1])]
    assert mine == []
