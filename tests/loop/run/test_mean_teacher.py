"""A mean teacher writes the records: what it is the average of, who writes which round, and what stays of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from actors.engines.weights import digest_of, read_checkpoint, weight_version
from actors.folders import RemoteOutput
from actors.training.checkpoint import write_average
from loop.run.models import Model, Models
from loop.run.retention import needed_files, prunable
from loop.run.round import run_round
from loop.run.session import Session
from loop.run.stages import writing
from loop.run.stages.clock import RoundClock
from loop.run.stages.training import next_writer
from loop.run.stages.writing import Writing, round_records
from loop.run.workers import Workers
from loop.store.commits import RoundCommit, RoundState
from loop.store.documents import canonical
from loop.store.run_store import PartReceipt, Store
from loop.store.selected import records_of
from loop.store.verifying import verify
from policies.records import Reason
from tests.loop.run.small_run import CONFIG, lose_machine, start, vigc, wait_until, write_config
from tests.loop.run.test_overlap import OF_THEIR_OWN, write
from tests.loop.run.test_round_records import session_at, write_shards
from tests.loop.store.make_run import checkpoint, commit_of, records

DECAY = 0.75
A, R = RoundState.ACCEPTED, RoundState.REJECTED


@contextmanager
def taught(run_dir: Path, model: Path, **changes: Any) -> Iterator[Session]:
    """A session of a run with a mean teacher after its baseline."""
    generation = {"num_shards": 3, "mean_teacher_decay": DECAY}
    with session_at(run_dir, model, **{"generation": generation, "on_empty_round": "reject", **changes}) as session:
        yield session


@pytest.fixture
def averages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The versions of the models that were averaged, in this process."""
    found: list[tuple[str, str]] = []

    def average(workers: Workers, older: Model, newer: Model, decay: float, output: Path | RemoteOutput) -> str:
        found.append((older.version, newer.version))
        store = workers.run.store
        return write_average(store.local_checkpoint(older.path), store.local_checkpoint(newer.path), decay, output)

    monkeypatch.setattr(Workers, "average", average)
    return found


def trained(session: Session, index: int, by: float) -> Model:
    """A candidate whose weights are those of the seed model, each increased by `by`."""
    store, name = session.run.store, f"round-{index:04d}"
    tensors = {key: tensor + by for key, tensor in read_checkpoint(store.local_checkpoint(session.models.base().path)).items()}
    folder = store.checkpoint_dir(name)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    receipt = store.publish_checkpoint(folder, name)
    return session.models.add(index, digest_of(tensors), receipt.path, receipt.files)


def commit(session: Session, candidate: Model, clock: RoundClock, state: RoundState = A) -> RoundCommit:
    """Decide about a candidate, and commit the end of its round as `run_round` does."""
    run, models, index = session.run, session.models, len(session.run.commits)
    champion = candidate if state is A else models.champion()
    writer, files = next_writer(run, models, session.workers, index, candidate, clock, accepted=state is A)
    parts = [
        run.store.write_part(index, "predictions", run.store.read_part(run.commits[0].file("predictions.parquet"))).entry,
        run.store.write_json_part(index, "training", {"digest": candidate.digest}).entry,
    ]
    made = RoundCommit(
        run_id="run", round=index, state=state, epoch=run.store.epoch, started_at=1, committed_at=2, champion=champion.version,
        champion_path=champion.path, mean_teacher=writer.version, mean_teacher_path=writer.path, candidate=candidate.version,
        files=[*parts, *candidate.files, *files],
    )  # fmt: skip
    run.store.commit(made)
    run.commits.append(made)
    return made


def offset(session: Session, model: Model) -> float:
    """By how much the weights of a model are above those of the seed model, the same for all."""
    weights, base = (read_checkpoint(session.run.store.local_checkpoint(path)) for path in (model.path, session.models.base().path))
    found = torch.cat([(weights[name] - base[name]).reshape(-1) for name in base])
    assert found.max() - found.min() < 1e-6
    return float(found.mean())


def test_a_mean_teacher_follows_accepted_champions_and_a_later_driver_finds_it(
    tmp_path: Path, model: Path, averages: list[tuple[str, str]]
) -> None:
    with taught(tmp_path / "run", model) as session:
        seed, clock = session.models.base(), RoundClock()
        assert session.models.writer(1, 0) == seed
        first = trained(session, 1, 0.4)
        commit(session, first, clock)
        teacher = session.models.writer(2, 0)
        assert offset(session, teacher) == pytest.approx(0.1, abs=1e-6)
        assert "average" in clock.seconds
        commit(session, trained(session, 2, 8.0), RoundClock(), R)
        assert (session.models.writer(3, 0), session.models.champion()) == (teacher, first)
        third = trained(session, 3, 0.5)
        last = commit(session, third, RoundClock())
        follower = session.models.writer(4, 0)
        assert offset(session, follower) == pytest.approx(0.75 * 0.1 + 0.25 * 0.5, abs=1e-6)
        assert averages == [(seed.version, first.version), (teacher.version, third.version)]
        assert (last.champion, last.mean_teacher) == (third.version, weight_version(3, follower.digest))
        assert verify(session.run.store).ok
    with taught(tmp_path / "run", model) as later:
        assert later.models.writer(4, 0) == follower
        assert later.models.writer(4, 1) == teacher


@pytest.mark.parametrize("lost", ["", "rounds/0001/parts/mean-teacher.json", "checkpoints/round-0001-mean-teacher.json"])
def test_an_average_that_is_finished_is_reused_and_one_that_is_not_is_made_again(
    tmp_path: Path, model: Path, averages: list[tuple[str, str]], lost: str
) -> None:
    with taught(tmp_path / "run", model) as session:
        candidate = trained(session, 1, 0.4)
        before = next_writer(session.run, session.models, session.workers, 1, candidate, RoundClock(), accepted=True)
        if lost:
            (tmp_path / "run" / lost).unlink()
        models = Models(session.run.store, session.run.commits)
        assert next_writer(session.run, models, session.workers, 1, candidate, RoundClock(), accepted=True) == before
        assert len(averages) == (2 if lost else 1)


def test_an_empty_round_leaves_champion_and_mean_teacher(tmp_path: Path, model: Path, averages: list[tuple[str, str]]) -> None:
    with taught(tmp_path / "run", model) as session:
        first = commit(session, trained(session, 1, 0.4), RoundClock())
        write_shards(session, 2, Reason.LOW_CONFIDENCE, version=session.models.writer(2, 0).version)
        second = run_round(session, 2)
        assert (second.state, len(averages)) == (R, 1)
        for name in ("champion", "champion_path", "mean_teacher", "mean_teacher_path"):
            assert getattr(second, name) == getattr(first, name)


def test_ahead_of_their_round_records_are_written_by_the_older_mean_teacher_and_corrected_by_the_newer_one(
    tmp_path: Path, model: Path, averages: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []
    with taught(tmp_path / "run", model, overlap=1, cluster=OF_THEIR_OWN, stale_records="correct") as session:

        def written(_: Workers, one: Writing, finished: dict[str, PartReceipt]) -> dict[str, PartReceipt]:
            asked.append((one.model.version, bool(one.stale)))
            return write(session, one.model.version, "corrected" if one.stale else "")

        monkeypatch.setattr(writing, "write_records", written)
        monkeypatch.setattr(Workers, "serve", lambda workers, served: None)
        monkeypatch.setattr(Workers, "launch_trainer", lambda workers: None)
        commit(session, trained(session, 1, 0.4), RoundClock())
        found = round_records(session.run, session.models, session.workers, 2, RoundClock())
        seed, teacher = session.models.base().version, session.models.writer(2, 0).version
        assert asked == [(seed, False), (teacher, True)]
        assert list(found.stale) == ["stale_corrected"]


# ---- what is kept


def write_rounds(store: Store, states: list[RoundState]) -> list[RoundCommit]:
    """A baseline and a round for each of `states`, accepted ones with a mean teacher."""
    champion, teacher = "", None
    for index, state in enumerate([RoundState.BASELINE, *states]):
        name = f"round-{index:04d}"
        made = [checkpoint(store, name, f"weights {index}".encode())]
        parts = [store.write_part(index, "selected", records(index + 1)).entry]
        champion = champion if state is R else made[0].path
        if state is A:
            made.append(checkpoint(store, f"{name}-mean-teacher", f"mean teacher {index}".encode()))
            parts.append(store.write_json_part(index, "mean-teacher", {"digest": str(index)}).entry)
            teacher = made[1].path
        files = [*parts, *(file for one in made for file in one.files)]
        of_teacher = {"mean_teacher": teacher, "mean_teacher_path": teacher}
        store.commit(commit_of(store, index, files, state=state, champion=champion, champion_path=champion, **of_teacher))
    return store.commits()


@pytest.mark.parametrize(
    ("states", "overlap", "gone"),
    [([A, A, R, R], 0, ["round-0001", "round-0001-mean-teacher", "round-0003"]), ([A, A], 1, ["round-0001"])],
)
def test_the_mean_teachers_that_later_rounds_need_stay(store: Store, states: list[RoundState], overlap: int, gone: list[str]) -> None:
    commits = write_rounds(store, states)
    assert prunable(commits, 1, None, overlap) == [f"checkpoints/{name}" for name in gone]
    needed = {file.path for file in needed_files(commits)}
    store.check_files(needed_files(commits))
    assert "checkpoints/round-0002-mean-teacher/model.safetensors" in needed
    assert "rounds/0002/parts/mean-teacher.data.json" in needed


def test_verify_notices_a_damaged_mean_teacher_and_runs_without_one_keep_their_digest(store: Store, run_dir: Path) -> None:
    commits = write_rounds(store, [A])
    assert b"mean_teacher" not in canonical(commits[0])
    assert b'"mean_teacher":"checkpoints/round-0001-mean-teacher"' in canonical(commits[1])
    shutil.rmtree(run_dir / "checkpoints/round-0001-mean-teacher")
    assert [problem for problem in verify(store).problems if "round-0001-mean-teacher/model.safetensors is damaged" in problem]


# ---- with real actors

ACCEPTS_THE_FIRST = """
from policies.acceptance.rules import Verdict

class First:
    def decide(self, champion, candidate, context):
        return Verdict(context.round == 1, "only the first", {})
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_generates_with_its_mean_teacher_also_after_it_has_lost_its_machine(tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text(ACCEPTS_THE_FIRST)
    config = write_config(
        tmp_path, generation={"num_shards": 4, "mean_teacher_decay": DECAY}, acceptance="first:First", tracking={"enabled": False},
        image_sets=[{**CONFIG["image_sets"][0], "num_images": 16}], filters=["parsable", "length"],
        training={**CONFIG["training"], "num_steps": 2, "learning_rate": 1e-4}, cluster={"num_engines": 1, "trainer_ranks": 1},
    )  # fmt: skip
    run_dir = tmp_path / "run"
    driver = start("run", str(config), "--run-dir", str(run_dir), cwd=tmp_path)
    wait_until(lambda: (run_dir / "rounds/0001/parts/predictions.json").exists() or driver.poll() is not None, 400)
    assert driver.poll() is None, "the run has failed"
    lose_machine(driver)
    assert not (run_dir / "rounds/0001/commit.json").exists(), "it was lost too late"
    result = vigc("resume", str(run_dir), cwd=tmp_path)
    assert result.returncode == 0, result.stderr

    store = Store.open(run_dir)
    assert verify(store).ok
    baseline, first, second = store.commits()
    assert first.mean_teacher_path == "checkpoints/round-0001-mean-teacher"
    digest = write_average(run_dir / baseline.champion_path, run_dir / first.champion_path, DECAY, tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (run_dir / first.mean_teacher_path / "model.safetensors").read_bytes()
    assert first.mean_teacher == weight_version(1, digest) != first.champion
    for commit, writer in ((first, baseline.champion), (second, first.mean_teacher)):
        found = list(records_of(store, commit))
        assert {record.generator_weight_version for record in found} == {writer}
        assert {record.corrector_weight_version for record in found if record.question} == {writer}
    assert (second.state, second.champion, second.mean_teacher) == (R, first.champion, first.mean_teacher)
    assert "round 2/2 average weights" not in (run_dir / "run.log").read_text()
