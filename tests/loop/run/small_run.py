"""The small run that slow tests share: its config, the command, and how to kill a driver."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from loop.store.documents import canonical
from loop.store.run_store import Store
from loop.store.verifying import verify

CONFIG: dict[str, Any] = {
    "name": "small",
    "seed": 5,
    "rounds": 2,
    "seed_data": {"data": {"kind": "shapes", "seed": 1, "min_shift": 0, "max_shift": 0.15, "num_images": 60}, "num_samples": 120},
    "image_sets": [{"kind": "shapes", "seed": 101, "min_shift": 0.1, "max_shift": 0.3, "num_images": 40}],
    "held_out": {
        "near": {"data": {"kind": "shapes", "seed": 901, "min_shift": 0, "max_shift": 0.15, "num_images": 30}, "num_questions": 30}
    },
    "acceptance_sets": {
        "dev": {"data": {"kind": "shapes", "seed": 911, "min_shift": 0, "max_shift": 0.3, "num_images": 30}, "num_questions": 30}
    },
    "generation": {"num_shards": 6},
    "filters": ["parsable", "length", "duplicates", {"agreement": {"require_original": False}}, "confidence", "image_dependence", "basis"],
    "training": {"num_steps": 6, "batch_size": 16, "learning_rate": 1e-5, "checkpoint_steps": 2},
    "cluster": {"trainer_ranks": 1},
    "acceptance": {"paired_test": {"max_p": 1.0, "min_gain": -1.0, "max_drop": 1.0}},
}


def write_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **changes}))
    return path


def vigc(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "loop", *arguments], cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


def start(*arguments: str, cwd: Path) -> subprocess.Popen[bytes]:
    """Like `vigc`, in the background."""
    command = [sys.executable, "-m", "loop", *arguments]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def digest_of(run_dir: Path) -> str:
    report = json.loads(vigc("verify", str(run_dir), "--json", cwd=run_dir.parent).stdout)
    assert report["ok"], report["problems"]
    return report["digest"]


def first_commits(run_dir: Path | str, num_rounds: int) -> list[bytes]:
    """What the digest of a whole run of so many rounds would be of."""
    store = Store.open(run_dir)
    report = verify(store)
    assert report.ok, report.problems
    return [canonical(commit) for commit in store.commits()[: num_rounds + 1]]


def kill(driver: subprocess.Popen[Any]) -> None:
    """SIGKILL a driver, and wait until all that it ran has ended by itself."""
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait(30)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert living(alive) == [], "processes of a killed driver are left behind"


def lose_machine(driver: subprocess.Popen[Any]) -> None:
    """Kill a driver and all that it ran at once: a rank can go on for seconds without its driver, and end what was to be interrupted."""
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    _end(children)
    driver.wait(30)


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # what runs in a family ends with its head, at a moment of its own
            process.kill()
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert living(alive) == []


def wait_until(holds: Callable[[], object], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def living(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that are not zombies, which init has only not collected yet."""
    found = []
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            if one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found
