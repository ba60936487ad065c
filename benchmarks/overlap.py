"""What `overlap: 1` hides: wall-clock of a round with engines and trainer on devices of their own, against strict rounds.

    python -m benchmarks.overlap [--num-images 400] [--num-steps 30] [--rounds 5] [--repeats 1] [--out benchmarks/results/overlap.json]

The demo's recipe with one engine and one trainer rank, a core each: the machine needs two that do nothing else (the load averages at the
start and the end of each run are in the results). Steps are chosen so that generation is about half of a strict round. Every candidate is
accepted, so all records that are written ahead are stale. The first and the last round are left out: one has nothing written ahead, and the
other writes nothing ahead.

What can be hidden of a round is the shorter of writing and training. What is hidden is `overlapped` of the commit records: the seconds in
which both went on. Both slow down if they compete for more than cores, so the rounds themselves are compared, too.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.chaos.world import vigc
from benchmarks.common import argument_parser, write_results
from loop.store.commits import RoundCommit
from loop.store.run_store import Store

MODES: dict[str, tuple[str, ...]] = {
    "strict rounds": ("overlap=0",),
    "overlap, keep": ("overlap=1", "stale_records=keep"),
    "overlap, correct": ("overlap=1", "stale_records=correct"),
}
"""What is compared, as overrides of the config."""


def main() -> None:
    """Run every mode, and print the seconds of a round in each."""
    parser = argument_parser(__doc__, "overlap.json")
    parser.add_argument("--num-images", type=int, default=400, help="unlabelled images of a round")
    parser.add_argument("--num-steps", type=int, default=30, help="training steps of a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of a run, at least 3")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each mode, in turn")
    args = parser.parse_args()
    if args.rounds < 3:
        parser.error(f"--rounds is {args.rounds}; expected at least 3, because the first and the last are left out")
    overrides = overrides_of(args.num_images, args.num_steps, args.rounds)
    runs = [measure(mode, overrides) for _ in range(args.repeats) for mode in MODES]
    report = {"num_images": args.num_images, "num_steps": args.num_steps, "modes": summaries(runs), "runs": runs}
    write_results(args.out, report)
    print(json.dumps(report["modes"], indent=1))


def overrides_of(num_images: int, num_steps: int, rounds: int) -> list[str]:
    """The demo's recipe on devices of their own, as dotted overrides."""
    return [
        f"rounds={rounds}", f"training.num_steps={num_steps}", *(f"image_sets.{number}.num_images={num_images}" for number in range(3)),
        "cluster.colocated=false", "cluster.num_engines=1", "cluster.trainer_ranks=1", "cluster.num_cpus=3",
        "acceptance=always", "tracking.enabled=false",
    ]  # fmt: skip


def measure(mode: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The stage seconds of each round of a run but the first and the last."""
    with tempfile.TemporaryDirectory(prefix="vigc-overlap-") as folder:
        run_dir, before = Path(folder) / "run", os.getloadavg()[0]
        command = vigc("run", "loop/recipes/shapes.yaml", *overrides, *MODES[mode], "--run-dir", str(run_dir))
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        commits = Store.open(run_dir).commits()[2:-1]
    return {
        "mode": mode, "load_before": round(before, 1), "load_after": round(os.getloadavg()[0], 1),
        "rounds": [{name: round(value, 2) for name, value in commit.stage_seconds.items()} for commit in commits],
        "stale": [stale_of(commit) for commit in commits],
    }  # fmt: skip


def stale_of(commit: RoundCommit) -> dict[str, int]:
    return {name: count for name, count in commit.counts.items() if name.startswith("stale_")}


def summaries(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians of each mode over its rounds; those of overlapped rounds are compared with strict ones."""
    rounds = {mode: [one for run in runs if run["mode"] == mode for one in run["rounds"]] for mode in MODES}
    found: dict[str, dict[str, float]] = {}
    for mode, seconds in rounds.items():
        found[mode] = {
            name: statistics.median(one.get(name, 0.0) for one in seconds) for name in sorted({key for one in seconds for key in one})
        }
        if "write_ahead" in found[mode]:
            can_be_hidden = [min(one["write_ahead"], one["train"]) for one in seconds]
            hidden = [one["overlapped"] / limit for one, limit in zip(seconds, can_be_hidden, strict=True)]
            found[mode]["share_hidden"] = round(statistics.median(hidden), 3)
            found[mode]["speed_up"] = round(found["strict rounds"]["round"] / found[mode]["round"], 2)
        else:
            found[mode]["share_of_generation"] = round(found[mode]["generate_correct_filter"] / found[mode]["round"], 3)
    return found


if __name__ == "__main__":
    main()
