"""DPO (Rafailov et al. 2023, arXiv 2305.18290): one rank's part of the pairs of a job.

The reference is the model before the first step. Its log-probabilities are measured once and kept, so no second model is in memory. A
resumed job measures them again, before it restores its step checkpoint. The model and its reference are compared on the same input: images
of pairs are not augmented, and dropout is off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from actors.training.batches import Batch, BatchBuilder, Row
from actors.training.distributed import sum_over_ranks
from actors.training.inputs.forward import answer_logprobs
from actors.training.job import Progress, TrainingJob
from actors.training.losses import TrainingLog
from actors.training.order import global_batches, rank_share
from actors.training.prefetch import prefetch
from policies.records import TrainingSample


@dataclass(frozen=True, slots=True)
class PairRows:
    """Pairs, read and encoded."""

    numbers: list[int]
    """Of the pairs in their job."""
    rows: list[Row]
    """The chosen and the rejected conversation of each pair, in turn."""

    @property
    def is_usable(self) -> list[bool]:
        """Of each pair, whether both of its conversations can be trained on."""
        return [chosen.skip is None and rejected.skip is None for chosen, rejected in zip(self.rows[::2], self.rows[1::2], strict=True)]

    def cut(self, size: int) -> list[PairRows]:
        """Parts of `size` pairs, and one of what remains."""
        starts = range(0, len(self.numbers), size)
        return [PairRows(self.numbers[start : start + size], self.rows[2 * start : 2 * (start + size)]) for start in starts]


@dataclass(frozen=True, slots=True)
class PairBatch:
    """The pairs of one forward pass."""

    batch: Batch
    """Rows of the chosen and the rejected conversation of each pair, in turn."""
    reference: torch.Tensor
    """Log-probabilities of the answers by the reference in nats, [pairs, 2]."""
    is_usable: torch.Tensor
    """1 or 0, [pairs]."""
    beta: float
    scale: float
    """Share of a pair in the loss of its step."""

    def loss(self, engine: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """This pass's part of the loss of its step.

        Returns:
            the part, and for `TrainingLog.add` the sums over the pairs of their losses, of the margins above 0 and of the margins, and
            the number of pairs, [4].
        """
        reference, is_usable = self.reference.to(engine.device, torch.float32), self.is_usable.to(engine.device)
        logprobs = answer_logprobs(engine, self.batch, engine.device)[: reference.numel()].view(-1, 2)
        margins = dpo_margins(logprobs, reference, self.beta)
        losses = -torch.nn.functional.logsigmoid(margins) * is_usable
        sums = torch.stack([losses, (margins > 0) * is_usable, margins * is_usable, is_usable]).sum(1)
        return losses.sum() * self.scale, sums.detach()


class PairTraining:
    """One rank's part of the pairs of a job; every rank must make the same calls."""

    def __init__(self, job: TrainingJob, builder: BatchBuilder, left_out: frozenset[str], rank: int, world_size: int) -> None:
        """Args:
        job: with pairs.
        builder: reads and encodes conversations.
        left_out: images whose pairs are not learned from.
        rank: of this process.
        world_size: number of ranks.

        Raises:
            ValueError: the ranks cannot share the pairs of a step.
        """
        assert job.hyper.dpo is not None, "a job with pairs has it"
        self._dpo, self._hyper, self._samples, self._seed = job.hyper.dpo, job.hyper, job.pairs, job.seed
        self._builder, self._rank, self._world_size = builder, rank, world_size
        if self._dpo.pairs_per_step % world_size:
            raise ValueError(f"pairs_per_step {self._dpo.pairs_per_step} cannot be shared by {world_size} ranks; choose a multiple")
        limit = job.hyper.max_micro_batch_tokens
        num_rows = job.hyper.micro_batch_size(world_size) if limit is None else limit // job.hyper.max_tokens
        self._pairs_per_pass = max(1, num_rows // 2)
        self._usable = [number for number in range(len(self)) if self._samples[2 * number].image_id not in left_out]
        self._reference = torch.zeros(len(self), 2, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self._samples) // 2

    @property
    def num_usable(self) -> int:
        """Pairs that are learned from; after `measure_reference`."""
        return len(self._usable)

    def measure_reference(self, engine: Any, on_measured: Callable[[int], None]) -> None:
        """Make the present weights of a DeepSpeed engine the reference, and leave out the pairs that cannot be trained on.

        Args:
            engine: of the model.
            on_measured: called with the number of pairs that this rank has measured so far.
        """
        found = torch.zeros(len(self), 3, dtype=torch.float64)
        engine.module.eval()
        with torch.no_grad(), prefetch(self._to_measure()) as reading:
            for num_passes, (pairs, counts) in enumerate(reading, 1):
                logprobs = answer_logprobs(engine.module, self._builder.batch(pairs.rows), engine.device)[: len(pairs.rows)]
                if counts:
                    found[pairs.numbers, :2] = logprobs.double().cpu().view(-1, 2)
                    found[pairs.numbers, 2] = torch.tensor(pairs.is_usable, dtype=torch.float64)
                on_measured(num_passes * self._pairs_per_pass)
        engine.module.train()
        found = sum_over_ranks(found, self._world_size)
        self._reference, is_usable = found[:, :2], found[:, 2] > 0
        self._usable = [number for number in self._usable if is_usable[number]]

    def order(self) -> Iterator[list[int]]:
        """For each step, the numbers of this rank's pairs; a function of the seed."""
        steps = global_batches([1] * len(self._usable), self._dpo.pairs_per_step, self._hyper.num_steps, self._seed, length_grouping=False)
        for indices in steps:
            yield [self._usable[indices[position]] for position in rank_share(indices, self._rank, self._world_size)]

    def read(self, numbers: list[int]) -> PairRows:
        """Read and encode pairs."""
        samples = (self._samples[2 * number + side] for number in numbers for side in (0, 1))
        return PairRows(numbers, self._builder.plain_rows(enumerate(samples)))

    def batches(self, pairs: PairRows, num_pairs: int) -> list[PairBatch]:
        """The forward passes of this rank's pairs of a step, in which all ranks have `num_pairs` usable ones. Every rank makes the same
        number of passes."""
        scale = self._dpo.weight / num_pairs
        return [
            PairBatch(
                self._builder.batch(part.rows), self._reference[part.numbers], torch.tensor(part.is_usable, dtype=torch.float32),
                self._dpo.beta, scale,
            )
            for part in pairs.cut(self._pairs_per_pass)
        ]  # fmt: skip

    def _to_measure(self) -> Iterator[tuple[PairRows, bool]]:
        """The pairs of each pass of this rank, and whether they count. All ranks make the same number of passes, because ZeRO gathers
        weights in each; surplus passes count nothing."""
        size, numbers = self._pairs_per_pass, self._usable
        chunks = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        for first in range(0, len(chunks), self._world_size):
            number = first + self._rank
            yield self.read(chunks[min(number, len(chunks) - 1)]), number < len(chunks)


def pair_training(
    job: TrainingJob, builder: BatchBuilder, engine: Any, held_out: Sequence[TrainingSample], log: TrainingLog,
    on_progress: Callable[[Progress], None] | None, rank: int, world_size: int,
) -> PairTraining | None:  # fmt: skip
    """The pairs of a job with the engine's present weights as their reference; `None` if there are none to learn from. Pairs about images
    of `held_out` samples are left out. The log counts pairs. Every rank must call this.

    Raises:
        ValueError: the ranks cannot share the pairs of a step.
    """
    if not job.pairs:
        return None
    pairs = PairTraining(job, builder, frozenset(image for sample in held_out for image in sample.images), rank, world_size)

    def note(num_measured: int) -> None:
        if on_progress is not None:
            on_progress(replace(log.progress(), num_measured=num_measured))

    pairs.measure_reference(engine, note)
    log.num_pairs, log.num_skipped_pairs = pairs.num_usable, len(pairs) - pairs.num_usable
    return pairs if pairs.num_usable else None


def dpo_margins(logprobs: torch.Tensor, reference: torch.Tensor, beta: float) -> torch.Tensor:
    """What the model's implicit reward of the chosen answer exceeds that of the rejected one by, [pairs]; the DPO loss is
    `-logsigmoid` of it (equation 7).

    Args:
        logprobs: of the chosen and the rejected answer by the model, in nats, [pairs, 2].
        reference: the same by the reference.
        beta: see `policies.training.objectives.Dpo`.
    """
    chosen, rejected = (logprobs - reference).unbind(1)
    return beta * (chosen - rejected)


@contextmanager
def without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Turn dropout off. The other modules stay in training mode, which activation checkpointing needs."""
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.training]
    for module in dropouts:
        module.eval()
    yield
    for module in dropouts:
        module.train()
