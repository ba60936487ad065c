"""Duplicates across the shards of a round, earlier rounds and the seed data. No actor is started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from loop.config.run_config import parse_config, stored_config
from loop.errors import IncompleteRoundError, UserError, WriteError
from loop.run.round import run_round
from loop.run.session import Session
from loop.run.stages.deduplication import deduplicate, partly_compared
from loop.run.stages.records import complete_parts, filter_counts, record_counts, select
from loop.run.stages.writing import plan_shards
from loop.store.commits import RoundCommit, RoundState
from loop.store.documents import PartReceipt
from loop.store.selected import committed_rows, records_of
from loop.store.verifying import verify
from policies.counts import RecordCounts
from policies.filtering.stored_keys import with_keys
from policies.generation.knowledge import pairs_of
from policies.records import to_table
from policies.training.selection import SelectAll
from tests.loop.run.test_round_records import NUM_SHARDS, session_at
from tests.loop.run.test_round_records import records_of as blank_records
from tests.loop.setup.test_overlaps import llava
from tests.loop.test_cli import document

ONE_PER_IMAGE = {"num_shards": NUM_SHARDS, "num_per_image": 1}
Answer = Callable[[int], tuple[str, str]]


def answered(number: int) -> tuple[str, str]:
    """A question and an answer of their own for each record of a round."""
    return f"What is thing {number}?", " ".join(f"thing{number} is part{place}" for place in range(20))


def write(session: Session, index: int, text: Answer) -> list[PartReceipt]:
    """The parts of a round as filters leave them; `text` gives question and answer of a record by its number."""
    store, similarity = session.run.store, session.run.policies.similarity
    assert similarity is not None
    parts, number = {}, 0
    for shard in plan_shards(session.run, index):
        records = []
        for record in blank_records(shard, session.run.commits[0].champion):
            question, answer = text(number)
            records.append(replace(record, question=question, answer=answer, original_correct=True, answer_correct=number % 2 == 0))
            number += 1
        extra = {"filters": [["parsable", len(records), len(records)]], "counts": RecordCounts.of(records).stored}
        parts[shard.name] = store.write_part(index, shard.name, with_keys(to_table(records), records, similarity), extra)
    return complete_parts(plan_shards(session.run, index), parts)


def verdicts(session: Session, index: int, parts: Sequence[PartReceipt]) -> list[tuple[int, int, str, str]]:
    part = deduplicate(session.run, index, parts)
    assert part is not None
    return [tuple(row.values()) for row in session.run.store.read_part(part).to_pylist()]


def accept(session: Session, index: int, parts: Sequence[PartReceipt]) -> None:
    """The round counts as trained on, all of its records."""
    _, chosen = select(session.run.store, SelectAll(), index, parts)
    files = [part.entry for part in [*parts, chosen]]
    session.run.commits.append(
        RoundCommit(run_id="run", round=index, state=RoundState.ACCEPTED, epoch=1, started_at=0, committed_at=0, champion="c",
                    champion_path="checkpoints/c", files=files)
    )  # fmt: skip


def test_records_of_different_shards_are_compared_and_the_first_one_stays(tmp_path: Path, model: Path) -> None:
    def text(number: int) -> tuple[str, str]:
        question, answer = answered(0 if number in (8, 19) else number)
        return question, answer.replace("part19", "part 20") if number == 19 else answer.upper() + "." if number == 8 else answer

    with session_at(tmp_path / "run", model, deduplication={"scope": "all"}) as session:
        parts = write(session, 1, text)
        assert verdicts(session, 1, parts) == [
            (1, 2, "exact_duplicate", "r1-s00000-0000"),
            (2, 7, "near_duplicate", "r1-s00000-0000"),
        ]
        part = deduplicate(session.run, 1, parts)
        counts = record_counts([*parts, part]) if part else None
        assert counts is not None
        assert (counts.generated, counts.accepted) == (20, 18)
        assert counts.by_reason == {"rejected_exact_duplicate": 1, "rejected_near_duplicate": 1}
        assert counts.correctness["correct_kept"] == 9 / 18, "the one right and the one wrong answer that are rejected do not count"
        assert [tuple(line) for line in ((one.filter, one.seen, one.kept) for one in filter_counts([*parts, part]))] == [
            ("parsable", 20, 20),
            ("deduplication", 20, 18),
        ]
        assert partly_compared(part) == []
        selected, _ = select(session.run.store, SelectAll(), 1, parts, part)
        assert len(selected) == 18


def test_the_same_text_about_another_image_is_no_duplicate_by_default(tmp_path: Path, model: Path) -> None:
    with session_at(tmp_path / "run", model, deduplication={}, generation=ONE_PER_IMAGE) as session:
        assert verdicts(session, 1, write(session, 1, lambda number: ("What is it?", "A cat."))) == []


@pytest.mark.parametrize(("across", "num"), [(["earlier_rounds"], 10), (["round", "seed_data"], 0)])
def test_what_earlier_rounds_were_trained_on_about_the_same_image_is_not_trained_on_again(
    tmp_path: Path, model: Path, across: list[str], num: int
) -> None:
    """The schedule draws every round from the only image set."""
    with session_at(tmp_path / "run", model, deduplication={"across": across}, generation=ONE_PER_IMAGE) as session:
        first, second = ([task.image_id for shard in plan_shards(session.run, index) for task in shard.tasks] for index in (1, 2))
        accept(session, 1, write(session, 1, answered))
        found = verdicts(session, 2, write(session, 2, lambda number: answered(first.index(second[number]))))
        assert len(found) == num
        assert {reason for _, _, reason, _ in found} <= {"exact_duplicate"}
        assert {repeats[:3] for *_, repeats in found} <= {"r1-"}


def test_records_that_repeat_the_seed_data_are_rejected_in_the_data_and_the_round_says_so(tmp_path: Path, model: Path) -> None:
    with session_at(tmp_path / "run", model, deduplication={"scope": "all"}, on_empty_round="reject") as session:
        seeds = [pair for sample in session.run.seed_samples for pair in pairs_of(sample)]
        write(session, 1, lambda number: seeds[number % len(seeds)])
        commit = run_round(session, 1)
        assert (commit.counts["generated"], commit.counts["accepted"], commit.counts["rejected_exact_duplicate"]) == (20, 0, 20)
        assert commit.findings[0].message.startswith("none of 20 records was accepted (exact_duplicate 20); the model repeats itself")
        found = list(records_of(session.run.store, commit))
        assert {(one.accepted, one.reasons, one.trained_on) for one in found} == {(False, ("exact_duplicate",), False)}
        assert all(one.reason_detail.startswith("repeats seed|") for one in found)
        assert "correct_kept" not in commit.metrics
        assert verify(session.run.store).ok
        path = next(file.path for file in commit.files if file.path.endswith("duplicates.parquet"))
        (tmp_path / "run" / path).write_bytes(b"")
        assert [problem.split()[0] for problem in verify(session.run.store).problems] == [path]
        assert len(committed_rows(session.run.store, commit)) == 0


def test_an_image_of_the_seed_data_is_the_same_image_in_an_unlabelled_set(tmp_path: Path, model: Path) -> None:
    """Its id is another one there: an image set begins a folder above the images of the seed data."""
    seed = llava(tmp_path, "seed.json", {"a.png": "What is there?", "b.png": "Who runs?"})
    images = {"kind": "folder", "path": str(tmp_path)}
    config = {"seed_data": {"data": seed, "num_samples": 4}, "image_sets": [images], "generation": ONE_PER_IMAGE, "deduplication": {}}
    with session_at(tmp_path / "run", model, **config) as session:
        order = [task.image_id for shard in plan_shards(session.run, 1) for task in shard.tasks]
        parts = write(session, 1, lambda _: ("What is there?", "a dog runs over the wet grass"))
        assert sorted(order) == ["photos/a.png", "photos/b.png"]
        ((part, row, reason, repeats),) = verdicts(session, 1, parts)
        assert order[part + row] == "photos/a.png"
        assert (reason, repeats) == ("exact_duplicate", "seed|a.png")


def test_a_resumed_search_finds_the_same_and_reuses_what_is_finished(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receipts = []
    for _ in range(2):
        with session_at(tmp_path / "run", model, deduplication={"scope": "all"}) as session:
            parts = write(session, 1, lambda number: answered(number % 7))
            receipts.append(deduplicate(session.run, 1, parts))
            session.run.store.drop_part(1, "duplicates")
    assert receipts[0] == receipts[1]
    assert receipts[0].num_rows == 13
    with session_at(tmp_path / "run", model, deduplication={"scope": "all"}) as session:
        assert deduplicate(session.run, 1, parts) == receipts[0]
        monkeypatch.setattr("loop.run.stages.deduplication.accepted_rows", None)
        assert deduplicate(session.run, 1, parts) == receipts[0], "a finished part is not made again"


def test_a_part_that_is_damaged_before_the_search_is_named(tmp_path: Path, model: Path) -> None:
    with session_at(tmp_path / "run", model, deduplication={}) as session:
        parts = write(session, 1, answered)
        path = tmp_path / "run" / parts[1].path
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(IncompleteRoundError, match=r"records-00001\.parquet is damaged .* `vigc resume`, which regenerates"):
            deduplicate(session.run, 1, parts)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"across": []}, "nothing to compare records with; name some of round, earlier_rounds, seed_data, or set deduplication to null"),
        ({"across": ["round", "round"]}, "name each once"),
        ({"across": "rounds"}, "should be 'round', 'earlier_rounds' or 'seed_data'"),
        ({"scope": "shard"}, "should be 'image' or 'all'"),
        ({"threshold": 0.4}, "greater than or equal to 0.5"),
        ({"shingle_words": 0}, "greater than or equal to 1"),
        ({"treshold": 0.9}, "did you mean deduplication.threshold"),
    ],
)
def test_a_wrong_value_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match="deduplication.*" + message):
        parse_config(document("embedded", deduplication=given))


def test_runs_from_before_look_for_no_duplicates() -> None:
    assert parse_config(document("embedded")).deduplication is not None
    assert stored_config(document("embedded")).deduplication is None


def test_a_full_disk_is_named(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`/dev/full` takes nothing."""
    monkeypatch.setattr("loop.run.stages.deduplication.TemporaryFile", partial(Path("/dev/full").open, "r+b"))
    with session_at(tmp_path / "run", model, deduplication={"scope": "all"}) as session:
        parts = write(session, 1, lambda number: answered(number) if number < 10 else ("What?", answered(number % 10)[1]))
        with pytest.raises(WriteError, match=r"cannot write a temporary file in .*: No space left on device; free space"):
            deduplicate(session.run, 1, parts)
