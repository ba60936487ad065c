"""A whole run whose disk fills up: under the filter, under the trainer, and then with room again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loop.run.small_run import wait_until, write_config
from tests.loop.store.test_disk import needs_tmpfs
from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), needs_tmpfs]


def test_a_run_stops_at_a_full_disk_with_the_file_named_and_ends_when_there_is_room(tmp_path: Path) -> None:
    """On a disk of its own: this file is the script that runs there."""
    config = write_config(tmp_path, rounds=1, tracking={"enabled": False}, cluster={"num_engines": 1, "trainer_ranks": 1})
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-m", "tests.loop.store.test_full_disk", str(config), str(disk)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])

    code, errors = report["filter"]
    assert code == 1
    assert errors.startswith(f"error: cannot write {disk}/run/rounds/0001/parts/records-0000")
    assert errors.endswith(".parquet: No space left on device; free space or fix the cause, then continue with `vigc resume`")
    assert report["parts after the filter's"] == []

    code, errors = report["trainer"]
    assert code == 1
    assert errors.startswith("error: TrainerError: the trainer could not train: TrainerError: cannot write the step checkpoint ")
    assert f"{disk}/run/checkpoints/round-0001.steps/step-" in errors
    assert errors.endswith("free some space, then resume")
    assert report["checkpoints after the trainer's"] == ["round-0000", "round-0000.json"]

    assert report["end"][0] == 0, report["end"]
    assert report["verified"]["ok"]
    assert report["leftovers"] == []


def drive(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "loop", *arguments], text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def outcome(driver: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and the last line of its errors."""
    _, errors = driver.communicate(timeout=600)
    return driver.returncode, errors.strip().rpartition("\n")[2]


def fill(disk: Path, num_free_bytes: int) -> Path:
    """Leave so much room at most."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while (room := shutil.disk_usage(disk).free - num_free_bytes) > 0:
            file.write(b"\0" * min(room, 1 << 20))
    return ballast


def main(config: str, disk: Path) -> None:
    run_dir = disk / "run"
    parts = run_dir / "rounds/0001/parts"
    report = {}
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)

    driver = drive("run", config, "--run-dir", str(run_dir))
    wait_until((run_dir / "rounds/0000/commit.json").exists, 400)
    ballast = fill(disk, 0)
    report["filter"] = outcome(driver)
    report["parts after the filter's"] = sorted(path.name for path in parts.glob("*")) if parts.exists() else []

    ballast.unlink()
    ballast = fill(disk, 4 << 20)
    report["trainer"] = outcome(drive("resume", str(run_dir)))
    made = (path for path in (run_dir / "checkpoints").iterdir() if path.suffix not in (".tmp", ".steps"))
    report["checkpoints after the trainer's"] = sorted(path.name for path in made)

    ballast.unlink()
    report["end"] = outcome(drive("resume", str(run_dir)))
    shown = subprocess.run([sys.executable, "-m", "loop", "verify", str(run_dir), "--json"], capture_output=True, check=True)
    report["verified"] = json.loads(shown.stdout)
    report["leftovers"] = sorted(path.name for path in run_dir.rglob("*") if ".tmp" in path.name)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
