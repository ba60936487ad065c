"""The small run under test, and its undisturbed outcome."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.chaos.processes import MARK
from loop.store.run_store import Store
from loop.store.selected import records_of
from loop.store.verifying import verify

ROOT = Path(__file__).parents[2]
NUM_SHARDS = 8
MAX_IN_FLIGHT = 4
"""Shards in flight at a time: two for each of two engines."""

CONFIG: dict[str, Any] = {
    "name": "chaos",
    "seed": 5,
    "rounds": 2,
    "seed_data": {"data": {"kind": "shapes", "seed": 1, "min_shift": 0, "max_shift": 0.15, "num_images": 30}, "num_samples": 60},
    "image_sets": [{"kind": "shapes", "seed": 101, "min_shift": 0.1, "max_shift": 0.3, "num_images": 24}],
    "held_out": {
        "near": {"data": {"kind": "shapes", "seed": 901, "min_shift": 0, "max_shift": 0.15, "num_images": 10}, "num_questions": 10}
    },
    "acceptance_sets": {
        "dev": {"data": {"kind": "shapes", "seed": 911, "min_shift": 0, "max_shift": 0.3, "num_images": 10}, "num_questions": 10}
    },
    "generation": {"num_shards": NUM_SHARDS},
    "filters": ["parsable", "length", "duplicates", "agreement", "confidence"],
    "training": {"num_steps": 12, "batch_size": 4, "learning_rate": 1e-5, "checkpoint_steps": 3},
    "cluster": {"num_engines": 2, "num_filters": 1, "trainer_ranks": 2, "max_restarts": 3},
    "acceptance": {"paired_test": {"max_p": 1.0, "min_gain": -1.0, "max_drop": 1.0}},
}
"""Two rounds of 48 records. Every candidate is accepted, so that each round swaps."""

SHORT_BOUNDS = {"start_timeout_s": 60, "task_timeout_s": 20, "swap_timeout_s": 20}
"""Time limits of `cluster` for runs with hanging actors."""
TRAINING_BOUNDS = {"timeout_s": 150, "stall_timeout_s": 25}
"""The same for `training`."""


@dataclass(frozen=True)
class Outcome:
    """The content of a finished run."""

    digest: str
    record_ids: dict[int, list[str]]
    """By round, in the order of the parts."""


@dataclass(frozen=True)
class World:
    """A folder with the config shared by all runs of a campaign."""

    folder: Path
    config: Path
    num_rounds: int

    @classmethod
    def make(cls, folder: Path, **changes: Any) -> World:
        """`changes` are sections merged into `CONFIG`, or values that replace those of `CONFIG`."""
        document = dict(CONFIG)
        for name, value in changes.items():
            document[name] = {**document.get(name, {}), **value} if isinstance(value, dict) else value
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(document))
        return cls(folder, folder / "config.yaml", document["rounds"])

    def command(self, run_dir: Path, overrides: Sequence[str]) -> list[str]:
        """`vigc run` with dotted overrides, or `vigc resume` if the run exists."""
        if (run_dir / "run.json").exists():
            return vigc("resume", str(run_dir))
        return vigc("run", str(self.config), *overrides, "--run-dir", str(run_dir))


def vigc(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "loop", *arguments]


def environment(mark: Path) -> dict[str, str]:
    """Environment of a session: this checkout's packages, a mark to find its processes, and nothing of another Ray or MLflow."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    return {**inherited, "PYTHONPATH": str(ROOT), MARK: str(mark)}


def outcome_of(run_dir: Path) -> Outcome:
    """The committed content of a run. Raises `AssertionError` if a committed file is damaged."""
    store = Store.open(run_dir)
    report = verify(store)
    assert report.ok, report.problems
    ids = {commit.round: [record.record_id for record in records_of(store, commit)] for commit in store.commits()[1:]}
    return Outcome(report.digest, ids)


def lost_and_duplicated(expected: Outcome, found: Outcome) -> tuple[int, int]:
    """Number of missing records, and of duplicated or unexpected records."""
    wanted = Counter((number, name) for number, names in expected.record_ids.items() for name in names)
    given = Counter((number, name) for number, names in found.record_ids.items() for name in names)
    return (wanted - given).total(), (given - wanted).total()


def check_commands(run_dir: Path) -> list[str]:
    """Problems reported by `vigc status` and `vigc verify` for an interrupted or finished run."""
    problems = []
    for verb in ("status", "verify"):
        result = subprocess.run(
            vigc(verb, str(run_dir), "--json"),
            env=environment(run_dir),
            cwd=run_dir,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        try:
            answer = json.loads(result.stdout)
        except ValueError:
            answer = {}
        expected = answer.get("state") in ("interrupted", "finished") if verb == "status" else answer.get("ok")
        if result.returncode or not expected:
            problems.append(f"vigc {verb} gave {result.returncode}: {result.stdout[-200:]} {result.stderr[-400:]}")
    return problems


@dataclass(frozen=True)
class FileState:
    """State of a finished file, which must not change."""

    mtime_ns: int
    sha256: str


def finished_files(run_dir: Path) -> dict[str, FileState]:
    """Every part with its receipt, and every commit record; paths are relative to the run."""
    found = {}
    for receipt in (path for path in run_dir.glob("rounds/*/parts/*.json") if not path.name.endswith(".data.json")):
        stem = receipt.name.removesuffix(".json")
        data = [receipt.with_name(stem + suffix) for suffix in (".parquet", ".data.json")]
        for path in [receipt, *(each for each in data if each.exists())]:
            found[str(path.relative_to(run_dir))] = _state(path)
    return found | {str(path.relative_to(run_dir)): _state(path) for path in run_dir.glob("rounds/*/commit.json")}


def _state(path: Path) -> FileState:
    return FileState(path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())


def half_written(run_dir: Path) -> list[str]:
    """Temporary files and non-empty temporary folders that are in use or were left behind."""
    checkpoints, rounds = _entries(run_dir / "checkpoints"), _entries(run_dir / "rounds")
    steps = [path for folder in checkpoints if folder.name.endswith(".steps") for path in _entries(folder)]
    parts = [path for folder in rounds for path in (*_entries(folder), *_entries(folder / "parts"))]
    found = [path for path in (*_entries(run_dir), *checkpoints, *steps, *parts) if ".tmp" in path.name]
    return [str(path.relative_to(run_dir)) for path in found if not path.is_dir() or _entries(path)]


def _entries(place: Path) -> list[Path]:
    try:
        return [place / name for name in os.listdir(place)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def new_folder(parent: Path, prefix: str) -> Path:
    """Create a folder for one run; names sort by creation time."""
    folder = parent / f"{prefix}-{time.time_ns() // 1_000_000:x}"
    folder.mkdir(parents=True)
    return folder
