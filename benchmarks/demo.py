"""Cost of the demo: wall-clock time, peak memory of all its processes, and the share of a round that is not work on the model.

    python -m benchmarks.demo [--engine vllm] [--out benchmarks/results/demo.json]

Memory is the proportional set size (a page shared by n processes counts 1/n in each) of the command and all its descendants,
including Ray's daemons, sampled twice a second.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.chaos.world import vigc
from benchmarks.common import argument_parser, write_results
from loop.store.run_store import Store

WORK = ("generate_correct_filter", "train", "evaluate")
"""Stages that count as work on the model; filters run concurrently with generation and correction."""


def main() -> None:
    """Run the demo's recipe once and print its cost."""
    parser = argument_parser(__doc__, "demo.json")
    parser.add_argument("--engine", default="transformers", help="kind of engine")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vigc-demo-") as folder:
        run_dir = Path(folder) / "runs" / "demo"
        recipe = ["loop/recipes/shapes.yaml", f"engine.kind={args.engine}"]
        seconds, peak_bytes = measure(vigc("run", *recipe, "--run-dir", str(run_dir)))
        rounds = [commit.stage_seconds for commit in Store.open(run_dir).commits()[1:]]
    overheads = [1 - sum(stages[name] for name in WORK) / stages["round"] for stages in rounds]
    report = {
        "seconds": round(seconds, 1),
        "peak_memory_gib": round(peak_bytes / 2**30, 2),
        "overhead_shares": [round(share, 4) for share in overheads],
        "stage_seconds": [{name: round(value, 2) for name, value in stages.items()} for stages in rounds],
    }
    write_results(args.out, report)
    print(json.dumps(report, indent=1))


def measure(command: list[str]) -> tuple[float, int]:
    """Wall-clock seconds of a command, and the peak memory of its process tree in bytes."""
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
    """The proportional set size of a process; 0 if it has ended."""
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


if __name__ == "__main__":
    main()
