"""The mirror and a real MLflow server behind a proxy that makes it slow, broken or absent: the driver never waits, nothing is doubled."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import psutil
import pytest

from benchmarks.speed.faulty_proxy import FaultyProxy
from benchmarks.speed.tracking import mlflow_server
from loop.monitors.tracking import Mirror
from loop.monitors.tracking_process import BackgroundMirror
from tests.loop.monitors.conftest import RUN_ID
from tests.loop.monitors.test_tracking import COMMITS, assert_mirrored_once, champion_folder, samples, wait_until
from tests.paths import ROOT

pytestmark = pytest.mark.slow

PUBLISH_S = 0.05
"""Bound on what a round waits for its mirror."""
FINISH_S = 10.0
REPLAY_S = 200.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real `mlflow server`."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow_server")) as port:
        yield port


@pytest.fixture
def proxy(server: int) -> Iterator[FaultyProxy]:
    made = FaultyProxy(server)
    made.open()
    yield made
    made.close()


def mirror_through(port: int, experiment: str) -> Mirror:
    return Mirror(f"http://127.0.0.1:{port}", experiment, "a loop", RUN_ID, {"run.rounds": "2"}, registered_model=experiment)


def background(mirror: Mirror, folder: Path) -> BackgroundMirror:
    return BackgroundMirror(mirror, samples, champion_folder, folder / "mlflow.log")


def timed(call: Callable[[], object]) -> float:
    started_s = time.monotonic()
    call()
    return time.monotonic() - started_s


def run_with(mirror: Mirror, folder: Path, outage: Callable[[int], AbstractContextManager[None]], timeout_s: float = FINISH_S) -> None:
    """A loop of three rounds that take no time; `outage(round)` holds while the round is published."""
    publisher = background(mirror, folder)
    for number in range(len(COMMITS)):
        with outage(number):
            assert timed(lambda: publisher.log_commits(COMMITS[: number + 1])) < PUBLISH_S  # noqa: B023 (called at once)
            time.sleep(2)
    with outage(len(COMMITS)):
        assert timed(lambda: publisher.finish("FINISHED", timeout_s)) < timeout_s + 6


def assert_replayed_once(proxy: FaultyProxy, mirror: Mirror, server: int, folder: Path) -> None:
    """What `vigc resume` does with a finished run, once MLflow is well: every round is there once."""
    proxy.delay_s, proxy.faults = 0.0, iter(())
    again = background(mirror, folder)
    again.log_commits(COMMITS)
    assert again.finish("FINISHED", REPLAY_S), (folder / "mlflow.log").read_text()[-2000:]
    seen = assert_mirrored_once(replace(mirror, tracking_uri=f"http://127.0.0.1:{server}"))
    assert seen.parents[0].info.status == "FINISHED"


@pytest.mark.parametrize("rounds_away", [{1}, {0, 1, 2, 3}])
def test_a_server_that_is_away_is_caught_up_with(proxy: FaultyProxy, server: int, tmp_path: Path, rounds_away: set[int]) -> None:
    mirror = mirror_through(proxy.port, f"away-{len(rounds_away)}-{min(rounds_away)}")
    run_with(mirror, tmp_path, lambda number: proxy.away() if number in rounds_away else nullcontext())
    assert_replayed_once(proxy, mirror, server, tmp_path)


def test_a_slow_server_costs_the_loop_no_time(proxy: FaultyProxy, server: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirror = mirror_through(proxy.port, "slow")
    proxy.delay_s = 5.0
    run_with(mirror, tmp_path, lambda _: nullcontext())
    assert f"waiting for MLflow at {mirror.tracking_uri} to take what it lacks, at most {FINISH_S:.0f} s" in caplog.text
    time.sleep(2 * proxy.delay_s)  # what is on its way lands
    assert_replayed_once(proxy, mirror, server, tmp_path)


def test_a_server_that_fails_now_and_then_doubles_nothing(proxy: FaultyProxy, server: int, tmp_path: Path) -> None:
    mirror = mirror_through(proxy.port, "faulty")
    proxy.faults = cycle(["", "", "error", "", "", "cut before", "", "", "cut after"])
    run_with(mirror, tmp_path, lambda _: nullcontext(), timeout_s=30)
    assert proxy.num_requests > 10
    assert_replayed_once(proxy, mirror, server, tmp_path)


def test_a_mirror_that_waits_for_a_slow_server_ends_with_its_driver(proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.delay_s = 60.0
    script = f"""
import time
from pathlib import Path
from tests.loop.monitors.test_tracking_server import COMMITS, background, mirror_through
background(mirror_through({proxy.port}, "orphan"), Path({str(tmp_path)!r})).log_commits(COMMITS)
time.sleep(120)
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as driver:
        wait_until(lambda: proxy.num_requests > 0, 60)
        children = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(signal.SIGKILL)
    assert children
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
