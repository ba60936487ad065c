"""The effect of LLaVA's first stage and of its types of instruction data, on the embedded world.

    python -m benchmarks.speed.stages --seeds 1,2,3 --out benchmarks/results/stages.json

Stage 1 trains only the projector, on captions; stage 2 trains projector and language model on instructions; the vision tower is frozen.
The benchmark compares stages 1 and 2 with stage 2 alone for the same total number of steps, and repeats LLaVA's ablation of the data of
stage 2 (section 5.1 of its paper), with the same stage 1 and number of steps. It measures exact accuracy on held-out questions.

All variants start from one base: the vision tower of the shipped seed model, which learned patches and no language; a language model that
was drilled to say what is where, and never asked a question; and a fresh projector. A language model that never saw an image stays blind
through instruction tuning (see `loop.models.seed.curriculum`), which would leave nothing to compare.

Results are appended to `--out` as they finish and are reused; trainings resume from step checkpoints.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from actors.evaluator import Evaluator
from actors.training.checkpoint import load_model
from actors.training.core import run_local
from actors.training.job import Hyperparameters, Progress, TrainingJob
from benchmarks.common import argument_parser, write_results
from loop.config.run_config import EMBEDDED_MODEL
from loop.models.seed.curriculum import SHAPES, drills, served
from loop.models.seed.model import build_model, build_processor
from loop.monitors.progress import loss_remark
from loop.sources.shapes.source import ShapesImages
from policies.generation.instructions import QuestionType
from policies.metrics import share
from policies.records import TrainingSample

LABELLED = ShapesImages(seed=1, min_shift=0.0, max_shift=0.15, num_images=4000)
HELD_OUT = ShapesImages(seed=951, min_shift=0.0, max_shift=0.15, num_images=600)
_NUM_IMAGES_CAPTIONED = 4000

DATA: dict[str, dict[QuestionType, float]] = {
    "all": {QuestionType.CONVERSATION: 1.0, QuestionType.DETAIL: 1.0, QuestionType.COMPLEX: 1.0},
    "detail + complex": {QuestionType.DETAIL: 1.0, QuestionType.COMPLEX: 1.0},
    "conversation + 5% detail + 10% complex": {
        QuestionType.CONVERSATION: 1.0, QuestionType.DETAIL: 0.05, QuestionType.COMPLEX: 0.1
    },
    "conversation": {QuestionType.CONVERSATION: 1.0},
    "none": {},
}  # fmt: skip
"""Variants of LLaVA's table: the share of each type's records used in stage 2."""

ALONE = "all, stage 2 alone"
VARIANTS = ("all", ALONE, *list(DATA)[1:])


@dataclass(frozen=True)
class Size:
    """The amount of training; stored in every result, so that results of different sizes are not mixed."""

    looking_steps: int
    stage1_steps: int
    stage2_steps: int
    num_questions: int
    batch_size: int = 32

    def hyper(self, num_steps: int, learning_rate: float, *frozen: str) -> Hyperparameters:
        return Hyperparameters(
            self.batch_size, num_steps, learning_rate, frozen=("vision_tower", *frozen), weight_decay=0.0, min_learning_rate_ratio=0.0
        )


def main() -> None:
    """Run the missing variants, then print the table."""
    parser = argument_parser(__doc__, "stages.json")
    parser.add_argument("--seeds", default="1,2,3", help="seeds of projector, data and order, separated by commas")
    parser.add_argument("--variants", default=";".join(VARIANTS), help="some of these, separated by semicolons")
    parser.add_argument("--looking-steps", type=int, default=800, help="drills of the base's language model")
    parser.add_argument("--stage1-steps", type=int, default=150)
    parser.add_argument("--stage2-steps", type=int, default=350)
    parser.add_argument("--questions", type=int, default=600, help="held-out questions, a third of each type")
    parser.add_argument("--work", type=Path, default=Path("runs/stages"), help="folder for the checkpoints")
    parser.add_argument("--base-only", action="store_true", help="make the base and stop")
    args = parser.parse_args()
    disable_progress_bar()
    torch.set_num_threads(1)
    size = Size(args.looking_steps, args.stage1_steps, args.stage2_steps, args.questions)
    base = make_base(args.work, size)
    for seed in [] if args.base_only else map(int, args.seeds.split(",")):
        for variant in args.variants.split(";"):
            if find(read(args.out), variant, seed, size) is None:
                append(args.out, measure(base, variant, seed, size, args.work))
    print_report(read(args.out), size)


def make_base(work: Path, size: Size) -> Path:
    """The shipped vision tower with a language model that was drilled to look. The projector is replaced for each seed."""
    start = work / "tower"
    if not start.exists():
        torch.manual_seed(0)
        model = build_model()
        model.model.vision_tower.load_state_dict(load_model(EMBEDDED_MODEL).model.vision_tower.state_dict())
        model.save_pretrained(start)
        build_processor().save_pretrained(start)
    hyper = replace(size.hyper(size.looking_steps, 1e-3), warmup_share=0.1, min_learning_rate_ratio=0.1)
    samples = drills(SHAPES.labelled, hyper.num_steps * hyper.batch_size, np.random.default_rng(0))
    run(start, work / f"base-{size.looking_steps}", samples, 0, hyper)
    return work / f"base-{size.looking_steps}"


def measure(base: Path, variant: str, seed: int, size: Size, work: Path) -> dict[str, Any]:
    """Train and evaluate a variant; returns a row of the results."""
    started = time.perf_counter()
    checkpoint, trained = fresh_projector(base, work / f"fresh-{size.looking_steps}-{seed}", seed), {}
    name = f"{size.looking_steps}-{size.stage1_steps}-{size.stage2_steps}-{seed}"
    if variant != ALONE:
        hyper = size.hyper(size.stage1_steps, 2e-3, "language_model")
        checkpoint, trained["stage 1"] = run(
            checkpoint, work / f"stage1-{name}", LABELLED.captions(_NUM_IMAGES_CAPTIONED, seed), seed, hyper
        )
    records = instructions(DATA["all" if variant == ALONE else variant], seed)
    if records:
        num_steps = size.stage2_steps + (size.stage1_steps if variant == ALONE else 0)
        folder = work / f"{variant.replace(' ', '').replace('%', '').replace(',', '-')}-{name}"
        checkpoint, trained["stage 2"] = run(checkpoint, folder, records, seed, size.hyper(num_steps, 5e-4))
    accuracy = ask(checkpoint, size.num_questions)
    seconds = time.perf_counter() - started
    print(f"{variant}, seed {seed}: {accuracy}, {seconds:.0f} s", flush=True)
    return {
        "variant": variant, "seed": seed, "size": asdict(size), "num_records": len(records), "accuracy": accuracy, "final_loss": trained,
        "seconds": round(seconds, 1),
    }  # fmt: skip


def fresh_projector(base: Path, folder: Path, seed: int) -> Path:
    """The base with a newly initialised projector."""
    if not folder.exists():
        torch.manual_seed(seed)
        model = load_model(base)
        model.model.multi_modal_projector.load_state_dict(build_model().model.multi_modal_projector.state_dict())
        model.save_pretrained(folder)
        build_processor().save_pretrained(folder)
    return folder


def instructions(shares: dict[QuestionType, float], seed: int) -> list[TrainingSample]:
    """Whole conversations, a share of each type. The records of a type do not depend on the other shares."""
    chosen = []
    for question_type, part in shares.items():
        records = [one for one in LABELLED.conversations(None, seed) if one.question_type == question_type]
        chosen += records[: round(part * len(records))]
    return chosen


def run(base: Path, folder: Path, samples: Sequence[TrainingSample], seed: int, hyper: Hyperparameters) -> tuple[Path, float]:
    """Train, or reuse a finished training; returns the checkpoint and its last loss."""
    job = TrainingJob(base, folder, samples, seed, hyper, steps_folder=folder.with_name(f"{folder.name}.steps"), steps_between=50)

    def say(now: Progress) -> None:
        if now.step % 50 == 0:
            print(f"{folder.name}: step {now.step} of {now.num_steps}, {loss_remark(now.loss)}", flush=True)

    return folder, run_local(job, LABELLED, on_progress=say).final_loss


def ask(checkpoint: Path, num_questions: int) -> dict[str, float]:
    """Exact accuracy in percent, by type and overall."""
    questions = HELD_OUT.questions(num_questions, seed=0)
    predictions = Evaluator(served(checkpoint, batch_size=96)).evaluate(HELD_OUT, questions, max_new_tokens=64)
    right: dict[str, list[bool]] = {str(kind): [] for kind in QuestionType} | {"all": []}
    for question, prediction in zip(questions, predictions, strict=True):
        assert question.question_id == prediction.question_id
        right[question.question_type].append(prediction.correct)
        right["all"].append(prediction.correct)
    return {kind: round(100 * share(flags), 2) for kind, flags in right.items()}


# ---- results


def read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def append(path: Path, row: dict[str, Any]) -> None:
    scratch = path.with_suffix(".tmp")
    write_results(scratch, [*read(path), row])
    scratch.replace(path)


def find(rows: Sequence[dict[str, Any]], variant: str, seed: int, size: Size) -> dict[str, Any] | None:
    return next((row for row in rows if (row["variant"], row["seed"], row["size"]) == (variant, seed, asdict(size))), None)


def print_report(rows: Sequence[dict[str, Any]], size: Size) -> None:
    """Print mean and range over the seeds for each variant."""
    kinds = [*map(str, QuestionType), "all"]
    table = Table("data of stage 2", "seeds", *kinds, box=None)
    for variant in VARIANTS:
        found = [row["accuracy"] for row in rows if row["variant"] == variant and row["size"] == asdict(size)]
        if found:
            values = {kind: [one[kind] for one in found] for kind in kinds}
            cells = [f"{np.mean(numbers):.1f} [{min(numbers):.1f}, {max(numbers):.1f}]" for numbers in values.values()]
            table.add_row(variant, str(len(found)), *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
