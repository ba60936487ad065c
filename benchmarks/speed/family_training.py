"""Every family on the trainer, compared with transformers' `Trainer` on the same model and samples.

    python -m benchmarks.speed.family_training [FAMILY ...]

The models are those of `benchmarks.speed.families`. Both run in this process with one torch thread, in turn, in float32, with the same
fused AdamW, schedule, clipping, batches and loss mask. The `Trainer` gets images and texts as common scripts do: its collator renders the
chat template and calls the processor on the batch. Opened images and its labels are given to it. The clock runs from the end of the warm-up
steps to the last step.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import Trainer, TrainerCallback, TrainingArguments

from actors.processors import generation_end_ids, load_processor
from actors.training.checkpoint import load_model
from actors.training.core import run_local
from actors.training.inputs.encoding import IGNORED, ConversationEncoder
from actors.training.job import Hyperparameters, TrainingJob
from actors.training.order import global_batches
from actors.training.samples import lengths_of
from benchmarks.common import argument_parser, write_results
from loop.sources.shapes.source import ShapesImages
from policies.records import TrainingSample
from tests.actors.engines.families import FAMILIES

_BATCH_SIZE = 8
_NUM_STEPS = 48
_NUM_WARMUP = 3
_NUM_PASSES = 3
_IMAGES = ShapesImages(seed=1, min_shift=0.0, max_shift=0.15, num_images=_BATCH_SIZE * _NUM_STEPS // _NUM_PASSES)
_HYPER = Hyperparameters(_BATCH_SIZE, _NUM_STEPS, 2e-5)


@dataclass(frozen=True)
class Row:
    """One family: tokens per second after the warm-up, without padding, of the fastest run."""

    family: str
    trainer: float
    """transformers' `Trainer`."""
    ours: float
    trainer_per_cpu: float
    """Per second of the process's CPU time, which other load on the machine disturbs less."""
    ours_per_cpu: float


def main() -> None:
    """Measure, print the table, write it as JSON."""
    parser = argument_parser(__doc__, "family_training.json")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"by default all of {', '.join(FAMILIES)}")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for family in args.families or FAMILIES:
        with tempfile.TemporaryDirectory(prefix="vigc-families-") as scratch:
            rows.append(compare(family, FAMILIES[family][0](Path(scratch)), args.runs))
    print_rows(rows)
    write_results(args.out, rows)


def print_rows(rows: list[Row]) -> None:
    table = Table("family", "tokens/s, Trainer", "ours", "ratio", "ratio per CPU second", box=None)
    for row in rows:
        ratios = (f"{row.ours / row.trainer:.2f}", f"{row.ours_per_cpu / row.trainer_per_cpu:.2f}")
        table.add_row(row.family, f"{row.trainer:.0f}", f"{row.ours:.0f}", *ratios)
    Console(width=120).print(table)


class Opened:
    """The benchmark's images, each rendered once."""

    def image_ids(self) -> list[str]:
        return _IMAGES.image_ids()

    def open(self, image_id: str) -> Image.Image:
        return _opened(image_id)


@cache
def _opened(image_id: str) -> Image.Image:
    return _IMAGES.open(image_id)


class _Clock:
    """Wall-clock and CPU seconds between the end of the warm-up and the last step."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, float]] = []

    def step(self, num_done: int) -> None:
        if num_done in (_NUM_WARMUP, _NUM_STEPS):
            self._marks.append((time.perf_counter(), time.process_time()))

    def seconds(self) -> tuple[float, float]:
        (wall, cpu), (wall_end, cpu_end) = self._marks
        return wall_end - wall, cpu_end - cpu


def compare(family: str, checkpoint: Path, num_runs: int) -> Row:
    """Train the model of `checkpoint` in both ways, in turn, `num_runs` times each."""
    samples = _IMAGES.conversations(_IMAGES.num_images, seed=0)
    processor = load_processor(checkpoint)
    encoder = ConversationEncoder(processor, _HYPER.max_tokens, generation_end_ids(checkpoint))
    batches = list(global_batches(lengths_of(samples), _BATCH_SIZE, _NUM_STEPS, 0, length_grouping=True))
    texts = [encoder.encode(sample.turns, _opened(sample.image_id).size) for sample in samples]
    num_tokens = sum(len(texts[index].ids) for batch in batches[_NUM_WARMUP:] for index in batch)
    labels = {id(sample): text.labels for sample, text in zip(samples, texts, strict=True)}
    order = [samples[index] for batch in batches for index in batch]
    ours, theirs = list[tuple[float, float]](), list[tuple[float, float]]()
    for _ in range(num_runs):
        theirs.append(_run_transformers(checkpoint, order, _collator(processor, labels)))
        ours.append(_run_ours(checkpoint, samples))
    (wall, cpu), (our_wall, our_cpu) = (tuple(map(min, zip(*found, strict=True))) for found in (theirs, ours))
    return Row(family, num_tokens / wall, num_tokens / our_wall, num_tokens / cpu, num_tokens / our_cpu)


def _run_ours(checkpoint: Path, samples: list[TrainingSample]) -> tuple[float, float]:
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        job = TrainingJob(checkpoint, Path(folder) / "out", samples, 0, _HYPER)
        run_local(job, Opened(), on_progress=lambda progress: clock.step(progress.step))
    return clock.seconds()


def _run_transformers(
    checkpoint: Path, order: list[TrainingSample], collate: Callable[[list[TrainingSample]], dict[str, Any]]
) -> tuple[float, float]:
    clock, hyper = _Clock(), _HYPER

    class Ticks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            clock.step(state.global_step)

    class InOrder(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(range(len(order)))

    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ):
        os.environ.pop("LOCAL_RANK", None)  # set for DeepSpeed; accelerate would look for other ranks
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=_BATCH_SIZE, max_steps=_NUM_STEPS, learning_rate=hyper.learning_rate,
            optim="adamw_torch_fused", adam_beta1=hyper.betas[0], adam_beta2=hyper.betas[1], weight_decay=hyper.weight_decay,
            lr_scheduler_type="cosine", warmup_steps=round(hyper.warmup_share * _NUM_STEPS), max_grad_norm=hyper.max_grad_norm,
            logging_strategy="no", save_strategy="no", report_to="none", use_cpu=True, remove_unused_columns=False, disable_tqdm=True,
        )  # fmt: skip
        dataset: Any = order
        InOrder(load_model(checkpoint), arguments, data_collator=collate, train_dataset=dataset, callbacks=[Ticks()]).train()
    return clock.seconds()


def _collator(processor: Any, labels: dict[int, Any]) -> Callable[[list[TrainingSample]], dict[str, Any]]:
    """Calls the processor on the texts and images of a batch, as common scripts do; the labels of each sample are known."""

    def collate(samples: list[TrainingSample]) -> dict[str, Any]:
        texts = [processor.apply_chat_template(_messages(sample)) for sample in samples]
        images = [[_opened(sample.image_id)] for sample in samples]
        batch = processor(text=texts, images=images, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
        targets = torch.full_like(batch["input_ids"], IGNORED)
        for row, sample in enumerate(samples):
            known = torch.from_numpy(labels[id(sample)][: targets.shape[1]])
            targets[row, : len(known)] = known
        return {**batch, "labels": targets}

    return collate


def _messages(sample: TrainingSample) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for user, assistant in sample.turns:
        messages.append({"role": "user", "content": [{"type": "text", "text": user}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": assistant}]})
    messages[0]["content"].insert(0, {"type": "image"})
    return messages


if __name__ == "__main__":
    main()
