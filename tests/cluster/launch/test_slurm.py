"""`slurm.sh` under a real Slurm: a job over two nodes is told to end, goes back into the queue and finishes its run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil
import pytest

from tests.cluster.launch.slurm import missing_daemons, slurm
from tests.loop.run.small_run import digest_of, vigc, wait_until, write_config
from tests.paths import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(missing_daemons()), reason=f"needs {', '.join(missing_daemons())}: install slurm-wlm and munge"),
]


def test_a_job_that_is_told_to_end_continues_from_the_queue(tmp_path: Path) -> None:
    config, run_dir, output = write_config(tmp_path, rounds=1), tmp_path / "run", tmp_path / "job.out"
    with slurm(tmp_path / "slurm") as cluster:
        submit = ["sbatch", "--parsable", "--nodes=2", f"--cpus-per-task={os.cpu_count()}", f"--output={output}"]
        job = cluster.run(*submit, "cluster/launch/slurm.sh", str(config), "--run-dir", str(run_dir), cwd=ROOT)
        parts = run_dir / "rounds" / "0001" / "parts"
        wait_until(lambda: (parts / "records-00000.json").exists(), 200)
        cluster.run("scancel", "--batch", "--signal=TERM", job)
        wait_until(lambda: cluster.state(job) == "PENDING", 90)
        printed = output.read_text()
        assert f"{run_dir} was interrupted" in printed
        assert not (run_dir / "rounds" / "0001" / "commit.json").exists()
        cluster.run("scontrol", "update", f"jobid={job}", "StartTime=now")
        wait_until(lambda: cluster.state(job) == "COMPLETED", 240)
    assert "start engines: done, 2/2 engines" in output.read_text()[len(printed) :]
    assert json.loads(vigc("status", str(run_dir), "--json", cwd=tmp_path).stdout)["state"] == "finished"
    assert digest_of(run_dir)
    assert [one for one in psutil.process_iter(["cmdline"]) if str(run_dir) in (one.info["cmdline"] or ())] == []
