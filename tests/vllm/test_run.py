"""The whole loop on vLLM engines, with weights that travel by vLLM's own transfer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from loop.store.run_store import Store
from loop.store.selected import records_of
from tests.loop.run.small_run import kill, vigc, wait_until, write_config

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def test_a_run_on_vllm_that_is_killed_leaves_no_process_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="needs vLLM: make install-vllm")
    run_dir = tmp_path / "runs" / "small"
    parts = run_dir / "rounds" / "0001" / "parts"
    config = write_config(tmp_path, engine="vllm", transport="native", rounds=1, cluster={"num_engines": 1, "trainer_ranks": 1})
    with (tmp_path / "errors").open("w") as errors:
        command = [sys.executable, "-m", "loop", "run", str(config), "--run-dir", str(run_dir)]
        driver = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=errors)
    wait_until(lambda: (parts / "records-00001.json").exists() or driver.poll() is not None, 400)
    assert driver.poll() is None, (tmp_path / "errors").read_text()
    children = psutil.Process(driver.pid).children(recursive=True)
    assert sum("EngineWorker" in " ".join(child.cmdline()) for child in children) == 1
    kill(driver)

    result = vigc("resume", str(run_dir), cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    status = json.loads(vigc("status", str(run_dir), "--json", cwd=tmp_path).stdout)
    assert [one["state"] for one in status["rounds"]] == ["baseline", "accepted"]
    store = Store.open(run_dir)
    baseline, first = store.commits()
    records = list(records_of(store, first))
    assert len(records) == first.counts["generated"] == 80
    assert first.counts["accepted"] > 0
    assert {record.generator_weight_version for record in records} == {baseline.champion}
    assert {record.corrector_weight_version for record in records if record.question} == {baseline.champion}
    assert first.champion != baseline.champion
