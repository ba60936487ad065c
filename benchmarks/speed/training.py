"""The trainer compared with a plain `transformers.Trainer` loop: tokens per second and memory, on the embedded model.

    python -m benchmarks.speed.training --out benchmarks/results/training.json

Both train the same model in float32 on the same batches, with the same fused AdamW, schedule, clipping and number of threads, in separate
processes that take turns; figures are medians over the repeats. The Trainer runs in two forms: `plain` reads images and renders the chat
template in its collator, as scripts do; `prepared` gets finished tensors, whose preparation is not counted, so that only the loops are
compared. Training takes three epochs, as in LLaVA's second stage. The clock runs from the end of the warm-up steps to the last step;
loading and writing are excluded.

Besides wall-clock time, rank 0's own CPU time is reported, which is the better measure on a machine with other load.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from actors.process.network import LOOPBACK
from actors.processors import load_processor
from actors.training.batches import BatchBuilder
from actors.training.checkpoint import load_model
from actors.training.core import Trainer
from actors.training.distributed import join_process_group, reserve_port
from actors.training.inputs.encoding import IGNORED, ConversationEncoder
from actors.training.job import Hyperparameters, Progress, TrainingJob
from actors.training.order import global_batches
from actors.training.pixels import Augmentation, PixelReader
from actors.training.samples import lengths_of
from benchmarks.common import argument_parser, write_results
from loop.config.run_config import EMBEDDED_MODEL
from loop.sources.shapes.source import ShapesImages
from policies.records import TrainingSample

IMAGES = ShapesImages(seed=1, min_shift=0.0, max_shift=0.15, num_images=2000)
NUM_PASSES = 3
_ROW_TOKENS = 512
_PASSES = {"rows": "padded", "packed": "packed"}
_JOIN_TIMEOUT_S = 300.0
_WAIT_S = 1800.0


@dataclass(frozen=True)
class Task:
    """The work of one process group."""

    kind: str
    """`ours`, `plain` or `prepared`; `rows` and `packed` are ours with passes of `_ROW_TOKENS` tokens."""
    num_ranks: int
    zero_stage: int
    batch_size: int
    num_steps: int
    num_warmup: int

    def hyper(self) -> Hyperparameters:
        stage: Any = self.zero_stage
        limit = _ROW_TOKENS if self.kind in ("rows", "packed") else None
        return Hyperparameters(
            self.batch_size, self.num_steps, 2e-5, frozen=("vision_tower",), zero_stage=stage, max_tokens=_ROW_TOKENS,
            max_micro_batch_tokens=limit, packing=self.kind == "packed", length_grouping=self.kind != "packed",
        )  # fmt: skip

    def samples(self) -> list[TrainingSample]:
        return IMAGES.conversations(self.num_steps * self.batch_size // NUM_PASSES, seed=0)

    def batches(self) -> list[list[int]]:
        """Sample indices per step, in the trainer's order."""
        lengths = lengths_of(self.samples())
        return list(global_batches(lengths, self.batch_size, self.num_steps, 0, length_grouping=self.hyper().length_grouping))


def main() -> None:
    """Measure, print the table and write it as JSON."""
    parser = argument_parser(__doc__, "training.json")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=4, help="steps before the clock starts")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--zero-stages", default="1,2,3", help="stages that two ranks are measured with; empty for none")
    parser.add_argument("--packing", action="store_true", help="measure padded rows against packed ones instead")
    args = parser.parse_args()
    size = (args.batch_size, args.steps, args.warmup)
    kinds = ("rows", "packed") if args.packing else ("ours", "plain", "prepared")
    tasks = [Task(kind, 1, 0, *size) for kind in kinds]
    tasks += [Task("ours", 2, int(stage), *size) for stage in args.zero_stages.split(",") if stage]
    found: dict[Task, list[dict[str, float]]] = {task: [] for task in tasks}
    for repeat in range(args.repeats):
        for task in tasks[repeat % len(tasks) :] + tasks[: repeat % len(tasks)]:
            found[task].append(measure(task))
            print(f"repeat {repeat + 1}: {title(task)}: {found[task][-1]}", flush=True)
    rows = [{"loop": title(task), **median(results), "repeats": results} for task, results in found.items()]
    report = {"batch_size": args.batch_size, "steps": args.steps - args.warmup, "model": "embedded", "precision": "fp32", "rows": rows}
    write_results(args.out, report)
    print_report(rows)


def title(task: Task) -> str:
    if task.kind in _PASSES:
        return f"this trainer, 1 rank, passes of {_ROW_TOKENS} tokens, {_PASSES[task.kind]}"
    if task.kind != "ours":
        return f"transformers.Trainer, {task.kind}"
    return "this trainer, 1 rank" if task.num_ranks == 1 else f"this trainer, {task.num_ranks} ranks, ZeRO {task.zero_stage}"


def median(results: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in results) for name in results[0]}


def measure(task: Task) -> dict[str, float]:
    """Run a task in its own processes; returns rank 0's measurements."""
    context = multiprocessing.get_context("spawn")
    port, answer = context.Queue(), context.Queue()
    ranks = [context.Process(target=_run, args=(task, rank, port, answer)) for rank in range(task.num_ranks)]
    for process in ranks:
        process.start()
    result = answer.get(timeout=_WAIT_S)
    for process in ranks:
        process.join(_WAIT_S)
        assert process.exitcode == 0, f"{task} ended with {process.exitcode}"
    return result


def print_report(rows: list[dict[str, Any]]) -> None:
    """Print throughput, also relative to one rank of this trainer."""
    table = Table("loop", "tokens/s", "tokens per CPU second", "peak memory, MB", "of it for training, MB", "CPU time, ours = 1", box=None)
    ours = rows[0]["tokens_per_cpu_s"]
    for row in rows:
        numbers = [f"{row[name]:.0f}" for name in ("tokens_per_s", "tokens_per_cpu_s", "peak_mb", "grown_mb")]
        table.add_row(row["loop"], *numbers, f"{ours / row['tokens_per_cpu_s']:.2f}")
    Console(width=140).print(table)


# ---- in the processes


class _Clock:
    """Wall-clock and CPU time since the end of the warm-up."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._marks: dict[int, tuple[float, float]] = {}
        self._before_mb = psutil.Process().memory_info().rss / 1e6

    def step(self, num_done: int) -> None:
        if num_done in (self._task.num_warmup, self._task.num_steps):
            self._marks[num_done] = (time.perf_counter(), time.process_time())

    def result(self, num_tokens: int) -> dict[str, float]:
        first, last = self._marks[self._task.num_warmup], self._marks[self._task.num_steps]
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 * 1.048576
        return {
            "tokens_per_s": num_tokens / (last[0] - first[0]), "tokens_per_cpu_s": num_tokens / (last[1] - first[1]),
            "peak_mb": peak_mb, "grown_mb": peak_mb - self._before_mb, "num_tokens": num_tokens,
        }  # fmt: skip


def _run(task: Task, rank: int, port: Any, answer: Any) -> None:
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = _run_transformers(task) if task.kind in ("plain", "prepared") else _run_ours(task, rank, port)
    if rank == 0:
        answer.put(clock.result(_num_tokens(task)))


def _run_ours(task: Task, rank: int, port: Any) -> _Clock:
    listener = reserve_port(LOOPBACK) if rank == 0 else None
    if listener is not None:
        for _ in range(task.num_ranks - 1):
            port.put(listener.getsockname()[1])
    number = listener.getsockname()[1] if listener is not None else port.get(timeout=_JOIN_TIMEOUT_S)
    join_process_group(rank, task.num_ranks, LOOPBACK, number, LOOPBACK, listener, _JOIN_TIMEOUT_S)
    clock = _Clock(task)

    def note(progress: Progress) -> None:
        clock.step(progress.step)

    with tempfile.TemporaryDirectory() as folder:
        job = TrainingJob(EMBEDDED_MODEL, Path(folder) / "out", task.samples(), 0, task.hyper())
        Trainer(job, IMAGES, rank=rank, world_size=task.num_ranks, on_progress=note).run()
    return clock


def _run_transformers(task: Task) -> _Clock:
    from transformers import Trainer as TransformersTrainer
    from transformers import TrainerCallback, TrainingArguments

    clock, hyper, samples = _Clock(task), task.hyper(), task.samples()
    model, collate = load_model(EMBEDDED_MODEL), (_plain if task.kind == "plain" else _prepared)(task)
    model.model.vision_tower.requires_grad_(False)

    class Ticks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            clock.step(state.global_step)

    class InOrder(TransformersTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(range(task.num_steps * task.batch_size))

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=task.batch_size, max_steps=task.num_steps, learning_rate=hyper.learning_rate,
            optim="adamw_torch_fused", adam_beta1=hyper.betas[0], adam_beta2=hyper.betas[1], weight_decay=hyper.weight_decay,
            lr_scheduler_type="cosine", warmup_steps=round(hyper.warmup_share * hyper.num_steps), max_grad_norm=hyper.max_grad_norm,
            logging_strategy="no", save_strategy="no", report_to="none", use_cpu=True, remove_unused_columns=False, disable_tqdm=True,
        )  # fmt: skip
        order: Any = [samples[index] for batch in task.batches() for index in batch]
        InOrder(model, arguments, data_collator=collate, train_dataset=order, callbacks=[Ticks()]).train()
    return clock


def _plain(task: Task) -> Callable[[list[TrainingSample]], dict[str, Any]]:
    """A collator as in common scripts: the processor handles images and conversations of every batch."""
    processor = load_processor(EMBEDDED_MODEL)
    processor.tokenizer.padding_side = "right"

    def collate(samples: list[TrainingSample]) -> dict[str, Any]:
        messages = [list(_messages(sample)) for sample in samples]
        batch = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, padding=True, return_tensors="pt"
        )
        mask = torch.as_tensor(np.asarray(batch.pop("assistant_masks")), dtype=torch.bool)
        return {**batch, "labels": batch["input_ids"].masked_fill(~mask, IGNORED)}

    return collate


def _messages(sample: TrainingSample) -> Iterator[dict[str, Any]]:
    for number, (user, assistant) in enumerate(sample.turns):
        image = [{"type": "image", "image": IMAGES.open(sample.image_id)}] if number == 0 else []
        yield {"role": "user", "content": [*image, {"type": "text", "text": user}]}
        yield {"role": "assistant", "content": [{"type": "text", "text": assistant}]}


def _prepared(task: Task) -> Callable[[list[TrainingSample]], dict[str, Any]]:
    """A collator that returns tensors prepared before the training."""
    builder = _builder(task)
    samples = task.samples()
    ready = iter(
        [
            builder.build([(position, samples[index]) for position, index in enumerate(batch)], step)
            for step, batch in enumerate(task.batches())
        ]
    )

    def collate(_: list[TrainingSample]) -> dict[str, Any]:
        batch = next(ready)
        return {**batch.inputs, "labels": batch.labels}

    return collate


def _builder(task: Task) -> BatchBuilder:
    processor = load_processor(EMBEDDED_MODEL)
    augmentation = Augmentation(task.hyper(), processor.image_processor, 0)
    encoder = ConversationEncoder(processor, task.hyper().max_tokens)
    return BatchBuilder(encoder, PixelReader(processor.image_processor, IMAGES), augmentation, processor.tokenizer.pad_token_id)


def _num_tokens(task: Task) -> int:
    """Tokens of the measured steps, without padding."""
    builder, samples = _builder(task), task.samples()
    return sum(
        len(row.text.ids)
        for step, batch in enumerate(task.batches())
        if step >= task.num_warmup
        for row in builder.rows(enumerate(samples[i] for i in batch), step)
    )


if __name__ == "__main__":
    main()
