"""What MLflow says of a round in words and intervals."""

from __future__ import annotations

import pytest

from loop.monitors.mirror.facts import RoundFacts, intervals_of
from loop.monitors.mirror.metrics import round_values
from loop.monitors.mirror.notes import round_note, run_note
from loop.store.commits import Decision, FilterCount, Finding, RoundCommit, RoundState
from policies.records import Prediction
from policies.scoring.predictions import to_table


def commit(number: int, state: RoundState, accuracy: float, **changes: object) -> RoundCommit:
    values: dict[str, object] = {
        "run_id": "x-1", "round": number, "state": state, "epoch": 1, "started_at": 1.0, "committed_at": 61.0, "champion": f"w-{number}",
        "champion_path": f"checkpoints/w-{number}", "metrics": {"accuracy/near": accuracy, "accuracy_acceptance/dev": 0.5},
    }  # fmt: skip
    return RoundCommit.model_validate({**values, **changes})


SEED = commit(0, RoundState.BASELINE, 0.6)
FIRST = commit(
    1, RoundState.ACCEPTED, 0.64, candidate="w-1", counts={"generated": 96, "accepted": 24, "trained_on": 20, "rejected_empty": 72},
    filters=[FilterCount(filter="parsable", seen=96, kept=24)], decision=Decision(accepted=True, reason="better by *4* <b>points</b>"),
    metrics={"accuracy/near": 0.64, "candidate_accuracy/near": 0.64, "correct_kept": 0.9, "train_loss": 0.3},
    stage_seconds={"round": 60.0, "train": 50.0}, findings=[Finding(kind="left_out", count=1, message="no image")],
)  # fmt: skip


def test_the_note_of_a_round_says_what_was_written_kept_gained_and_decided() -> None:
    assert round_note(FIRST, RoundFacts({"accuracy/near": (0.6, 0.68)}), SEED) == "\n\n".join(
        [
            r"**Round 1: the candidate is accepted**: better by \*4\* &lt;b&gt;points&lt;/b&gt;. The champion is `w-1`.",
            "96 records were written and 24 (25%) kept; 20 were trained on. Rejected: 72 empty. Correct answers: 90.0 % among those kept.",
            "| filter | saw | kept |\n| --- | --- | --- |\n| parsable | 96 | 24 |",
            "| set, % | champion before | candidate | champion now |\n| --- | --- | --- | --- |\n"
            "| near | 60.0 | 64.0 | 64.0 [60.0, 68.0] |",
            "Time: 60.0 s (train 50.0 s).",
            "Findings:\n\n- left\\_out (1): no image",
        ]
    )
    assert round_note(SEED, RoundFacts(), None).startswith("**Seed model**, weights `w-0`")


def test_the_note_of_a_run_has_a_line_for_each_round_and_the_gain() -> None:
    note = run_note("x-1", "runs/x", [SEED, FIRST], "it is running")
    assert note.startswith("Run `x-1` in `runs/x`: it is running. 1 of 1 rounds improved the model; the champion is `w-1`.")
    assert "| 1 | accepted | 96 | 24 | 64.0 |" in note
    assert "Gain over the seed model in points: near +4.0." in note
    assert "being evaluated" in run_note("x-1", "runs/x", [], "it is running")


def test_numbers_are_in_groups_that_make_charts() -> None:
    assert round_values(FIRST, RoundFacts({"accuracy/near": (0.6, 0.68)})) == {
        "counts/generated": 96, "counts/accepted": 24, "counts/trained_on": 20, "rejected/empty": 72, "kept/all": 0.25,
        "kept/parsable": 0.25, "accuracy/near": 0.64, "candidate_accuracy/near": 0.64, "correct/kept": 0.9, "train/mean_loss": 0.3,
        "accuracy_low/near": 0.6, "accuracy_high/near": 0.68, "time/round": 60.0, "time/train": 50.0, "findings/left_out": 1,
    }  # fmt: skip


def test_intervals_of_scores() -> None:
    answers = [Prediction(f"q{number}", "red", float(number < 8), "w-1", 1) for number in range(10)]
    exact = to_table({"held_out/near": answers, "acceptance/dev": answers}, {"held_out/near": "exact", "acceptance/dev": "exact"})
    found = intervals_of(exact, FIRST.metrics | {"accuracy_acceptance/dev": 0.8})
    assert set(found) == {"accuracy/near", "accuracy_acceptance/dev"}
    assert found["accuracy/near"] == pytest.approx((0.4902, 0.9433), abs=1e-4)
    graded = to_table({"held_out/near": [Prediction("q", "red", None, "w", 1), *answers]}, {"held_out/near": "judge"})
    assert intervals_of(graded, FIRST.metrics)["accuracy/near"] == pytest.approx((0.4902, 0.9433), abs=1e-4)
