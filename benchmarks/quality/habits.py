"""Ten rounds in a world with habits: what becomes of hallucination, accuracy, diversity and length, with and without the loop's parts.

    python -m benchmarks.quality.habits [--seeds 17,18,19] [--variants "full loop,no correction,..."] [--rounds 10] [--work runs/habits]

In the labelled images some things, colors and places usually go together, in all others they do not, so a model that is trained on the
labels says what is usually there. The seed model is the embedded one, trained further on such labels. Each variant is the recipe
`habits`, run by the real command with a few overrides; interrupted runs are resumed, finished ones kept.

Hallucination is measured by the world's own program: the share of answers to held-out questions with a statement that the image
contradicts, or with a thing that is not there, after every round; and by POPE's adversarial questions, which ask for what usually stands
beside the things of an image in the labelled set, before and after the run. Intervals are 95 % bootstraps over seeds and questions.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.chaos.world import vigc
from benchmarks.common import argument_parser, write_results
from benchmarks.quality.gain import interval
from loop.config.run_config import RunConfig, load_config
from loop.setup.assembly import HeldOut, build_held_out
from loop.sources.worlds.source import WorldImages
from loop.store.commits import RoundCommit
from loop.store.run_store import Store
from policies.scoring.predictions import from_table

RECIPE = Path(__file__).with_name("habits.yaml")
_ALWAYS = ("acceptance=always", "acceptance_sets.near.seed_domain=false")
_NO_FILTER = ("filters=[parsable, {length: {max_answer_words: 60}}]", "correction.options.check_premises=false")
VARIANTS: dict[str, tuple[str, ...]] = {
    "full loop": (),
    "no correction": ("correction=none", "filters=[parsable, {length: {max_answer_words: 60}}, duplicates]"),
    "no filter": _NO_FILTER,
    "replace": ("mixing.options.accumulate=false",),
    "no evidence": _ALWAYS,
    "neither filter nor evidence": (*_ALWAYS, *_NO_FILTER),
    "control": ("mixing.options.seed_share=1.0", "filters=[parsable]"),
}
WITHOUT_HABITS = ("0-0.15", "0.2-0.5", "0.5-1.0")
"""The held-out sets without habits."""
_SMALL = ("cluster.num_engines=1", "cluster.trainer_ranks=1", "cluster.num_cpus=1", "tracking.enabled=false")
_SEED_MODEL_STEPS = 400
_OF_SEED_MODEL = (
    "model=embedded", "rounds=1", "mixing.options.seed_share=1.0", "filters=[parsable]", *_ALWAYS, "training.interpolation=1.0",
    f"training.num_steps={_SEED_MODEL_STEPS}", "training.learning_rate=5.0e-4", "seed_data.num_samples=12000",
    "image_sets.0.num_images=8", *_SMALL,
)  # fmt: skip
_POPE_OBJECTS = "shapes:seed=930,num_images=200,min_shift=0.2,max_shift=0.8"
_POPE_HABITS = "shapes:seed=1,num_images=4000,max_shift=0.15,habit=0.9"


@dataclass(frozen=True)
class Measured:
    """A champion's answers to the held-out questions without habits, as flags [questions], and what its round generated."""

    right: np.ndarray
    contradicted: np.ndarray
    """With a statement that the image contradicts."""
    absent: np.ndarray
    """With a thing that is not there."""
    distinct_2: float | None
    mean_answer_words: float | None
    near: float
    """Mean score on the labelled images' like, 0..1."""


def main() -> None:
    """Run the missing variants, measure them, print the table, and write it as JSON."""
    parser = argument_parser(__doc__, "habits.json")
    parser.add_argument("--seeds", default="17,18,19", help="run seeds, separated by commas")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="some of: " + ", ".join(VARIANTS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--work", type=Path, default=Path("runs/habits"), help="folder for the runs")
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side, one engine and one trainer rank each")
    parser.add_argument("--plot", type=Path, default=Path("docs/habits.png"))
    args = parser.parse_args()
    variants, seeds = args.variants.split(","), [int(seed) for seed in args.seeds.split(",")]
    model = seed_model(args.work)
    jobs = [(variant, seed) for seed in seeds for variant in variants]
    with ThreadPoolExecutor(args.parallel) as pool:
        list(pool.map(lambda job: run(job[0], job[1], args.rounds, model, args.work), jobs))
    found = {variant: [rounds_of(folder_of(variant, seed, args.work)) for seed in seeds] for variant in variants}
    pope = {"seed model": false_yes(str(model), args.work)}
    pope |= {variant: [false_yes(str(folder_of(variant, seed, args.work)), args.work)[0] for seed in seeds] for variant in variants}
    rows = summarise(found)
    write_results(args.out, {"seeds": seeds, "rounds": args.rounds, "false_yes_adversarial": pope, "rows": rows})
    plot(rows, args.plot)
    print_rows(rows, pope)


def folder_of(variant: str, seed: int, work: Path) -> Path:
    return work / f"{variant.replace(' ', '-')}-{seed}"


def seed_model(work: Path) -> Path:
    """The embedded model, trained on labels with habits: a checkpoint's folder."""
    folder = work / "seed-model-run"
    _run_or_resume(folder, _OF_SEED_MODEL)
    return folder / Store.open(folder).commits()[-1].champion_path


def run(variant: str, seed: int, rounds: int, model: Path, work: Path) -> None:
    """Run the command line once; an interrupted run is resumed, a finished one kept."""
    config = load_config(RECIPE)
    images = [f"image_sets.{stage}.seed={2000 + 100 * seed + stage}" for stage in range(len(config.image_sets))]
    names = (f"seed={seed}", f"name={folder_of(variant, seed, work).name}", f"model={model}", f"rounds={rounds}")
    _run_or_resume(folder_of(variant, seed, work), (*names, *_SMALL, *images, *VARIANTS[variant]))


def _run_or_resume(folder: Path, overrides: Sequence[str]) -> None:
    command = ["resume", str(folder)] if (folder / "run.json").exists() else ["run", str(RECIPE), "--run-dir", str(folder), *overrides]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        subprocess.run(vigc(*command), check=True, stdout=log, stderr=log)


def rounds_of(folder: Path) -> list[Measured]:
    """What the champion of each round answers, the seed model's answers first."""
    store = Store.open(folder)
    config = RunConfig.model_validate(store.read_run().config)
    sets = {one.name: one for one in build_held_out(config.held_out, config.seed)}
    measured: list[Measured] = []
    for commit in store.commits():
        is_champion = commit.state.value != "rejected"
        answers = _answers(store, commit, sets) if is_champion else {}
        last = measured[-1] if measured else None
        assert is_champion or last is not None
        measured.append(
            Measured(
                **(answers or {name: getattr(last, name) for name in ("right", "contradicted", "absent")}),
                distinct_2=commit.metrics.get("distinct_2"),
                mean_answer_words=commit.metrics.get("mean_answer_words"),
                near=commit.metrics["accuracy/near"],
            )
        )
    return measured


def _answers(store: Store, commit: RoundCommit, sets: dict[str, HeldOut]) -> dict[str, np.ndarray]:
    predictions, _ = from_table(store.read_part(commit.file("predictions.parquet")))
    right, contradicted, absent = [], [], []
    for name in WITHOUT_HABITS:
        one = sets[name]
        assert isinstance(one.source, WorldImages)
        for question, given in zip(one.questions, predictions[f"held_out/{name}"], strict=True):
            claims = one.source.world.claims.read(one.source.scene(question.image_id), question.question, given.answer)
            right.append(given.correct)
            contradicted.append(claims.num_contradicted > 0)
            absent.append(claims.num_objects_not_there > 0)
    return {name: np.array(flags) for name, flags in (("right", right), ("contradicted", contradicted), ("absent", absent))}


def false_yes(model: str, work: Path) -> list[float]:
    """Of POPE's adversarial questions to be answered no, the share that the model answers yes, in percent."""
    data = work / "pope.jsonl"
    if not data.exists():
        objects = ["pope", "--objects", _POPE_OBJECTS, "--counts-from", _POPE_HABITS, "--split", "adversarial", "--out", str(data)]
        subprocess.run(vigc(*objects), check=True, capture_output=True)
    out = work / "pope" / Path(model).name
    command = ["evaluate", "--model", model, "--benchmark", "pope", "--data", str(data), "--images", "shapes", "--plain"]
    done = subprocess.run(vigc(*command, "--out", str(out), "--json"), check=True, capture_output=True, text=True)
    scores: dict[str, Any] = json.loads(done.stdout)
    said_yes, precision, recall = (scores[name] / 100 for name in ("yes_ratio", "precision", "recall"))
    true_positives, false_positives = said_yes * precision, said_yes * (1 - precision)  # as shares of all questions
    return [round(100 * false_positives / (1 - true_positives / recall), 2)]


def summarise(found: dict[str, list[list[Measured]]]) -> list[dict[str, Any]]:
    """One row per variant and round: shares in percent with intervals, and for every variant the last round's difference from the full
    loop's."""
    rows = []
    for variant, runs in found.items():
        num_rounds = max(map(len, runs))
        padded = [[*rounds, *[rounds[-1]] * (num_rounds - len(rounds))] for rounds in runs]  # a run may end early
        for number in range(num_rounds):
            at = [rounds[number] for rounds in padded]
            row: dict[str, Any] = {"variant": variant, "round": number, "near": round(100 * float(np.mean([one.near for one in at])), 2)}
            for name in ("right", "contradicted", "absent"):
                row[name] = interval([getattr(one, name) for one in at])
                row[f"{name}_over_seed_model"] = interval([
                    getattr(rounds[number], name).astype(float) - getattr(rounds[0], name) for rounds in padded
                ])  # fmt: skip
            for name in ("distinct_2", "mean_answer_words"):
                values = [value for one in at if (value := getattr(one, name)) is not None]
                row[name] = round(float(np.mean(values)), 4) if values else None
            rows.append(row)
        if variant != "full loop" and "full loop" in found:
            for name in ("right", "contradicted", "absent"):
                pairs = zip(runs, found["full loop"], strict=True)
                rows[-1][f"{name}_full_loop_less_this"] = interval([
                    getattr(full[-1], name).astype(float) - getattr(own[-1], name) for own, full in pairs
                ])  # fmt: skip
    return rows


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy, hallucination, diversity and length over the rounds, a line for each variant, with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.6), dpi=120, layout="constrained")
    panels = {
        "right": "answered right, %",
        "contradicted": "answers with a contradicted statement, %",
        "distinct_2": "distinct bigrams of what is generated",
        "mean_answer_words": "words of a generated answer",
    }
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for number, variant in enumerate(dict.fromkeys(str(row["variant"]) for row in rows)):
            points = [(row["round"], row[name]) for row in rows if row["variant"] == variant and row[name] is not None]
            rounds, values = zip(*points, strict=True)
            bounds = np.array([value if isinstance(value, tuple | list) else (value,) * 3 for value in values])
            axes.plot(rounds, bounds[:, 0], label=variant, marker="o", markersize=3, dashes=(6, number))
            axes.fill_between(rounds, bounds[:, 1], bounds[:, 2], alpha=0.12)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("round")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def print_rows(rows: Sequence[dict[str, Any]], pope: dict[str, list[float]]) -> None:
    """The seed model, and the last round of every variant."""
    table = Table("variant", "round", "near", "right", "contradicted", "absent", "full loop less this: contradicted", "false yes", box=None)
    last = {row["variant"]: row for row in rows}
    for name, row in {"seed model": rows[0], **last}.items():
        cells = [_cell(row.get(key)) for key in ("right", "contradicted", "absent", "contradicted_full_loop_less_this")]
        table.add_row(name, str(row["round"]), f"{row['near']:.1f}", *cells, f"{np.mean(pope[name]):.1f}" if name in pope else "")
    Console(width=150).print(table)


def _cell(value: Sequence[float] | None) -> str:
    return "" if value is None else f"{value[0]:.1f} [{value[1]:.1f}, {value[2]:.1f}]"


if __name__ == "__main__":
    main()
