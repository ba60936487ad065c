"""Logs a training: its losses per window of steps, and the samples that it skipped."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from actors.training.distributed import gather_objects, sum_over_ranks
from actors.training.inputs.skips import Skip, SkippedSamples, SkipReason
from actors.training.job import Hyperparameters, Progress, TrainedStep, TrainerError, TrainingResult

_LOSS_POINTS = 100
_MIN_KEPT_STEPS = 100
"""Latest steps that a progress report names, at least; there are about two reports a second."""
_Note = tuple[float, int, float, Any]
"""Of a step: when it was done, target tokens, learning rate, gradient norm."""
_Example = tuple[int, str, str]
"""Index, message and place of a skipped sample."""


class TrainingLog:
    """One rank's log. Ranks communicate and the device synchronizes only at the end of a window and in `close`."""

    def __init__(self, hyper: Hyperparameters, num_samples: int, world_size: int) -> None:
        self._num_steps = num_steps = hyper.num_steps
        self._batch_size = hyper.batch_size
        self._num_samples = num_samples
        self._max_unreadable = hyper.max_unreadable_images
        self._world_size = world_size
        self._window = max(1, num_steps // _LOSS_POINTS)
        self._pending: list[torch.Tensor] = []
        self._notes: list[_Note] = []
        """Of the last of `_pending`: earlier versions stored none in step checkpoints."""
        self._last_at: float | None = None
        self._steps: deque[TrainedStep] = deque(maxlen=2 * max(self._window, _MIN_KEPT_STEPS))
        self._num_empty_pending = 0
        self._points: list[tuple[int, float]] = []
        self._summed = 0.0
        self._step = 0
        self._num_empty_steps = 0
        self._skipped: dict[int, str] = {}  # reason by sample index, of this rank only until `close`
        self._examples: dict[str, _Example] = {}  # the first sample of each reason
        self.resumed_from_step = 0
        self.num_target_tokens = 0
        """Of all ranks so far."""
        self._pending_pairs: list[torch.Tensor] = []
        self._pair_points: list[tuple[int, float, float, float]] = []
        self.num_pairs = self.num_skipped_pairs = 0
        """As in the result; the trainer sets them."""

    def skip(self, samples: Iterable[tuple[int, Skip]]) -> None:
        """Note samples that this rank skipped, by their index in the job; a repeated sample counts once."""
        for index, skip in samples:
            self._skipped[index] = skip.reason.value
            known = self._examples.get(skip.reason.value)
            if known is None or index < known[0]:
                self._examples[skip.reason.value] = (index, skip.message, skip.where)

    def add(
        self, loss: torch.Tensor, num_tokens: int, pairs: torch.Tensor | None = None, learning_rate: float = 0.0, gradient_norm: Any = None
    ) -> None:
        """Note a step.

        Args:
            loss: this rank's part of the loss.
            num_tokens: target tokens of all ranks; if there are none, the step has no loss.
            pairs: this rank's sums, see `actors.training.dpo.PairBatch.loss`; `None` on every rank in a step without pairs.
            learning_rate: the rate of the step.
            gradient_norm: a number, a tensor of one on any device, or `None`.
        """
        self._step += 1
        self._pending.append(loss)
        self._notes.append((time.time(), num_tokens, learning_rate, gradient_norm))
        if pairs is not None:
            self._pending_pairs.append(pairs)
        self.num_target_tokens += num_tokens
        if num_tokens == 0:
            self._num_empty_pending += 1
            self._num_empty_steps += 1
        if self._step % self._window == 0 or self._step == self._num_steps:
            self._close_window()

    def close(self) -> None:
        """Close the last window, which an early stop cuts short, and gather the skipped samples of all ranks; every rank must call this,
        once.

        Raises:
            TrainerError: too many samples have images that cannot be read, or the loss is not finite.
        """
        if self._pending:
            self._close_window()
        self._skipped, self._examples = self._skipped_by_all()
        self._check_images(min(self._num_samples, self._step * self._batch_size))

    def require_readable_images(self) -> None:
        """Check the samples skipped so far against the limit; every rank must call this, after the same step.

        Raises:
            TrainerError: too many samples have images that cannot be read.
        """
        self._check_images(min(self._num_samples, self._num_steps * self._batch_size))

    def require_target_tokens(self) -> None:
        """Call after `close`.

        Raises:
            TrainerError: no step had a target token.
        """
        if self.num_target_tokens == 0:
            reasons = [
                f"{one.num_samples} of {self._num_samples} samples: {one.reason.explanation}; for example {one}" for one in self.skipped()
            ]
            raise TrainerError(f"no sample has a token to learn; {'; '.join(reasons) or 'all answers are empty'}")

    def skipped(self) -> tuple[SkippedSamples, ...]:
        """Skipped samples by reason; of all ranks after `close`."""
        counts = Counter(self._skipped.values())
        return tuple(
            SkippedSamples(reason, counts[reason], *self._examples[reason][1:]) for reason in SkipReason if reason.value in self._examples
        )

    def position(self) -> dict[str, Any]:
        """This rank's log so far, as tensors and plain values."""
        return {
            "step": self._step,
            "pending": [loss.cpu() for loss in self._pending],
            "notes": [(at, tokens, rate, _as_float(norm)) for at, tokens, rate, norm in self._notes],
            "num_empty_pending": self._num_empty_pending,
            "points": self._points,
            "pending_pairs": [one.cpu() for one in self._pending_pairs],
            "pair_points": self._pair_points,
            "summed": self._summed,
            "num_target_tokens": self.num_target_tokens,
            "num_empty_steps": self._num_empty_steps,
            "skipped": self._skipped,
            "examples": self._examples,
        }

    def restore(self, position: Mapping[str, Any]) -> None:
        """Continue from a `position`; an empty one changes nothing."""
        if not position:
            return
        self._step, self._pending, self._points = position["step"], position["pending"], position["points"]
        self._notes = position.get("notes", [])
        self._summed, self._num_empty_pending = position["summed"], position["num_empty_pending"]
        self._num_empty_steps, self.num_target_tokens = position["num_empty_steps"], position["num_target_tokens"]
        self._skipped, self._examples = position["skipped"], position["examples"]
        self._pending_pairs, self._pair_points = position.get("pending_pairs", []), position.get("pair_points", [])
        self.resumed_from_step = self._step

    def progress(self) -> Progress:
        return Progress(self._step, self._num_steps, self._points[-1][1] if self._points else None, steps=self.steps)

    @property
    def steps(self) -> tuple[TrainedStep, ...]:
        """The latest steps of finished windows, in order."""
        return tuple(self._steps)

    def result(self, seconds: float) -> TrainingResult:
        """The result with an empty digest; call after `close`."""
        skipped = self.skipped()
        return TrainingResult(
            num_steps=self._step,
            final_loss=self._points[-1][1],
            mean_loss=self._summed / (self._step - self._num_empty_steps),
            losses=tuple(self._points),
            num_target_tokens=self.num_target_tokens,
            num_skipped_samples=sum(one.num_samples for one in skipped),
            seconds=seconds,
            digest="",
            resumed_from_step=self.resumed_from_step,
            num_empty_steps=self._num_empty_steps,
            skipped=skipped,
            num_pairs=self.num_pairs,
            num_skipped_pairs=self.num_skipped_pairs,
            pair_points=tuple(self._pair_points),
        )

    def _check_images(self, num_samples: int) -> None:
        """Compare the samples with unreadable images to the limit among `num_samples`, and describe them if there are more."""
        reason = SkipReason.BAD_IMAGE
        allowed = math.floor(self._max_unreadable * num_samples + 1e-9)  # 0.29 * 100 is a little below 29
        own = torch.tensor([Counter(self._skipped.values())[reason]])
        if sum_over_ranks(own, self._world_size).item() <= allowed:
            return
        skipped, examples = self._skipped_by_all()  # the same sample may have been skipped by several ranks, in different passes
        if (num_bad := Counter(skipped.values())[reason]) > allowed:
            first = SkippedSamples(reason, num_bad, *examples[reason][1:])
            raise TrainerError(
                f"the images of {num_bad} of {num_samples} training samples cannot be read after {self._step} steps, and "
                f"training.max_unreadable_images {self._max_unreadable:g} allows {allowed}; the first: {first}; make "
                "the images readable on every node and resume, or start anew with a larger share"
            )

    def _skipped_by_all(self) -> tuple[dict[int, str], dict[str, _Example]]:
        """Skipped samples and first examples of all ranks; every rank must call this."""
        all_skipped: dict[int, str] = {}
        first: dict[str, _Example] = {}
        for skipped, examples in gather_objects((self._skipped, self._examples), self._world_size):
            all_skipped |= skipped
            first |= {reason: min(first.get(reason, example), example) for reason, example in examples.items()}
        return all_skipped, first

    def _close_window(self) -> None:
        pending = torch.stack(self._pending)
        summed = sum_over_ranks(pending.sum().cpu().double(), self._world_size).item()
        if not math.isfinite(summed):
            raise TrainerError(f"the loss is {summed} at step {self._step} of {self._num_steps}; lower the learning rate")
        num_counted = len(self._pending) - self._num_empty_pending
        if num_counted:
            self._points.append((self._step, summed / num_counted))
        self._summed += summed
        self._close_steps(sum_over_ranks(pending.cpu().double(), self._world_size).tolist())
        self._num_empty_pending = 0
        self._pending.clear()
        if self._pending_pairs:
            *sums, num_pairs = sum_over_ranks(torch.stack(self._pending_pairs).sum(0).cpu().double(), self._world_size).tolist()
            loss, accuracy, margin = (one / num_pairs for one in sums)
            if not math.isfinite(loss):
                raise TrainerError(f"the DPO loss is {loss} at step {self._step} of {self._num_steps}; lower the learning rate")
            self._pair_points.append((self._step, loss, accuracy, margin))
            self._pending_pairs.clear()
        self.require_readable_images()

    def _close_steps(self, losses: list[float]) -> None:
        """Turn the notes of a window into steps; `losses` are of all its steps."""
        first = self._step - len(self._notes) + 1
        for step, (loss, note) in enumerate(zip(losses[len(losses) - len(self._notes) :], self._notes, strict=True), first):
            at, num_tokens, learning_rate, norm = note
            seconds = None if self._last_at is None else at - self._last_at
            tokens_per_s = num_tokens / seconds if seconds and seconds > 0 else None
            self._steps.append(TrainedStep(step, at, loss if num_tokens else None, learning_rate, _as_float(norm), tokens_per_s))
            self._last_at = at
        self._notes.clear()


def _as_float(norm: Any) -> float | None:
    return None if norm is None else float(norm)
