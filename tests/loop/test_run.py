"""The whole loop with real actors on a small config: what a run leaves behind, and what a killed one resumes to."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import psutil
import pyarrow.compute as pc
import pytest

from loop.export import read_records
from loop.store import Store
from tests.loop.seen_run import SeenRun
from tests.loop.small_run import ROOT, first_commits, kill, start, vigc, wait_until, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PHOTOS = ROOT.parent / "shared" / "data" / "photos"


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
        records = read_records(store, commit)
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
    assert client.get_model_version_by_alias("vigc", "champion").tags["weight_version"] == commits[-1].champion


def test_a_second_run_in_the_same_folder_is_refused(finished: tuple[Path, str]) -> None:
    run_dir = finished[0]
    result = vigc("run", str(run_dir.parents[1] / "config.yaml"), "--run-dir", str(run_dir), cwd=run_dir)
    assert result.returncode == 2
    assert "vigc resume" in result.stderr


def test_exports_hold_the_accepted_records(finished: tuple[Path, str], tmp_path: Path) -> None:
    run_dir = finished[0]
    accepted = sum(commit.counts.get("accepted", 0) for commit in Store.open(run_dir).commits())
    for form in ("llava", "messages"):
        result = vigc("export", str(run_dir), "--format", form, "--out", str(tmp_path / form), cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(f"{accepted} records")


def test_a_run_killed_while_it_generates_resumes_to_the_same_round(finished: tuple[Path, str], tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "small"
    parts = run_dir / "rounds" / "0001" / "parts"
    driver = start("run", str(write_config(tmp_path, rounds=1)), "--run-dir", str(run_dir), cwd=tmp_path)
    wait_until((parts / "records-00001.json").exists, 300)
    kill(driver)
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("records-*.parquet")}
    assert json.loads(vigc("status", str(run_dir), "--json", cwd=tmp_path).stdout)["state"] == "interrupted"

    result = vigc("resume", str(run_dir), cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    assert before, "no shard was finished before the kill"
    assert "training went on after step" not in result.stdout
    assert {name: (parts / name).stat().st_mtime_ns for name in before} == before, "a finished shard was made again"
    assert first_commits(run_dir, 1) == first_commits(finished[0], 1)


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


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the photos of ../shared/data, which are not here")
def test_a_round_over_photos_sets_broken_ones_aside_and_goes_on(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(PHOTOS.glob("*.jpg"))[:10]:
        (photos / path.name).write_bytes(path.read_bytes())
    (photos / "broken.jpg").write_bytes((photos / path.name).read_bytes()[:2000])
    changes = {"rounds": 1, "image_sets": [{"kind": "folder", "path": str(photos)}], "filters": ["parsable"], "transport": "object_store"}

    result = vigc("run", str(write_config(tmp_path, **changes)), "--run-dir", "run", cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    store = Store.open(tmp_path / "run")
    commit = store.commits()[1]
    assert commit.counts["set_aside_images"] == 1
    assert commit.counts["rejected_unreadable_image"] == 2
    assert commit.counts["generated"] == 22
    part = store.read_part(next(file for file in commit.files if "records-" in file.path))
    assert pc.all(pc.is_valid(part["generator_weight_version"])).as_py()
