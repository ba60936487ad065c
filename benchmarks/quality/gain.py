"""The gain of the loop on an embedded world, compared with a control and with ablations of its parts.

    python -m benchmarks.quality.gain [--recipe shapes|drawings] --seeds 17,18,19 --out benchmarks/results/gain.json

Every variant is the recipe, run by the real command with a few overrides. The control shares everything but the generated
data: steps, training schedule, augmentation, acceptance; it trains on seed data alone. Each seed changes the run seed and the unlabelled
images; all variants start from the shipped seed model. Existing runs in the work folder are resumed, so an interrupted benchmark
continues.

Intervals are 95 % percentile bootstraps over seeds and, within a seed, over questions; differences are paired by question.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.chaos.world import vigc
from benchmarks.common import argument_parser, write_results
from loop.config.run_config import RunConfig, load_config
from loop.store.commits import RoundCommit, champion_commit
from loop.store.run_store import Store
from policies.scoring.predictions import from_table

RECIPES = Path("loop/recipes")
UNLABELLED_SEED = 1000
"""Image set i of run seed s is drawn from world 1000 + 10 s + i, so that no two runs share images."""

CONTROL = "control"
VARIANTS: dict[str, tuple[str, ...]] = {
    "loop": (),
    CONTROL: (  # generated data is not used, so it has only a few images
        "mixing.options.seed_share=1.0",
        "filters=[parsable]",
        "acceptance.options.min_diversity_ratio=0",
        "acceptance.options.min_type_ratio=0",
        "acceptance.options.max_length_ratio=1000",  # no guards on generated data, which the control lacks
    ),
    "no correction": (
        "correction=none",
        "filters=[parsable, {length: {max_answer_words: 60}}, duplicates]",
    ),
    "no filter": ("filters=[parsable, {length: {max_answer_words: 60}}]", "correction.options.check_premises=false"),
    "replace": ("mixing.options.accumulate=false",),
    "loop on vllm": ("engine.kind=vllm",),
}

_MAIN = ("loop", CONTROL)
_NUM_IMAGES_OF_CONTROL = 8

Flags = dict[str, np.ndarray]
"""Held-out set -> whether each question was answered right, bool [questions]."""


def main() -> None:
    """Run the missing variants, then print the table and write it as JSON."""
    parser = argument_parser(__doc__, "gain.json")
    parser.add_argument("--recipe", default="shapes", help="name of a recipe on an embedded world")
    parser.add_argument("--seeds", default="17,18,19", help="run seeds, separated by commas")
    parser.add_argument("--ablation-seeds", help="run seeds of the variants other than loop and control; default: --seeds")
    parser.add_argument("--variants", default=",".join(list(VARIANTS)[:-1]), help="some of: " + ", ".join(VARIANTS))
    parser.add_argument("--reference", default=CONTROL, help="variant that the others are compared with")
    parser.add_argument("--questions", type=int, default=500, help="held-out questions per set")
    parser.add_argument("--work", type=Path, default=Path("runs/gain"), help="folder for the runs")
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side, one engine and one trainer rank each")
    parser.add_argument("--plot", type=Path, default=Path("docs/gain.png"))
    args = parser.parse_args()
    recipe, work = RECIPES / f"{args.recipe}.yaml", args.work / args.recipe
    config = load_config(recipe)
    seeds, fewer = [[int(seed) for seed in text.split(",")] for text in (args.seeds, args.ablation_seeds or args.seeds)]
    seeds_of = {variant: seeds if variant in _MAIN else fewer for variant in args.variants.split(",")}
    with ThreadPoolExecutor(args.parallel) as pool:
        jobs = sorted(((variant, seed) for variant, own in seeds_of.items() for seed in own), key=lambda job: (job[0] not in _MAIN, job[1]))
        list(pool.map(lambda job: run(recipe, config, job[0], job[1], work, args.questions), jobs))
    sets = list(config.held_out)
    results = {variant: {seed: champions(folder_of(variant, seed, work), sets) for seed in own} for variant, own in seeds_of.items()}
    report = summarise(results, sets, args.reference)
    write_results(args.out, {"recipe": args.recipe, "seeds": seeds_of, "questions": args.questions, "rows": report})
    plot(report, args.plot)
    print_report(report, args.reference)


def folder_of(variant: str, seed: int, work: Path) -> Path:
    return work / f"{variant.replace(' ', '-')}-{seed}"


def run(recipe: Path, config: RunConfig, variant: str, seed: int, work: Path, num_questions: int) -> None:
    """Run the command line once; an interrupted run is resumed, a finished one kept."""
    folder = folder_of(variant, seed, work)
    if (folder / "run.json").exists():
        command = ["resume", str(folder)]
    else:
        stages = range(len(config.image_sets))
        images = [f"image_sets.{stage}.seed={UNLABELLED_SEED + 10 * seed + stage}" for stage in stages]
        if variant == CONTROL:
            images += [f"image_sets.{stage}.num_images={_NUM_IMAGES_OF_CONTROL}" for stage in stages]
        questions = [f"held_out.{name}.{key}={num_questions}" for name in config.held_out for key in ("num_questions", "data.num_images")]
        size = [
            "cluster.num_engines=1",
            "cluster.trainer_ranks=1",
            "cluster.num_cpus=1",
            "tracking.enabled=false",
        ]
        names = [f"seed={seed}", f"name={folder.name}"]
        command = ["run", str(recipe), "--run-dir", str(folder), *names, *size, *images, *questions, *VARIANTS[variant]]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        subprocess.run(vigc(*command), check=True, stdout=log, stderr=log)


def champions(folder: Path, sets: Sequence[str]) -> tuple[Flags, Flags]:
    """The questions of the held-out sets that the seed model and the last champion answered right."""
    store = Store.open(folder)
    commits = store.commits()
    return _flags(store, commits[0], sets), _flags(store, champion_commit(commits), sets)


def _flags(store: Store, commit: RoundCommit, sets: Sequence[str]) -> Flags:
    predictions, _ = from_table(store.read_part(commit.file("predictions.parquet")))
    return {name: np.array([one.correct for one in predictions[f"held_out/{name}"]]) for name in sets}


def summarise(results: dict[str, dict[int, tuple[Flags, Flags]]], sets: Sequence[str], reference: str) -> list[dict[str, object]]:
    """One row per variant and set: accuracy, gain over the seed model and gain over the reference, with intervals, in points."""
    rows = []
    others = results.get(reference, {})
    for variant, runs in results.items():
        for name in sets:
            row: dict[str, object] = {"variant": variant, "set": name, "accuracy": interval([last[name] for _, last in runs.values()])}
            row["over_seed"] = interval([last[name].astype(float) - first[name] for first, last in runs.values()])
            if variant != reference and others.keys() >= runs.keys():
                row[f"over_{reference}"] = interval([last[name].astype(float) - others[seed][1][name] for seed, (_, last) in runs.items()])
            rows.append(row)
    return rows


def interval(per_seed: Sequence[np.ndarray], num_resamples: int = 4000) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval over seeds and questions, in percent."""
    rng = np.random.default_rng(0)
    values = np.stack(per_seed).astype(float)
    num_seeds, num_questions = values.shape
    means = np.empty(num_resamples)
    for index in range(num_resamples):
        seeds = rng.integers(num_seeds, size=num_seeds)
        questions = rng.integers(num_questions, size=num_questions)
        means[index] = values[seeds][:, questions].mean()
    low, high = np.percentile(means, [2.5, 97.5])
    return round(100 * values.mean(), 2), round(100 * low, 2), round(100 * high, 2)


def plot(rows: Sequence[dict[str, object]], path: Path) -> None:
    """Plot the gain over the seed model with intervals, one group of bars per held-out set."""
    from matplotlib.figure import Figure

    variants, sets = (list(dict.fromkeys(str(row[name]) for row in rows)) for name in ("variant", "set"))
    figure = Figure(figsize=(8, 3.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(variants)
    for number, variant in enumerate(variants):
        gains = np.array([row["over_seed"] for row in rows if row["variant"] == variant], dtype=float)
        places = np.arange(len(sets)) + (number - (len(variants) - 1) / 2) * width
        errors = [gains[:, 0] - gains[:, 1], gains[:, 2] - gains[:, 0]]
        axes.bar(places, gains[:, 0], width, yerr=errors, capsize=2, label=variant, error_kw={"linewidth": 0.8})
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(range(len(sets)), sets)
    axes.set_ylabel("points over the seed model")
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def print_report(rows: Sequence[dict[str, object]], reference: str) -> None:
    table = Table("variant", "set", "accuracy, %", "over the seed model", f"over the {reference}", box=None)
    for row in rows:
        cells = [_cell(row.get(key)) for key in ("accuracy", "over_seed", f"over_{reference}")]
        table.add_row(str(row["variant"]), str(row["set"]), *cells)
    Console(width=110).print(table)


def _cell(value: object) -> str:
    if not isinstance(value, tuple | list):
        return ""
    mean, low, high = value
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    main()
