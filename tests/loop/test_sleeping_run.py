"""A run whose engines sleep while it trains is the run that it would be without, also when it is killed while they sleep."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from loop.store import Store
from tests.loop.test_run import digest_of, vigc, wait_until, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMALLER: dict[str, Any] = {
    "image_sets": [{"kind": "shapes", "seed": 101, "min_shift": 0.1, "max_shift": 0.3, "num_images": 16}],
    "generation": {"num_shards": 3},
}


def test_a_run_killed_while_its_engines_sleep_resumes_to_the_digest_of_one_whose_engines_do_not(tmp_path: Path) -> None:
    (tmp_path / "awake").mkdir()
    awake = vigc("run", str(write_config(tmp_path / "awake", **SMALLER)), "--run-dir", "run", cwd=tmp_path / "awake")
    assert awake.returncode == 0, awake.stderr
    run_dir = tmp_path / "run"
    config = write_config(tmp_path, **SMALLER, cluster={"sleep_while_training": True})
    command = [sys.executable, "-m", "loop", "run", str(config), "--run-dir", str(run_dir)]
    driver = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: any(run_dir.glob("checkpoints/round-0001.steps/step-*[0-9]")), 300)
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait(30)
    _, alive = psutil.wait_procs(children, timeout=120)
    assert alive == [], "processes of a killed run are left behind"

    resumed = vigc("resume", str(run_dir), cwd=tmp_path)

    assert resumed.returncode == 0, resumed.stderr
    assert digest_of(run_dir) == digest_of(tmp_path / "awake" / "run")
    slept = [commit.stage_seconds.get("sleep", 0.0) for commit in Store.open(run_dir).commits()]
    assert slept[2] > 0, "in the second round there were engines that could sleep"
    assert all("sleep" not in commit.stage_seconds for commit in Store.open(tmp_path / "awake" / "run").commits())
