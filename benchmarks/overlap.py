"""What `overlap: 1` hides: wall-clock of a round with engines and trainer on devices of their own, against strict rounds.

    python -m benchmarks.overlap [--num-images 400] [--num-steps 30] [--rounds 5] [--repeats 1] [--out benchmarks/results/overlap.json]
    python -m benchmarks.overlap --waiting [--out benchmarks/results/overlap_waiting.json]

The demo's recipe with one engine and one trainer rank, a core each, which need two cores that do nothing else (the load averages at the
start and the end of each run are in the results). Steps are chosen so that generation is about half of a strict round. Every candidate is
accepted, so all records that are written ahead are stale. The first and the last round are left out: one has nothing written ahead, and the
other writes nothing ahead.

`--waiting` measures the schedule alone, on any machine: the run is small, its view waits for each image and its mixing policy for each
training, so that both stages take their time without a core.

What can be hidden of a round is the shorter of writing ahead and training; what is hidden is `overlapped` of the commit records, the
seconds in which both went on. Both are slower if they compete for more than cores, so whole rounds are compared as well.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from benchmarks.chaos.world import environment, vigc
from benchmarks.common import argument_parser, write_results
from loop.store.commits import RoundCommit
from loop.store.run_store import Store
from policies.training.mixing import Mix, Replay

STRICT = "strict rounds"
MODES: dict[str, tuple[str, ...]] = {
    STRICT: ("overlap=0",),
    "overlap, keep": ("overlap=1", "stale_records=keep"),
    "overlap, correct": ("overlap=1", "stale_records=correct"),
}
"""What is compared, as overrides of the config."""

_RECIPE = "loop/recipes/shapes.yaml"
_APART = ("cluster.colocated=false", "cluster.num_engines=1", "cluster.trainer_ranks=1", "cluster.num_cpus=3")
_QUIET = ("acceptance=always", "acceptance_sets.near.seed_domain=false", "tracking.enabled=false")
_IMAGE_S, _TRAINING_S = 1.0, 38.0
"""How long the waiting view waits for an image, and the waiting mixing policy for a training."""
_NUM_IMAGES_WAITED_FOR = 40


def waiting_view(image: Image.Image) -> Image.Image:
    """The image, as a slow engine would have it."""
    time.sleep(_IMAGE_S)
    return image


@dataclass(frozen=True, kw_only=True)
class WaitingReplay(Replay):
    """`replay`, as long as a slow training."""

    def mix(self, seed_samples: pa.Table, generated: Sequence[pa.Table], num_samples: int, seed: int) -> Mix:
        time.sleep(_TRAINING_S)
        return super().mix(seed_samples, generated, num_samples, seed)


def main() -> None:
    """Run every mode, and print the seconds of a round in each."""
    parser = argument_parser(__doc__, "overlap.json")
    parser.add_argument("--num-images", type=int, default=400, help="unlabelled images of a round")
    parser.add_argument("--num-steps", type=int, default=30, help="training steps of a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of a run, at least 3")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each mode, in turn")
    parser.add_argument("--waiting", action="store_true", help="measure the schedule alone, with stages that wait")
    args = parser.parse_args()
    if args.rounds < 3:
        parser.error(f"--rounds is {args.rounds}; expected at least 3, because the first and the last are left out")
    overrides = _waiting(args.rounds) if args.waiting else _working(args.num_images, args.num_steps, args.rounds)
    modes = [mode for mode in MODES if not (args.waiting and mode == "overlap, correct")]  # correcting would wait as long as generating
    runs = [measure(mode, overrides) for _ in range(args.repeats) for mode in modes]
    report = {"overrides": overrides, "modes": summaries(runs), "runs": runs}
    write_results(args.out, report)
    print(json.dumps(report["modes"], indent=1))


def _working(num_images: int, num_steps: int, rounds: int) -> list[str]:
    images = [f"image_sets.{number}.num_images={num_images}" for number in range(3)]
    return [f"rounds={rounds}", f"training.num_steps={num_steps}", *images, *_APART, *_QUIET]


def _waiting(rounds: int) -> list[str]:
    images = [f"image_sets.{number}.num_images={_NUM_IMAGES_WAITED_FOR}" for number in range(3)]
    small = ["training.num_steps=2", "training.batch_size=8", "generation.num_shards=8", "correction=none", "filters=[parsable]"]
    waits = ["generation.view=benchmarks.overlap:waiting_view", "mixing={'benchmarks.overlap:WaitingReplay': {}}"]
    return [f"rounds={rounds}", *images, *small, *waits, *_APART, *_QUIET]


def measure(mode: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The stage seconds of each round of a run but the first and the last."""
    with tempfile.TemporaryDirectory(prefix="vigc-overlap-") as folder:
        run_dir, before = Path(folder) / "run", os.getloadavg()[0]
        command = vigc("run", _RECIPE, *overrides, *MODES[mode], "--run-dir", str(run_dir))
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment(run_dir))
        commits = Store.open(run_dir).commits()[2:-1]
    return {
        "mode": mode, "load_before": round(before, 1), "load_after": round(os.getloadavg()[0], 1),
        "rounds": [{name: round(value, 2) for name, value in commit.stage_seconds.items()} for commit in commits],
        "stale": [_stale_of(commit) for commit in commits],
    }  # fmt: skip


def _stale_of(commit: RoundCommit) -> dict[str, int]:
    return {name: count for name, count in commit.counts.items() if name.startswith("stale_")}


def summaries(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians of each mode over its rounds, and how much of a round is hidden."""
    found: dict[str, dict[str, float]] = {}
    for mode in dict.fromkeys(run["mode"] for run in runs):
        rounds = [one for run in runs if run["mode"] == mode for one in run["rounds"]]
        names = sorted({name for one in rounds for name in one})
        found[mode] = {name: round(statistics.median(one.get(name, 0.0) for one in rounds), 2) for name in names}
        if mode == STRICT:
            found[mode]["share_of_generation"] = round(found[mode]["generate_correct_filter"] / found[mode]["round"], 3)
            continue
        hidden = [one["overlapped"] / min(one["write_ahead"], one["train"]) for one in rounds]
        found[mode]["share_hidden"] = round(statistics.median(hidden), 3)
        found[mode]["speed_up"] = round(found[STRICT]["round"] / found[mode]["round"], 2)
    return found


if __name__ == "__main__":
    main()
