"""What a training passed over is told by reason, with an example."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console

from actors.training.inputs.skips import SkippedSamples, SkipReason
from actors.training.job import TrainingResult
from loop.run.skipped import findings_of
from loop.run.train import print_summary


def result(*skipped: SkippedSamples, num_empty_steps: int = 0) -> TrainingResult:
    count = sum(one.num_samples for one in skipped)
    return TrainingResult(10, 1.0, 1.0, ((10, 1.0),), 50, count, 1.0, "d", num_empty_steps=num_empty_steps, skipped=skipped)


def test_each_reason_is_a_finding_and_the_place_is_left_out_of_what_is_committed() -> None:
    missing = SkippedSamples(SkipReason.BAD_IMAGE, 39, "7.jpg: does not exist", "in /home/me/photos")
    cut_off = SkippedSamples(SkipReason.ANSWER_CUT_OFF, 2, "8.jpg: no word of an answer is among the first 64 tokens")
    images, answers, steps = findings_of(result(missing, cut_off, num_empty_steps=4), 48)
    assert (images.kind, images.count, images.example) == ("passed_over_bad_image", 39, "7.jpg: does not exist")
    assert "of 48 training samples" in images.message
    assert (answers.kind, answers.count) == ("passed_over_answer_cut_off", 2)
    assert "raise training.max_tokens" in answers.message
    assert (steps.kind, steps.count) == ("empty_steps", 4)
    assert findings_of(result(missing), 48, with_place=True)[0].example == "7.jpg: does not exist in /home/me/photos"
    assert findings_of(result(), 48) == []


def test_every_reason_says_what_is_wrong() -> None:
    assert all(reason.explanation for reason in SkipReason)


def test_the_table_of_a_training_counts_what_was_passed_over() -> None:
    stage = {
        "name": "s", "num_samples": 40, "num_skipped_samples": 39, "num_steps": 10, "losses": [[10, 1.0]], "final_loss": 1.0,
        "num_target_tokens": 5, "seconds": 1.0, "digest": "d" * 64, "checkpoint": "checkpoints/1-s",
    }  # fmt: skip
    printed = StringIO()
    print_summary(Console(file=printed, width=80), {"stages": [stage]}, Path("out"))
    (row,) = (line for line in printed.getvalue().splitlines() if line.startswith("s "))
    assert row.split() == ["s", "40", "39", "10", "1.000", "->", "1.000", "5", "1", "d" * 12]
