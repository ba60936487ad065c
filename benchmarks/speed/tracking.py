"""The cost of MLflow to the loop when it is healthy, slow, broken or down: the same small run, mirrored to a real `mlflow server`.

    python -m benchmarks.speed.tracking [--repeats 2] [--out benchmarks/results/tracking.json]

The server is behind a proxy: `slow` waits 5 seconds before every request, `errors` answers every second request with 500, `away` refuses
connections. Loop seconds run from the start of round 0 to the last commit, closing seconds from there to the driver's exit. After each
run, MLflow is healthy again and `vigc resume` replays missing rounds; counted are those that MLflow then has exactly once.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from urllib.error import URLError

import psutil
from mlflow.tracking import MlflowClient
from rich.console import Console
from rich.table import Table
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from benchmarks.chaos.world import World
from benchmarks.common import argument_parser, write_results
from benchmarks.speed.faulty_proxy import FaultyProxy
from loop.monitors.mirror.metrics import round_values
from loop.monitors.tracking import ROUND_TAG
from loop.store.run_store import Store

SERVER_START_S = 120.0
SLOW_S = 5.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One run."""

    condition: str
    loop_s: float
    closing_s: float
    num_rounds: int
    rounds_before_replay: int
    """Rounds in MLflow when the run ended."""
    replay_s: float
    rounds_once: int
    """Rounds that MLflow has exactly once after the replay, without a doubled point and with the recorded numbers."""


def main() -> None:
    """Run all conditions in turn, then print and write the results."""
    parser = argument_parser(__doc__, "tracking.json")
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="vigc-tracking-") as folder, mlflow_server(Path(folder)) as port:
        world = World.make(Path(folder) / "world")
        for repeat in range(args.repeats):
            for condition in CONDITIONS:
                measured.append(measure(condition, world, port, Path(folder) / f"{condition}-{repeat}"))
                print(measured[-1])
    write_results(args.out, measured)
    Console().print(table(measured))


def _well(proxy: FaultyProxy) -> None:
    proxy.delay_s, proxy.faults = 0.0, iter(())


def _slow(proxy: FaultyProxy) -> None:
    proxy.delay_s = SLOW_S


def _errors(proxy: FaultyProxy) -> None:
    proxy.faults = cycle(["", "error"])


CONDITIONS: dict[str, Callable[[FaultyProxy], None]] = {"well": _well, "slow": _slow, "errors": _errors, "away": FaultyProxy.close}


def measure(condition: str, world: World, port: int, run_dir: Path) -> Measured:
    """Measure a run under a condition, and its replay."""
    proxy = FaultyProxy(port)
    proxy.open()
    CONDITIONS[condition](proxy)
    vigc(world, proxy.port, "run", str(world.config), "--run-dir", str(run_dir), f"tracking.experiment={run_dir.name}")
    ended = time.time()
    commits = Store.open(str(run_dir)).commits()
    before = len(rounds_once(port, run_dir))
    if condition == "away":
        proxy.reopen()
    _well(proxy)
    started = time.monotonic()
    vigc(world, proxy.port, "resume", str(run_dir))
    replay_s = time.monotonic() - started
    once = rounds_once(port, run_dir)
    proxy.close()
    last = commits[-1].committed_at
    return Measured(condition, last - commits[0].started_at, ended - last, len(commits), before, replay_s, len(once))


def vigc(world: World, port: int, *arguments: str) -> None:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    subprocess.run([sys.executable, "-m", "loop", *arguments], env=environment, check=True, stdout=subprocess.DEVNULL, timeout=1800)


def rounds_once(port: int, run_dir: Path) -> list[int]:
    """Rounds with exactly one child run in MLflow, which has no step of a metric twice and the numbers of the commit as recorded."""
    client = MlflowClient(f"http://127.0.0.1:{port}")
    experiment = client.get_experiment_by_name(run_dir.name)
    if experiment is None:
        return []
    commits = {commit.round: commit for commit in Store.open(str(run_dir)).commits()}
    children = [run for run in client.search_runs([experiment.experiment_id]) if ROUND_TAG in run.data.tags]
    counted = Counter(int(run.data.tags[ROUND_TAG]) for run in children)
    found = []
    for run in children:
        number = int(run.data.tags[ROUND_TAG])
        if number not in commits or counted[number] != 1:
            continue
        histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        points = {key: [(point.step, point.timestamp) for point in history] for key, history in histories.items()}
        at = (number, round(1000 * commits[number].committed_at))
        has_all = all(points.get(key) == [at] for key in round_values(commits[number]))
        if has_all and all(len({step for step, _ in history}) == len(history) for history in points.values()):
            found.append(number)
    return found


@contextmanager
def mlflow_server(folder: Path) -> Iterator[int]:
    """The port of a real `mlflow server` on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "mlflow-server.log").open("w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server:
        try:
            _await_answer(port)
            yield port
        finally:
            for process in [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]:
                process.kill()


@retry(retry=retry_if_exception_type(URLError), stop=stop_after_delay(SERVER_START_S), wait=wait_fixed(0.2), reraise=True)
def _await_answer(port: int) -> None:
    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()


def table(measured: list[Measured]) -> Table:
    """Medians by condition."""
    shown = Table("MLflow", "loop, s", "closing, s", "rounds there at the end", "replay, s", "rounds once after it")
    for condition in CONDITIONS:
        runs = [one for one in measured if one.condition == condition]
        num_rounds = sum(one.num_rounds for one in runs)
        shown.add_row(
            condition, f"{median(one.loop_s for one in runs):.1f}", f"{median(one.closing_s for one in runs):.1f}",
            f"{sum(one.rounds_before_replay for one in runs)} of {num_rounds}",
            f"{median(one.replay_s for one in runs):.1f}", f"{sum(one.rounds_once for one in runs)} of {num_rounds}",
        )  # fmt: skip
    return shown


if __name__ == "__main__":
    main()
