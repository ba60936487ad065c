"""However a driver ends, nothing of it is left: no process, no socket, no shared memory, no temp file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from benchmarks.chaos.processes import restore_sigint
from loop.errors import DamagedFileError
from loop.run.driver import resume
from loop.run.retention import needed_files
from loop.store.documents import seal
from loop.store.run_store import Store
from loop.store.verifying import verify
from tests.loop.run.small_run import first_commits, living, wait_until, write_config
from tests.loop.store.make_run import flip
from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

_STOP_S = 60.0
"""Bound on a driver's orderly end, and on the end of what a killed one ran."""


@dataclass(frozen=True)
class Vigc:
    """Runs `vigc` with a temp folder of its own."""

    folder: Path
    temp: Path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        with (self.folder / "errors.txt").open("w") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "loop", *arguments], cwd=self.folder, text=True, stdout=subprocess.DEVNULL, stderr=errors,
                env={**os.environ, "TMPDIR": str(self.temp), "PYTHONPATH": str(ROOT)},
                preexec_fn=restore_sigint, start_new_session=True,
            )  # fmt: skip

    def temp_files(self) -> list[str]:
        return [path.name for path in self.temp.iterdir() if not path.name.startswith("torchinductor_")]  # torch's, one per user

    def errors(self) -> str:
        return (self.folder / "errors.txt").read_text()


@pytest.fixture
def vigc(tmp_path: Path) -> Iterator[Vigc]:
    temp = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # short enough for Ray's sockets
    yield Vigc(tmp_path, temp)
    shutil.rmtree(temp)


def listening(processes: list[psutil.Process]) -> list[str]:
    pids = {process.pid for process in processes}
    return [f"{c.laddr}" for c in psutil.net_connections("inet") if c.pid in pids and c.status == psutil.CONN_LISTEN]


def is_up(driver: subprocess.Popen[str], run_dir: Path, pattern: str) -> bool:
    """Whether a file is there and the driver's Ray is up; or the driver has ended, which the caller looks at."""
    if driver.poll() is not None:
        return True
    return any(run_dir.glob(pattern)) and bool(listening(psutil.Process(driver.pid).children(recursive=True)))


def finished_shards(parts: Path) -> list[Path]:
    """Files of shards whose receipt is there; the receipt is written last."""
    return [receipt.with_suffix(".parquet") for receipt in parts.glob("records-*.json")]


def segments() -> set[str]:
    """Shared memory that has a name and that no process has open."""
    used = {file.path for process in psutil.process_iter() for file in _open_files(process)}
    return {str(path) for path in Path("/dev/shm").iterdir()} - used


def _open_files(process: psutil.Process) -> list[Any]:
    try:
        return process.open_files()
    except psutil.Error:
        return []


def test_nothing_is_left_of_a_driver_that_was_stopped_killed_or_ended(vigc: Vigc, finished: tuple[Path, str]) -> None:
    config = write_config(vigc.folder, rounds=1, cluster={"sleep_while_training": True, "num_engines": 1, "trainer_ranks": 1})
    run_dir = vigc.folder / "run"
    parts = run_dir / "rounds/0001/parts"
    before = segments()
    shards: dict[Path, int] = {}
    moments = {  # SIGTERM and SIGINT reach the whole process group, as from `timeout` and a terminal
        signal.SIGTERM: ("run", str(config), "--run-dir", str(run_dir), "rounds/0001/parts/records-00000.json"),
        signal.SIGKILL: ("resume", str(run_dir), "checkpoints/round-0001.steps/step-*[0-9]"),  # the engines sleep
        signal.SIGINT: ("resume", str(run_dir), "rounds/0001/parts/training.json"),
    }
    for number, (*arguments, moment) in moments.items():
        driver = vigc.start(*arguments)
        wait_until(lambda driver=driver, moment=moment: is_up(driver, run_dir, moment), 400)
        assert driver.poll() is None, vigc.errors()
        processes = psutil.Process(driver.pid).children(recursive=True)
        assert len(vigc.temp_files()) == 1
        shards = {**{path: path.stat().st_mtime_ns for path in finished_shards(parts)}, **shards}
        if number is signal.SIGKILL:
            driver.kill()
            driver.wait(10)
            _, alive = psutil.wait_procs(processes, timeout=_STOP_S)
            assert vigc.temp_files() == []
            assert f"error: process {driver.pid}, which worked on '{run_dir}', died" in vigc.errors()
        else:
            os.killpg(driver.pid, number)
            assert driver.wait(_STOP_S) == 130, vigc.errors()
            assert vigc.errors().splitlines()[-1].endswith(f"was interrupted; continue it with `vigc resume {run_dir}`")
            _, alive = psutil.wait_procs(processes, timeout=0)
            assert vigc.temp_files() == []
            assert _mlflow_status(vigc.folder) == "KILLED"
        assert living(alive) == []
        assert listening(processes) == []
        shown = subprocess.run([sys.executable, "-m", "loop", "status", str(run_dir), "--json"], cwd=ROOT, capture_output=True, check=True)
        told = json.loads(shown.stdout)
        assert told["state"] == "interrupted"
        assert told["last_end"]["outcome"] == ("killed" if number is signal.SIGKILL else "interrupted")
        assert told["stage"]["round"] == "round 1/1"

    driver = vigc.start("run", str(config), "--resume", "--run-dir", str(run_dir))
    wait_until(lambda: psutil.Process(driver.pid).children(), 120)
    second = subprocess.run([sys.executable, "-m", "loop", "resume", str(run_dir)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert f"is driven by epoch 4 (pid {driver.pid}" in " ".join(second.stderr.split())
    processes = psutil.Process(driver.pid).children(recursive=True)
    assert driver.wait(600) == 0, vigc.errors()
    _, alive = psutil.wait_procs(processes, timeout=0)
    assert living(alive) == []
    assert vigc.temp_files() == []
    assert segments() <= before
    assert [path for path in run_dir.rglob("*") if ".tmp" in path.name or (path.name.startswith(".") and path.is_dir())] == []
    log = (run_dir / "run.log").read_text()
    assert log.count("interrupted: stopped by Ctrl-C or SIGTERM") == 2
    assert "finished: the loop is over" in log
    assert shards, "no shard was finished before the first signal"
    assert {path: path.stat().st_mtime_ns for path in shards} == shards, "a finished shard was made again"
    assert first_commits(run_dir, 1) == first_commits(finished[0], 1), "it is not the undisturbed run"
    assert _mlflow_status(vigc.folder) == "FINISHED"
    assert_that_every_damage_is_noticed(run_dir)


def assert_that_every_damage_is_noticed(run_dir: Path) -> None:
    """By `vigc verify`, and before anything starts by `vigc resume` where the next round would read the file."""
    info = json.loads((run_dir / "run.json").read_bytes())["content"]
    info["config"] |= {"rounds": 2, "tracking": {**info["config"]["tracking"], "enabled": False}}
    (run_dir / "run.json").write_bytes(seal(info))
    commits = Store.open(run_dir).commits()
    needed = {file.path for file in needed_files(commits)}
    files = [file for commit in commits for file in commit.files]
    assert {"tokenizer.json", "processor_config.json", "model.safetensors", "selected.parquet", "predictions.parquet"} <= {
        Path(path).name for path in needed
    }
    for file in files:
        path = run_dir / file.path
        flip(path, file.num_bytes // 2)
        report = verify(Store.open(run_dir))
        assert len(report.problems) == 1
        assert report.problems[0].startswith(f"{file.path} is damaged")
        if file.path in needed:
            with pytest.raises(DamagedFileError, match=file.path):
                resume(str(run_dir), Console())
        flip(path, file.num_bytes // 2)
    assert verify(Store.open(run_dir)).ok


def _mlflow_status(folder: Path) -> str:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("vigc")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return next(run.info.status for run in runs if "mlflow.parentRunId" not in run.data.tags)
