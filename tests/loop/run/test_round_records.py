"""A round is whole or it is not committed; one that has nothing to train on ends the run or is rejected. No actor is started."""

from __future__ import annotations

import io
import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from actors.filter import filter_shard
from actors.shards import Shard
from actors.trainer import TrainerRank
from cluster.fleet.fleet import Fleet
from cluster.fleet.tasks import StatelessTasks
from cluster.training.group import RankOptions, TrainerGroup
from loop.config.run_config import parse_config
from loop.errors import DamagedFileError, EmptyRoundError, IncompleteRoundError
from loop.monitors.progress import RunProgress
from loop.run import driver
from loop.run.contents import Run
from loop.run.driver import rounds
from loop.run.models import Models
from loop.run.round import run_round
from loop.run.session import Session
from loop.run.stages.deciding import decide
from loop.run.stages.evaluation import champion_predictions
from loop.run.stages.records import complete_parts, finished_parts, select
from loop.run.stages.training_set import generated_so_far, training_set
from loop.run.stages.writing import plan_shards
from loop.run.workers import Workers
from loop.setup import assembly, data
from loop.setup.assembly import build_policies
from loop.setup.data import build_data
from loop.store.commits import RoundCommit, RoundState
from loop.store.run_store import PartReceipt, RunInfo, Store
from loop.store.verifying import verify
from policies.counts import RecordCounts
from policies.generation.instructions import vig_target
from policies.records import Prediction, Reason, Record, TrainingSample, to_table
from policies.scoring.predictions import to_table as predictions_table
from policies.training.mixing import Replay
from policies.training.selection import SelectAll
from tests.loop.test_cli import document

NUM_SHARDS = 3


@contextmanager
def session_at(run_dir: Path, model: Path, **changes: Any) -> Iterator[Session]:
    """The session of a run after its baseline, with no actor of it started. It is created once and resumed from then on."""
    config = parse_config({**document(model, rounds=3, generation={"num_shards": NUM_SHARDS}, deduplication=None), **changes})
    store = Store.open(run_dir) if run_dir.exists() else Store.create(run_dir, RunInfo(run_id="run", config=config.model_dump(mode="json")))

    def spawn(index: int) -> Any:
        raise AssertionError("nothing is started here")

    fleet = Fleet(spawn, 1, task_timeout_s=1.0, swap_timeout_s=1.0, start_timeout_s=1.0)
    trainer = TrainerGroup(TrainerRank, 1, RankOptions())
    progress = RunProgress(Console(file=io.StringIO()))
    with store.locked() as locked:
        run = Run(config, build_policies(config), locked, "run", progress, build_data(config), locked.commits())
        filters: StatelessTasks[Shard] = StatelessTasks(filter_shard, (), 1, 1.0, dict)
        session = Session(run, Models(locked, run.commits), Workers(run, fleet, filters, trainer, sender_options=dict))
        if not session.run.commits:
            session.run.commits.append(baseline(session))
        yield session


def baseline(session: Session) -> RoundCommit:
    """Round 0, with every answer wrong."""
    seed_model = session.models.adopt(session.run.config.model_path)
    sets = session.run.sets
    answers = {name: [Prediction(question.question_id, "?", 0.0, "w", 1) for question in one.questions] for name, one in sets.items()}
    part = session.run.store.write_part(0, "predictions", predictions_table(answers, {name: one.metric_name for name, one in sets.items()}))
    commit = RoundCommit(
        run_id="run", round=0, state=RoundState.BASELINE, epoch=session.run.store.epoch, started_at=1.0, committed_at=2.0,
        champion=seed_model.version, champion_path=seed_model.path, files=[*seed_model.files, part.entry],
    )  # fmt: skip
    session.run.store.commit(commit)
    return commit


def records_of(shard: Shard, version: str = "", *reasons: Reason) -> list[Record]:
    """A record for every task, all rejected for `reasons`, or accepted where there is none."""
    return [
        Record(
            f"r{shard.round}-s{shard.index:05d}-{index:04d}", shard.round, shard.index, task.image_id, task.question_type, task.instruction,
            shard.seed, question="What is it?", answer="A cat.", generator_weight_version=version, accepted=not reasons, reasons=reasons,
        )
        for index, task in enumerate(shard.tasks)
    ]  # fmt: skip


def write_shards(session: Session, index: int, *reasons: Reason, version: str = "") -> dict[str, PartReceipt]:
    """What the pipeline leaves of a round that a model of this version, or the champion, writes."""
    parts = {}
    for shard in plan_shards(session.run, index):
        records = records_of(shard, version or session.models.champion().version, *reasons)
        extra = {"filters": [["parsable", len(records), 0]], "counts": RecordCounts.of(records).stored}
        parts[shard.name] = session.run.store.write_part(index, shard.name, to_table(records), extra)
    return parts


# ---- whole rounds


def test_the_run_uses_the_sources_that_the_check_has_built(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[object] = []
    for name in ("build_images", "build_labelled"):
        build = getattr(assembly, name)
        for module in (assembly, data):
            monkeypatch.setattr(module, name, lambda spec, build=build: built.append(spec) or build(spec))
    with session_at(tmp_path / "run", model) as session:
        config = session.run.config
        built.clear()
        checked = driver.check(config, has_begun=True)
        run = replace(session.run, data=checked.data)
        assert run.images.image_ids()
        assert run.seed_samples
        sets = [one.data for one in (*config.held_out.values(), *config.acceptance_sets.values())]
        assert built == [*config.image_sets, config.seed_data.data, *sets]


def test_every_planned_shard_is_in_the_round_in_its_order(tmp_path: Path, model: Path) -> None:
    with session_at(tmp_path / "run", model) as session:
        shards, parts = plan_shards(session.run, 1), write_shards(session, 1)
        assert [shard.name for shard in shards] == ["records-00000", "records-00001", "records-00002"]
        assert complete_parts(shards, dict(reversed(parts.items()))) == [parts[shard.name] for shard in shards]


def test_a_large_round_has_more_shards(tmp_path: Path, model: Path) -> None:
    with session_at(tmp_path / "run", model, generation={"num_shards": NUM_SHARDS, "max_records_per_shard": 4}) as session:
        assert [len(shard.tasks) for shard in plan_shards(session.run, 1)] == [4] * 5


@pytest.mark.parametrize("fault", ["missing", "another shard's", "too few records"])
def test_a_round_that_is_not_whole_is_refused_by_name(tmp_path: Path, model: Path, fault: str) -> None:
    with session_at(tmp_path / "run", model) as session:
        shards, parts = plan_shards(session.run, 1), write_shards(session, 1)
        if fault == "missing":
            del parts["records-00001"]
        elif fault == "another shard's":
            parts["records-00001"] = parts["records-00002"]
        else:
            parts["records-00001"] = session.run.store.write_part(1, "records-00001", to_table(records_of(shards[1])[:-1]))
        with pytest.raises(IncompleteRoundError, match=r"round 1 is incomplete.*1 of 3 planned shards cannot be used: .*records-00001"):
            complete_parts(shards, parts)


@pytest.mark.parametrize("damage", ["part deleted", "part cut", "receipt deleted"])
def test_a_part_that_is_damaged_between_pipeline_and_commit_is_never_dropped(tmp_path: Path, model: Path, damage: str) -> None:
    with session_at(tmp_path / "run", model) as session:
        shards, parts = plan_shards(session.run, 1), write_shards(session, 1)
        path = Path(session.run.store.uri) / parts["records-00001"].path
        if damage == "receipt deleted":
            path.with_suffix(".json").unlink()
            selected, _ = select(session.run.store, SelectAll(), 1, complete_parts(shards, parts))
            assert len(selected) == sum(len(shard.tasks) for shard in shards)
            return
        if damage == "part deleted":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(IncompleteRoundError, match=r"records-00001\.parquet is damaged .* `vigc resume`, which regenerates"):
            select(session.run.store, SelectAll(), 1, complete_parts(shards, parts))
        assert sorted(finished_parts(session.run.store, shards)) == ["records-00000", "records-00002"], "a resume makes it again"


class LosesPart(SelectAll):
    """A disk that loses a part once it has been selected from."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def select(self, records: pa.Table) -> Any:
        self.path.unlink()
        return super().select(records)


def test_a_part_that_disappears_before_its_texts_are_trained_on_is_named_and_made_again(tmp_path: Path, model: Path) -> None:
    with session_at(tmp_path / "run", model) as session:
        part = write_shards(session, 1)["records-00001"]
        session.run.policies = replace(session.run.policies, selection=LosesPart(Path(session.run.store.uri) / part.path))
        with pytest.raises(DamagedFileError) as caught:
            next(rounds(session))
        assert str(caught.value) == (
            f"{part.path} is damaged: expected a file, found none; round 1 is not committed: check the disk, then continue with "
            "`vigc resume`, which makes the file again"
        )


def test_a_finished_part_is_held_against_its_receipt_once(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    with session_at(tmp_path / "run", model) as session:
        shards, parts = plan_shards(session.run, 1), write_shards(session, 1)
        storage = type(session.run.store.storage)
        real = storage.entry
        monkeypatch.setattr(storage, "entry", lambda self, path: (hashed.append(path), real(self, path))[1])
        select(session.run.store, SelectAll(), 1, complete_parts(shards, parts))
        assert hashed == [], "what was just written is read once, and nothing more"
        finished_parts(session.run.store, shards)
        assert hashed == [parts[shard.name].path for shard in shards]


def test_what_was_selected_is_the_same_after_a_resume(tmp_path: Path, model: Path) -> None:
    with session_at(tmp_path / "run", model) as session:
        parts = complete_parts(plan_shards(session.run, 1), write_shards(session, 1))
        (first, first_part), (second, second_part) = (select(session.run.store, SelectAll(), 1, parts) for _ in range(2))
        assert first_part == second_part
        assert first.table.equals(second.table)


# ---- rounds with nothing to train on


def test_a_round_without_an_accepted_record_ends_the_run_with_its_reasons_every_time(tmp_path: Path, model: Path) -> None:
    for _ in range(2):
        with session_at(tmp_path / "run", model) as session:
            write_shards(session, 1, Reason.UNPARSABLE)
            with pytest.raises(EmptyRoundError) as caught:
                run_round(session, 1)
            assert len(session.run.store.commits()) == 1
        text = str(caught.value)
        assert text.startswith("round 1 has nothing to train on: none of 20 records was accepted (unparsable 20); the model does not write")
        assert f"{tmp_path}/run/rounds/0001/parts" in text
        assert "on_empty_round: reject" in text


def test_a_round_without_an_accepted_record_is_rejected_where_the_config_says_so(tmp_path: Path, model: Path) -> None:
    with session_at(tmp_path / "run", model, on_empty_round="reject", acceptance="evidence") as session:
        parts = write_shards(session, 1, Reason.LOW_CONFIDENCE)
        commit = run_round(session, 1)
        assert session.run.store.commits()[1] == commit
        assert (commit.state, commit.champion, commit.candidate) == (RoundState.REJECTED, session.run.commits[0].champion, None)
        assert (commit.counts["trained_on"], commit.counts["rejected_low_confidence"]) == (0, 20)
        assert commit.metrics["accuracy/near"] == 0.0
        assert [file.path for file in commit.files] == [*(part.path for part in parts.values()), "rounds/0001/parts/selected.parquet"]
        (finding,) = commit.findings
        assert finding.line.startswith("empty_round (20): none of 20 records was accepted (low_confidence 20); look at the records")
        assert verify(session.run.store).ok
        session.run.commits.append(commit)
        predictions = champion_predictions(session.run)
        selected, _ = select(session.run.store, SelectAll(), 2, complete_parts(plan_shards(session.run, 2), write_shards(session, 2)))
        decided = decide(session.run, 2, predictions, predictions, selected)
        assert not decided.accepted, "the next round decides as if that one had not been"


def test_a_selection_that_takes_nothing_is_named(tmp_path: Path, model: Path) -> None:
    with session_at(tmp_path / "run", model) as session:
        write_shards(session, 1)
        session.run.policies = replace(session.run.policies, selection=TakesNothing())
        with pytest.raises(EmptyRoundError, match="the selection took none of 20 accepted records; look at the options of the selection"):
            run_round(session, 1)


class TakesNothing(SelectAll):
    def select(self, records: pa.Table) -> Any:
        return np.zeros(records.num_rows, dtype=bool)


# ---- training sets


class TakesEveryThird(SelectAll):
    def select(self, records: pa.Table) -> Any:
        return np.arange(records.num_rows) % 3 == 0


def written(session: Session, index: int, **changes: Any) -> None:
    """Three shards of records that differ from each other, with `changes`."""
    for shard in plan_shards(session.run, index):
        records = [
            replace(record, question=f"What is {record.record_id}?", answer=f"It is {record.record_id}.", original_answer="Hm.", **changes)
            for record in records_of(shard)
        ]
        session.run.store.write_part(index, shard.name, to_table(records), {"filters": [], "counts": RecordCounts.of(records).stored})


def drawn(session: Session, tmp_path: Path, num_samples: int, *, corrected: bool = True, **options: Any) -> list[TrainingSample]:
    """The training set of round 1, read as a rank reads it."""
    session.run.policies = replace(session.run.policies, mixing=Replay(**options))
    parts = complete_parts(plan_shards(session.run, 1), finished_parts(session.run.store, plan_shards(session.run, 1)))
    selected, _ = select(session.run.store, TakesEveryThird(), 1, parts)
    generated = [replace(one, corrected=corrected) for one in generated_so_far(session.run, 1, selected)]
    found = training_set(session.run, 1, generated, num_samples, tmp_path / "samples")
    return list(pickle.loads(pickle.dumps(found.samples)))


def test_a_training_set_holds_the_drawn_rows_in_the_form_of_vig_and_vic(tmp_path: Path, model: Path) -> None:
    with session_at(tmp_path / "run", model) as session:
        written(session, 1)
        chosen = {f"r1-s{shard.index:05d}-{row:04d}" for shard in plan_shards(session.run, 1) for row in range(len(shard.tasks))}
        samples = drawn(session, tmp_path, 60, seed_share=0.5, vig_share=0.5)
        seeds = [sample for sample in samples if sample.image_id.startswith("seed|")]
        generated = [sample for sample in samples if not sample.image_id.startswith("seed|")]
        assert (len(seeds), len(generated)) == (30, 30)
        assert set(seeds) == set(session.run.seed_samples)
        origins = Counter(sample.origin for sample in generated)
        assert len(origins) == 7, "of 20 records every third"
        assert origins.keys() <= chosen
        for sample in generated:
            ((user, assistant),) = sample.turns
            answer = f"It is {sample.origin}."
            if user == f"What is {sample.origin}?":
                assert assistant == answer
            else:
                assert assistant == vig_target(f"What is {sample.origin}?", answer)
        assert sum(sample.turns[0][0].startswith("What is") for sample in generated) == 15
        again = drawn(session, tmp_path / "again", 60, seed_share=0.5, vig_share=0.5)
        assert again == samples


def test_a_training_set_of_seed_data_alone_draws_no_record(tmp_path: Path, model: Path) -> None:
    with session_at(tmp_path / "run", model) as session:
        written(session, 1)
        samples = drawn(session, tmp_path, 12, seed_share=1.0)
        assert {sample.image_id.partition("|")[0] for sample in samples} == {"seed"}


def test_answers_before_correction_leave_out_records_without_one(tmp_path: Path, model: Path) -> None:
    with session_at(tmp_path / "run", model) as session:
        written(session, 1, short_answers=("dog", "cat"), short_answer_weights=(3.0, 1.0), question_type="okvqa")
        corrected = drawn(session, tmp_path, 40, seed_share=0.0, vig_share=0.0)
        assert {sample.turns[0][1] for sample in corrected} == {"dog", "cat"}
        assert all(sample.turns[0][0] == f"Question: What is {sample.origin}? Short answer:" for sample in corrected)
        original = drawn(session, tmp_path, 40, corrected=False, seed_share=0.0, vig_share=0.0)
        assert {sample.turns[0][1] for sample in original} == {"Hm."}
        first = plan_shards(session.run, 1)[0]
        records = [
            replace(record, original_answer=" ")
            for record in session.run.store.read_records(session.run.store.finished_part(1, first.name))
        ]
        session.run.store.drop_part(1, "selected")
        session.run.store.write_part(1, first.name, to_table(records), {"filters": [], "counts": RecordCounts.of(records).stored})
        original = drawn(session, tmp_path, 40, corrected=False, seed_share=0.0, vig_share=0.0)
        assert original
        assert not [sample for sample in original if "-s00000-" in sample.origin]


def test_a_few_records_that_fill_a_training_set_are_a_finding(tmp_path: Path, model: Path) -> None:
    with session_at(tmp_path / "run", model) as session:
        written(session, 1)
        parts = complete_parts(plan_shards(session.run, 1), finished_parts(session.run.store, plan_shards(session.run, 1)))
        selected, _ = select(session.run.store, TakesEveryThird(), 1, parts)
        generated = generated_so_far(session.run, 1, selected)
        assert training_set(session.run, 1, generated, 200, tmp_path / "few").findings == []
        (finding,) = training_set(session.run, 1, generated, 400, tmp_path / "many").findings
        assert (finding.kind, finding.count) == ("repeated_records", 7)
        assert finding.message.startswith("7 generated record(s) make 200 of 400 training samples, 29 copies each")
        assert finding.example.startswith("r1-s")
