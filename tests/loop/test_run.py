"""The whole loop with real actors on a small config: what a run leaves behind, and what a killed one resumes to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.compute as pc
import pytest
import yaml

from loop.export import read_records
from loop.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT.parent / "shared" / "data" / "photos"
CONFIG: dict[str, Any] = {
    "name": "small",
    "seed": 5,
    "rounds": 2,
    "seed_data": {"data": {"kind": "shapes", "seed": 1, "min_shift": 0, "max_shift": 0.15, "num_images": 60}, "num_samples": 120},
    "image_sets": [{"kind": "shapes", "seed": 101, "min_shift": 0.1, "max_shift": 0.3, "num_images": 40}],
    "held_out": {
        "near": {"data": {"kind": "shapes", "seed": 901, "min_shift": 0, "max_shift": 0.15, "num_images": 30}, "num_questions": 30}
    },
    "acceptance_sets": {
        "dev": {"data": {"kind": "shapes", "seed": 911, "min_shift": 0, "max_shift": 0.3, "num_images": 30}, "num_questions": 30}
    },
    "generation": {"num_shards": 6},
    "filters": ["parsable", "length", "duplicates", "agreement", "confidence", "image_dependence", "basis"],
    "training": {"num_steps": 6, "batch_size": 16, "learning_rate": 1e-5, "checkpoint_steps": 2},
    "acceptance": {"paired_test": {"max_p": 1.0, "min_gain": -1.0, "max_drop": 1.0}},
}


def vigc(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "loop", *arguments], cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


def write_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **changes}))
    return path


def digest_of(run_dir: Path) -> str:
    report = json.loads(vigc("verify", str(run_dir), "--json", cwd=run_dir.parent).stdout)
    assert report["ok"], report["problems"]
    return report["digest"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An undisturbed run and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    result = vigc("run", str(write_config(folder)), "--run-dir", "runs/small", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "runs" / "small", result.stdout


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


MOMENTS = {"generating": "rounds/0001/parts/records-00001.json", "training": "checkpoints/round-0001.steps/step-*[0-9]"}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_in_the_middle_resumes_to_the_same_digest(finished: tuple[Path, str], tmp_path: Path, moment: str) -> None:
    run_dir = tmp_path / "runs" / "small"
    parts = run_dir / "rounds" / "0001" / "parts"
    driver = subprocess.Popen(
        [sys.executable, "-m", "loop", "run", str(write_config(tmp_path)), "--run-dir", str(run_dir)],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: any(run_dir.glob(MOMENTS[moment])), 300)
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait(30)
    _, alive = psutil.wait_procs(children, timeout=120)
    assert alive == [], "processes of a killed run are left behind"
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("records-*.parquet")}
    assert json.loads(vigc("status", str(run_dir), "--json", cwd=tmp_path).stdout)["state"] == "interrupted"

    result = vigc("resume", str(run_dir), cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    assert before, "no shard was finished before the kill"
    assert ("training went on after step" in result.stdout) == (moment == "training")
    assert {name: (parts / name).stat().st_mtime_ns for name in before} == before, "a finished shard was made again"
    assert digest_of(run_dir) == digest_of(finished[0])


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


def wait_until(holds: Any, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
