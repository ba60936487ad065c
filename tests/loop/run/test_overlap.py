"""Rounds whose records were written ahead: which model writes what, what becomes of stale records, and what a resume does again."""

from __future__ import annotations

import io
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from actors.engines import EngineSpec
from actors.engines.base import WeightUpdate
from actors.engines.weights import digest_of, manifest_of, read_checkpoint
from actors.worker import EngineWorker
from loop.config.run_config import load_config
from loop.monitors.progress import RunProgress
from loop.run.contents import Run
from loop.run.round import run_round
from loop.run.session import Session
from loop.run.stages import writing
from loop.run.stages.clock import RoundClock
from loop.run.stages.writing import Writing, ahead_of, plan_shards, round_records
from loop.run.workers import Workers
from loop.setup.assembly import build_policies
from loop.setup.data import build_data
from loop.store.commits import RoundCommit, RoundState
from loop.store.run_store import PartReceipt, Store
from loop.store.selected import record_files, records_of
from loop.store.verifying import verify
from policies.counts import RecordCounts
from policies.records import Reason, Record, from_table, to_table
from tests.loop.run.small_run import first_commits, living, start, vigc, wait_until, write_config
from tests.loop.run.test_round_records import NUM_SHARDS, session_at
from tests.loop.run.test_round_records import records_of as blank_records

OF_THEIR_OWN = {"num_engines": 1, "trainer_ranks": 1, "colocated": False}
NAMES = [f"records-{number:05d}" for number in range(NUM_SHARDS)]
NEXT = 2
"""The round that is written ahead."""


@contextmanager
def overlapped(run_dir: Path, model: Path, **changes: Any) -> Iterator[Session]:
    """A session with `overlap: 1` after its baseline."""
    with session_at(run_dir, model, **{"overlap": 1, "cluster": OF_THEIR_OWN, "on_empty_round": "reject", **changes}) as session:
        yield session


def write(session: Session, version: str, revision: str = "", names: list[str] = NAMES) -> dict[str, PartReceipt]:
    """Parts of round `NEXT`, by a model of this version; filters have rejected all of their records."""
    parts = {}
    for shard in plan_shards(session.run, NEXT):
        if shard.name in names:
            records = blank_records(shard, version, Reason.LOW_CONFIDENCE)
            extra = {"filters": [["confidence", len(records), 0]], "counts": RecordCounts.of(records).stored}
            name = f"{shard.name}-{revision}" if revision else shard.name
            parts[name] = session.run.store.write_part(NEXT, name, to_table(records), extra)
    return parts


def commit_round_1(session: Session, state: RoundState) -> str:
    """Commit round 1, whose candidate is the champion if it is accepted; returns the version of the champion."""
    seed_model = session.models.base()
    candidate = session.models.add(1, "1" * 64, "checkpoints/round-0001", ())
    champion = candidate if state is RoundState.ACCEPTED else seed_model
    part = session.run.store.write_part(1, "predictions", session.run.store.read_part(session.run.commits[0].file("predictions.parquet")))
    commit = RoundCommit(
        run_id="run", round=1, state=state, epoch=session.run.store.epoch, started_at=1, committed_at=2, champion=champion.version,
        champion_path=champion.path, candidate=candidate.version, files=[part.entry],
    )  # fmt: skip
    session.run.store.commit(commit)
    session.run.commits.append(commit)
    return champion.version


@pytest.mark.parametrize(
    ("choice", "revision", "count"),
    [("keep", "", "stale_kept"), ("correct", "corrected", "stale_corrected"), ("drop", "renewed", "stale_dropped")],
)
def test_a_commit_says_what_became_of_stale_records_and_keeps_what_was_set_aside(
    tmp_path: Path, model: Path, choice: str, revision: str, count: str
) -> None:
    with overlapped(tmp_path / "run", model, stale_records=choice) as session:
        stale = write(session, session.models.base().version)
        champion = commit_round_1(session, RoundState.ACCEPTED)
        new = write(session, session.models.base().version if choice == "correct" else champion, revision) if revision else stale
        commit = run_round(session, NEXT)
        assert commit.counts[count] == commit.counts["generated"] == 20
        assert [name for name in commit.counts if name.startswith("stale_")] == [count]
        assert [file.path for file in record_files(commit)] == [part.path for part in new.values()]
        assert {part.entry for part in stale.values()} <= set(commit.files)
        assert len(list(records_of(session.run.store, commit))) == 20
        assert verify(session.run.store).ok
        (tmp_path / "run" / stale[NAMES[1]].path).write_bytes(b"")
        assert len(verify(session.run.store).problems) == 1


def test_records_of_a_rejected_candidates_time_are_not_stale(tmp_path: Path, model: Path) -> None:
    with overlapped(tmp_path / "run", model, stale_records="drop") as session:
        parts = write(session, session.models.base().version)
        commit_round_1(session, RoundState.REJECTED)
        commit = run_round(session, NEXT)
        assert not [name for name in commit.counts if name.startswith("stale_")]
        assert [file.path for file in record_files(commit)] == [part.path for part in parts.values()]


@pytest.mark.parametrize("choice", ["keep", "correct", "drop"])
@pytest.mark.parametrize("lost", [[], [0], [0, 1, 2]])
@pytest.mark.parametrize("lost_again", [[], [1], [0, 1, 2]])
def test_a_resume_has_each_model_write_what_is_missing_of_its_own(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, choice: str, lost: list[int], lost_again: list[int]
) -> None:
    asked: list[tuple[str, list[str], bool]] = []
    with overlapped(tmp_path / "run", model, stale_records=choice) as session:

        def written(workers: Workers, one: Writing, finished: dict[str, PartReceipt]) -> dict[str, PartReceipt]:
            """What the actors would do."""
            todo = [shard for shard in one.shards if shard.name not in finished]
            asked.append((one.model.version, [shard.name for shard in todo], bool(one.stale)))
            return write(session, one.model.version, todo[0].revision, [NAMES[shard.index] for shard in todo])

        monkeypatch.setattr(writing, "write_records", written)
        monkeypatch.setattr(Workers, "serve", lambda workers, served: None)
        monkeypatch.setattr(Workers, "launch_trainer", lambda workers: None)
        before = session.models.base().version
        write(session, before, names=[name for number, name in enumerate(NAMES) if number not in lost])
        champion = commit_round_1(session, RoundState.ACCEPTED)
        revision = {"keep": "", "correct": "corrected", "drop": "renewed"}[choice]
        if revision:
            write(session, champion, revision, [name for number, name in enumerate(NAMES) if number not in lost_again])
        found = round_records(session.run, session.models, session.workers, NEXT, RoundClock())
        first = [(before, [NAMES[number] for number in lost], False)] if lost else []
        again = (
            [(champion, [f"{NAMES[number]}-{revision}" for number in lost_again], choice == "correct")] if revision and lost_again else []
        )
        assert asked == first + again
        assert found.generator.version == (champion if choice == "drop" else before)
        assert len(found.names) == NUM_SHARDS * (2 if revision else 1)


@pytest.mark.parametrize(
    ("changes", "index", "is_written"),
    [
        ({}, 1, True),
        ({"overlap": 0}, 1, False),
        ({"rounds": 1}, 1, False),
        ({"stop": {"rounds": {"max_rejections_in_a_row": 1}}}, 1, True),
        ({"stop": {"rounds": {"max_rejections_in_a_row": 1}}, "rounds": 1}, 1, False),
    ],
)
def test_the_next_round_is_written_ahead_if_there_may_be_one(
    tmp_path: Path, model: Path, changes: dict[str, Any], index: int, is_written: bool
) -> None:
    with overlapped(tmp_path / "run", model, **changes) as session:
        ahead = ahead_of(session.run, session.models, index)
        assert (ahead is not None) == is_written
        if ahead is not None:
            assert ([shard.name for shard in ahead.shards], ahead.model.version) == (NAMES, session.run.commits[0].champion)
            write(session, ahead.model.version)
            assert ahead_of(session.run, session.models, index) is None, "it is there already"


# ---- with real actors


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds that was stopped while round 1 trained and round 2 was written, and resumed."""
    folder = tmp_path_factory.mktemp("ahead")
    run_dir = folder / "run"
    config = write_config(folder, overlap=1, stale_records="correct", tracking={"enabled": False}, cluster={**OF_THEIR_OWN, "num_cpus": 3})
    driver = start("run", str(config), "--run-dir", str(run_dir), cwd=folder)
    wait_until(lambda: any(run_dir.glob("rounds/0002/parts/records-*.json")) or driver.poll() is not None, 400)
    stop(driver)
    assert not (run_dir / "rounds/0001/commit.json").exists()
    assert len(list(run_dir.glob("rounds/0002/parts/records-*.json"))) < 6, "nothing was left to be written"
    result = vigc("resume", str(run_dir), cwd=folder)
    assert result.returncode == 0, result.stderr
    return run_dir


def stop(driver: subprocess.Popen[bytes]) -> None:
    """SIGTERM: both sides end, in order and in time."""
    processes = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(90) == 130
    _, alive = psutil.wait_procs(processes, timeout=0)
    assert living(alive) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_writes_ahead_makes_of_round_1_what_strict_rounds_make(ahead: Path, finished: tuple[Path, str]) -> None:
    assert first_commits(ahead, 1) == first_commits(finished[0], 1)
    first, second = Store.open(ahead).commits()[1:]
    assert second.counts["stale_corrected"] == second.counts["generated"] == 80
    assert first.counts.keys().isdisjoint({"stale_corrected", "stale_kept"})
    log = (ahead / "run.log").read_text()
    assert log.index("round 2/2 generate, correct, filter: started") < log.index("round 1/2 evaluate: started")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stale_records_are_the_older_models_corrected_by_the_newer_one(ahead: Path) -> None:
    store, config = Store.open(ahead), load_config(ahead.parent / "config.yaml")
    baseline, first, second = store.commits()
    stale = [file for file in second.files if "/records-" in file.path and file not in record_files(second)]
    assert len(stale) == len(record_files(second)) == 6
    policies, progress = build_policies(config), RunProgress(Console(file=io.StringIO()))
    shard = plan_shards(Run(config, policies, store, "run", progress, build_data(config)), NEXT)[3]
    for commit, file, is_stale in ((baseline, stale[3], True), (first, record_files(second)[3], False)):
        folder = ahead / commit.champion_path
        spec = EngineSpec("transformers", str(folder), config.engine_options)
        worker, tensors = EngineWorker(spec, config.generation.options, policies.correction), read_checkpoint(folder)
        worker.start()
        worker.swap(WeightUpdate(commit.champion, digest_of(tensors), manifest_of(tensors), checkpoint=folder))
        _, table = worker.write_records(shard) if is_stale else worker.correct_records(shard, lambda: store.read_part(stale[3]))
        for one, other in zip(store.read_records(file), from_table(table), strict=True):
            (texts, numbers), (other_texts, other_numbers) = parted(unjudged(one)), parted(unjudged(other))
            assert texts == other_texts
            assert numbers == pytest.approx(other_numbers, rel=1e-5, abs=1e-5)  # this process may compute with other threads than an actor


def unjudged(record: Record) -> Record:
    """A record without what filters add to it."""
    return replace(record, accepted=False, reasons=(), score=None, original_correct=None, answer_correct=None)


def parted(value: Any) -> tuple[list[Any], list[float]]:
    """Everything in a record that is no floating-point number, and these numbers, in order."""
    if isinstance(value, float):
        return [], [value]
    if not isinstance(value, Record | dict | tuple | list):
        return [value], []
    inner = asdict(value) if isinstance(value, Record) else value
    parts = [parted(one) for one in (inner.values() if isinstance(inner, dict) else inner)]
    return [text for texts, _ in parts for text in texts], [number for _, numbers in parts for number in numbers]
