"""The monitor `ray` on a real Ray: gauges arrive where Prometheus would read them, and the dashboard asks for no others."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from actors.training.job import TrainedStep
from loop.monitors.boards import RayMetrics
from loop.monitors.monitor import RunFacts, StageProgress
from loop.store.commits import Decision, FilterCount, RoundCommit, RoundState
from tests.paths import ROOT

_WAIT_S = 60.0
TRAIN = StageProgress(2, "train", 3, 10, "steps", {}, 6.0, is_over=False)
WRITE = StageProgress(2, "generate, correct, filter", 1, 4, "shards", {"records": 40, "kept": 10}, 8.0, is_over=False)
COMMIT = RoundCommit(
    run_id="r", round=1, state=RoundState.ACCEPTED, epoch=1, started_at=0.0, committed_at=1.0, champion="r1", champion_path="c",
    counts={"generated": 40, "accepted": 10}, filters=[FilterCount(filter="parsable", seen=40, kept=30)],
    metrics={"accuracy/far": 0.5}, decision=Decision(accepted=True, reason="better", numbers={"difference": 0.1}),
    stage_seconds={"train": 3.0}, idle={"engines": 0.5, "trainer": 0.25}, files=[],
)  # fmt: skip


def test_gauges_arrive_where_prometheus_reads_them_and_the_dashboard_asks_for_them(tmp_path: Path) -> None:
    monitor = RayMetrics(RunFacts("id", "shapes", str(tmp_path), tmp_path, {}))
    monitor.stage_progressed(TRAIN)  # without Ray: nothing
    with as_ray_start_does():
        monitor.stage_progressed(TRAIN)
        monitor.stage_progressed(WRITE)
        monitor.steps_trained(TRAIN, [TrainedStep(3, 1.0, 0.25, 1e-3, 2.0, 900.0)])
        monitor.round_committed([COMMIT])
        (node,) = ray.nodes()
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        found: dict[str, float] = {}
        deadline_s = time.monotonic() + _WAIT_S
        while "ray_vigc_train of=loss round=2" not in found and time.monotonic() < deadline_s:
            time.sleep(1.0)
            found = gauges(urllib.request.urlopen(address, timeout=10).read().decode())
    assert found["ray_vigc_progress of=train round=2"] == 0.3
    assert found["ray_vigc_kept of=so_far round=2"] == 0.25
    assert found["ray_vigc_train of=loss round=2"] == 0.25
    assert found["ray_vigc_accuracy of=far round="] == 0.5
    asked = set(re.findall(r"ray_vigc_\w+", json.dumps(json.loads((ROOT / "cluster/launch/grafana.json").read_text())["panels"])))
    assert asked <= {name.split()[0] for name in found}


@contextmanager
def as_ray_start_does() -> Iterator[None]:
    """A Ray that exports metrics, as those of a cluster do; the local Ray of a run does not."""
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=128 * 1024**2, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def gauges(text: str) -> dict[str, float]:
    """Our gauges in Prometheus' text format, of the run `shapes`."""
    found = {}
    for name, labels, value in re.findall(r"^(ray_vigc_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        named = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        assert named["run"] == "shapes"
        found[f"{name} of={named['of']} round={named['round']}"] = float(value)
    return found
