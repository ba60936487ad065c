"""The pairs of a round: which records make them, and what their training leaves behind. No actor is started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from actors.images import ImageSource
from actors.training.core import run_local
from actors.training.job import Progress, TrainingJob, TrainingResult
from cluster.training.group import Bounds
from loop.run.session import Session
from loop.run.stages.controls import train_control
from loop.run.stages.records import complete_parts, finished_parts, select
from loop.run.stages.training import Trained, train_candidate
from loop.run.stages.training_set import training_pairs
from loop.run.stages.writing import plan_shards
from loop.store.selected import SelectedRows
from policies.counts import RecordCounts
from policies.records import to_table
from policies.training.objectives import Dpo
from tests.loop.run.test_round_records import records_of, session_at

RED, BLUE = "The ring is red.", "The ring is blue."


def selected_of(session: Session, original: str = BLUE) -> SelectedRows:
    """The selected records of round 1, in three shards. VIG gave every second answer as `original`; one of two views confirms the corrected
    one."""
    for shard in plan_shards(session.run, 1):
        records = [
            replace(record, answer=RED, original_answer=(RED, original)[number % 2], view_answers=(RED, "Hm."))
            for number, record in enumerate(records_of(shard))
        ]
        session.run.store.write_part(1, shard.name, to_table(records), {"filters": [], "counts": RecordCounts.of(records).stored})
    parts = complete_parts(plan_shards(session.run, 1), finished_parts(session.run.store, plan_shards(session.run, 1)))
    return select(session.run.store, session.run.policies.selection, 1, parts)[0]


def test_the_pairs_of_a_round_are_the_changed_answers_with_enough_evidence(tmp_path: Path, model: Path) -> None:
    with session_at(tmp_path / "run", model) as session:
        rows = selected_of(session)
        stored, findings = training_pairs(session.run, 1, rows, Dpo(), 100, tmp_path / "pairs")
        assert (stored is not None, findings) == (True, [])
        samples = list(stored or ())
        assert len(samples) == 2 * sum(len(shard.tasks) // 2 for shard in plan_shards(session.run, 1))
        for chosen, rejected in zip(samples[::2], samples[1::2], strict=True):
            assert (chosen.turns, rejected.turns) == ((("What is it?", RED),), (("What is it?", BLUE),))
            assert replace(chosen, turns=rejected.turns) == rejected
            session.run.images.open(chosen.image_id)
        few, _ = training_pairs(session.run, 1, rows, Dpo(), 3, tmp_path / "few")
        assert len(few or ()) == 6
        _, (finding,) = training_pairs(session.run, 1, rows, Dpo(), 11 * len(samples), tmp_path / "many")
        assert (finding.kind, finding.count) == ("repeated_pairs", len(samples) // 2)
        assert finding.message.startswith(f"{len(samples) // 2} pair(s) are drawn {11 * len(samples)} times, 22 times each")
        assert {sample.origin for sample in few or ()} < {sample.origin for sample in samples}

        none, (finding,) = training_pairs(session.run, 1, rows, Dpo(min_agreement_gain=0.75), 100, tmp_path / "none")
        assert (none, finding.kind, finding.count) == (None, "no_pairs", len(samples) // 2)
        assert finding.message == (
            f"of {len(rows)} selected records have an answer that correction changed, and for none the evidence reaches "
            "min_agreement_gain 0.75: dpo has no pair, and the candidate was trained by sft alone; lower it, or loosen the filters"
        )


@dataclass
class ThisProcess:
    """Trains in this process; has what the stage needs of `TrainerGroup`."""

    trained: list[TrainingJob]

    def train(self, job: TrainingJob, source: ImageSource, bounds: Bounds, on_progress: Callable[[Progress], None]) -> TrainingResult:
        self.trained.append(job)
        return run_local(job, source, on_progress=on_progress)


def trained(session: Session, rows: SelectedRows) -> tuple[Trained, Trained, list[TrainingJob]]:
    """The candidate and the control without correction of round 1, and their jobs."""
    group: Any = ThisProcess([])
    session.workers.trainer = group
    candidate = train_candidate(session.run, session.models, session.workers, 1, rows)
    control = train_control("no_correction", session.run, session.models, session.workers, 1, rows)
    return candidate, control, group.trained


TRAINING = {"num_steps": 3, "batch_size": 4, "learning_rate": 1e-3, "objective": {"dpo": {"pairs_per_step": 2}}}


def test_a_candidate_learns_from_pairs_and_its_controls_do_not(tmp_path: Path, model: Path) -> None:
    with session_at(tmp_path / "run", model, training=TRAINING, control="no_correction") as session:
        candidate, control, (job, of_control) = trained(session, selected_of(session))
        assert (len(job.pairs), len(of_control.pairs)) == (12, 0)
        assert candidate.metrics["dpo_pairs"] == 6.0
        assert candidate.metrics["dpo_first_margin"] == pytest.approx(0.0, abs=1e-4)
        assert candidate.metrics["dpo_margin"] > 0.001
        assert candidate.metrics["dpo_accuracy"] == 1.0
        assert [point[0] for point in session.run.store.read_json_part(candidate.part)["pairs"]] == [1, 2, 3]
        assert not [name for name in control.metrics if name.startswith("dpo")]


def test_a_round_without_pairs_is_trained_by_sft_and_says_so(tmp_path: Path, model: Path) -> None:
    with session_at(tmp_path / "run", model, training=TRAINING) as session:
        candidate, _, (job, _) = trained(session, selected_of(session, original="the ring is red"))
        assert (list(job.pairs), candidate.metrics["dpo_pairs"]) == ([], 0.0)
        (finding,) = [one for one in candidate.findings if one.kind == "no_pairs"]
        assert finding.message.startswith("selected records, and in none has correction changed the answer: dpo has no pair")
