"""What the demo costs: wall-clock, peak memory of all its processes, and the share of a round that is not work on the model.

    python -m benchmarks.demo --out benchmarks/results/demo.json
    python -m benchmarks.demo --engines transformers,vllm --out benchmarks/results/demo_engines.json

With several engines the demo runs once on each, and the champions' answers to the same held-out questions are compared with those of
the first engine's. Memory is the proportional set size (a page shared by n processes counts 1/n in each) of the command and all its
descendants, Ray's daemons included, sampled twice a second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.gain import SETS, champions, interval
from loop.store import Store

WORK = ("generate_correct_filter", "train", "evaluate")
"""Stages that are work on the model; the filters run beside generation and correction."""


def main() -> None:
    """Run the demo's recipe once on each engine and print what it cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="transformers", help="kinds of engine, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/demo.json"))
    args = parser.parse_args()
    engines = args.engines.split(",")
    with tempfile.TemporaryDirectory(prefix="vigc-demo-") as folder:
        reports = {engine: run(engine, Path(folder) / engine / "demo") for engine in engines}
        for engine in engines[1:]:
            reports[engine]["accuracy_over_first_engine"] = compare(Path(folder) / engines[0] / "demo", Path(folder) / engine / "demo")
    report = reports[engines[0]] if len(engines) == 1 else reports
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def run(engine: str, run_dir: Path) -> dict[str, Any]:
    """The recipe on one engine: its cost, and the champion's accuracy by set in percent."""
    command = [sys.executable, "-m", "loop", "run", "loop/recipes/shapes.yaml", f"engine.kind={engine}", "--run-dir", str(run_dir)]
    seconds, peak_bytes = measure(command)
    rounds = [commit.stage_seconds for commit in Store.open(run_dir).commits()[1:]]
    overheads = [1 - sum(stages[name] for name in WORK) / stages["round"] for stages in rounds]
    _, champion = champions(run_dir)
    return {
        "seconds": round(seconds, 1),
        "peak_memory_gib": round(peak_bytes / 2**30, 2),
        "overhead_shares": [round(share, 4) for share in overheads],
        "stage_seconds": [{name: round(value, 2) for name, value in stages.items()} for stages in rounds],
        "accuracy": {name: round(100 * float(champion[name].mean()), 2) for name in SETS},
    }


def compare(first: Path, other: Path) -> dict[str, tuple[float, float, float]]:
    """By set, and over all of them: points between two runs' champions on the same questions, with the 95 % interval."""
    (seed, one), (other_seed, two) = champions(first), champions(other)
    differences = {name: two[name].astype(float) - one[name] for name in SETS}
    found = {name: interval([difference]) for name, difference in differences.items()}
    found["all"] = interval([np.concatenate(list(differences.values()))])
    found["all, seed model"] = interval([np.concatenate([other_seed[name].astype(float) - seed[name] for name in SETS])])
    return found


def measure(command: list[str]) -> tuple[float, int]:
    """Wall-clock seconds of a command, and the peak of the memory of its process tree in bytes."""
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, sum(map(proportional_bytes, [root, *root.children(recursive=True)])))
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"the demo failed with exit code {process.returncode}")
    return time.perf_counter() - started, peak


def proportional_bytes(process: psutil.Process) -> int:
    """A process's proportional set size; 0 when it has ended meanwhile."""
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


if __name__ == "__main__":
    main()
