"""A run whose engines sleep while it trains is the run that it would be without, also when it is killed then, and its machine with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from loop.store import Store
from tests.loop.small_run import digest_of, lose_machine, start, vigc, wait_until, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_run_killed_while_its_engines_sleep_resumes_to_the_digest_of_one_whose_engines_do_not(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    config = write_config(tmp_path, cluster={"sleep_while_training": True})
    driver = start("run", str(config), "--run-dir", str(run_dir), cwd=tmp_path)
    wait_until(lambda: any(run_dir.glob("checkpoints/round-0001.steps/step-*[0-9]")), 300)
    lose_machine(driver)

    resumed = vigc("resume", str(run_dir), cwd=tmp_path)

    assert resumed.returncode == 0, resumed.stderr
    assert "training went on after step" in resumed.stdout
    assert digest_of(run_dir) == digest_of(finished[0])
    slept = [commit.stage_seconds.get("sleep", 0.0) for commit in Store.open(run_dir).commits()]
    assert slept[2] > 0, "in the second round there were engines that could sleep"
    assert all("sleep" not in commit.stage_seconds for commit in Store.open(finished[0]).commits())
