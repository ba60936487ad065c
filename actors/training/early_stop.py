"""Early stop: ends a training whose loss on held-out conversations no longer falls, and keeps the weights of the best evaluation.

Everything is a function of job and seed: a resumed training makes the same evaluations, decisions and weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from actors.training.batches import Batch
from actors.training.distributed import sum_over_ranks
from actors.training.inputs.forward import summed_loss
from actors.training.job import EarlyStop, TrainerError
from actors.training.steps.best import BestWeights, Measured
from policies.records import TrainingSample


def split_by_image(samples: Sequence[TrainingSample], num_held_out: int, seed: int) -> tuple[list[TrainingSample], list[TrainingSample]]:
    """Hold out about `num_held_out` different conversations.

    Conversations that share an image, also through others, stay together: no image is on both sides.

    Returns:
        the samples to train on, and those held out, each of the latter once.

    Raises:
        ValueError: more than half of the samples would be held out.
    """
    groups = _sharing_images(samples)
    held: dict[tuple[object, ...], TrainingSample] = {}
    left_out: set[int] = set()
    for number in np.random.default_rng([seed, 3]).permutation(len(groups)).tolist():
        if len(held) >= num_held_out:
            break
        left_out.update(groups[number])
        held |= {(samples[index].images, samples[index].turns): samples[index] for index in groups[number]}
    if 2 * len(left_out) > len(samples):
        raise ValueError(
            f"early_stop would hold out {len(left_out)} of {len(samples)} samples, those about {len(held)} conversations and their images; "
            "lower early_stop.num_samples, or give more data"
        )
    return [sample for index, sample in enumerate(samples) if index not in left_out], list(held.values())


def _sharing_images(samples: Sequence[TrainingSample]) -> list[list[int]]:
    """Indices of samples that share images, directly or through others, in the order of their first samples."""
    first_of: dict[str, int] = {}
    parent = list(range(len(samples)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for index, sample in enumerate(samples):
        for image_id in sample.images:
            one, other = sorted((root(index), root(first_of.setdefault(image_id, index))))
            parent[other] = one
    groups: dict[int, list[int]] = {}
    for index in range(len(samples)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


class EarlyStopping:
    """One rank's part of the evaluations of a job; every rank must make the same calls."""

    def __init__(self, rule: EarlyStop, num_steps: int, batches: Sequence[Batch], best: BestWeights, rank: int, world_size: int) -> None:
        """Args:
        rule: when to evaluate and when to stop.
        num_steps: of the job.
        batches: the held-out conversations, the same on every rank.
        best: keeps the best weights.
        rank: of this process.
        world_size: number of ranks.

        Raises:
            ValueError: no held-out conversation has a token to learn.
        """
        self._rule, self._num_steps, self._batches, self._best = rule, num_steps, batches, best
        self._rank, self._world_size = rank, world_size
        self._num_tokens = sum(batch.num_target_tokens for batch in batches)
        if self._num_tokens == 0:
            raise ValueError("no conversation held out for early_stop has a token to learn; correct their images and texts")
        self._losses: list[tuple[int, float]] = []
        self._measured: Measured = []

    @property
    def losses(self) -> tuple[tuple[int, float], ...]:
        """`(steps done, mean held-out loss per target token in nats)` of each evaluation."""
        return tuple(self._losses)

    @property
    def best_step(self) -> int:
        """Steps before the best evaluation, the first of several; 0 before the first."""
        return min(self._losses, key=lambda one: (one[1], one[0]))[0] if self._losses else 0

    @property
    def is_over(self) -> bool:
        """Whether the last `patience` evaluations brought nothing."""
        return sum(step > self.best_step for step, _ in self._losses) >= self._rule.patience

    def after_step(self, num_done: int, engine: Any, gathered: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Evaluate if it is time, and keep the weights, which `gathered` returns on rank 0, if they are the best.

        Raises:
            TrainerError: the weights cannot be written, or the loss is not finite.
        """
        if num_done % self._rule.every and num_done != self._num_steps:
            return
        loss = self._loss(engine)
        if not math.isfinite(loss):
            raise TrainerError(f"the held-out loss is {loss} after {num_done} steps; lower the learning rate")
        self._losses.append((num_done, loss))
        if self.best_step == num_done:
            state = gathered()
            if self._rank == 0:
                self._measured = self._best.write(num_done, state)

    def forget(self, keep_best: bool = True) -> None:
        """Delete the weights of other evaluations once no step checkpoint refers to them; in the end, the best too."""
        if self._rank == 0:
            self._best.keep_only(self.best_step if keep_best else None)

    def best_state(self) -> dict[str, torch.Tensor]:
        """The weights of the best evaluation; empty except on rank 0.

        Raises:
            TrainerError: their file is damaged or lost.
        """
        return self._best.read(self.best_step, self._measured) if self._rank == 0 else {}

    def position(self) -> dict[str, Any]:
        """The evaluations so far, as plain values."""
        return {"losses": self._losses, "measured": self._measured}

    def restore(self, position: Mapping[str, Any]) -> None:
        """Continue from a `position`; an empty one changes nothing."""
        if position:
            self._losses, self._measured = position["losses"], position["measured"]

    def _loss(self, engine: Any) -> float:
        """Ranks take turns with the batches. Each makes the same number of passes, because ZeRO gathers weights in each; surplus passes
        count nothing."""
        summed = torch.zeros((), dtype=torch.float64)
        engine.module.eval()
        with torch.no_grad():
            for first in range(0, len(self._batches), self._world_size):
                number = first + self._rank
                loss = summed_loss(engine.module, self._batches[min(number, len(self._batches) - 1)], engine.device)
                summed += loss.double().cpu() if number < len(self._batches) else 0.0
        engine.module.train()
        return sum_over_ranks(summed, self._world_size).item() / self._num_tokens
