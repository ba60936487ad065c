"""Checkpoints go only when the commit after theirs is durable, a pruned one is told from a lost one, and a digest never changes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from loop import errors
from loop.cli import app
from loop.config.run_config import RetentionConfig
from loop.run.retention import kept_copies, needed_files, prunable, prune
from loop.store.commits import RoundCommit, RoundState
from loop.store.run_store import Store
from loop.store.verifying import verify
from tests.loop.store.make_run import RUN, checkpoint, commit_of, flip, records

A, R = RoundState.ACCEPTED, RoundState.REJECTED


def write_rounds(store: Store, states: list[RoundState]) -> list[RoundCommit]:
    """A baseline and a round for each of `states`, every one with a checkpoint and parts."""
    champion = ""
    for index, state in enumerate([RoundState.BASELINE, *states]):
        made = checkpoint(store, f"round-{index:04d}", f"weights {index}".encode())
        parts = [store.write_part(index, name, records(index + 1)).entry for name in ("records-00000", "selected", "predictions")]
        champion = champion if state is R else made.path
        store.commit(commit_of(store, index, [*parts, *made.files], state=state, champion=champion, champion_path=champion))
    return store.commits()


def kept(run_dir: Path) -> list[int]:
    return sorted(int(path.name[-4:]) for path in (run_dir / "checkpoints").iterdir() if path.is_dir())


@pytest.mark.parametrize(
    ("states", "keep_last", "keep_every", "expected"),
    [
        ([A, A, A, A], 1, None, [0, 4]),
        ([A, A, A, A], 2, None, [0, 3, 4]),
        ([A, R, R, R], 1, None, [0, 1, 4]),
        ([R, R, R, R], 1, None, [0, 4]),
        ([A, A, A, A, A, A], 1, 3, [0, 3, 6]),
        ([A, A, A], None, None, [0, 1, 2, 3]),
        ([A, A], 9, None, [0, 1, 2]),
        ([], 1, None, [0]),
    ],
)
def test_base_champion_last_and_every_kth_stay(
    store: Store, run_dir: Path, states: list[RoundState], keep_last: int | None, keep_every: int | None, expected: list[int]
) -> None:
    prune(store, write_rounds(store, states), keep_last, keep_every)
    assert kept(run_dir) == expected
    assert sorted(path.name for path in (run_dir / "checkpoints").glob("round-????.json")) == [f"round-{n:04d}.json" for n in expected]


@pytest.mark.parametrize(("states", "expected"), [([A, A, A, A], [0, 3, 4]), ([A, R, A], [0, 1, 3]), ([A, A, R], [0, 2, 3])])
def test_the_model_that_writes_the_next_round_ahead_stays(
    store: Store, run_dir: Path, states: list[RoundState], expected: list[int]
) -> None:
    prune(store, write_rounds(store, states), 1, None, overlap=1)
    assert kept(run_dir) == expected


@pytest.mark.parametrize(
    ("states", "overlap", "expected"),
    [
        ([A, A, A, A], 0, [0, 4, 5]),
        ([A, A, A, A], 1, [0, 3, 4, 5]),
        ([A, R, A], 1, [0, 1, 3, 4]),
        ([A, A, R], 1, [0, 2, 4]),
        ([], 1, [0, 1]),
    ],
)
def test_nodes_keep_copies_of_what_the_next_round_serves_and_trains(
    store: Store, states: list[RoundState], overlap: int, expected: list[int]
) -> None:
    assert kept_copies(write_rounds(store, states), overlap) == [f"round-{n:04d}" for n in expected]
    assert kept_copies([]) == ["round-0000"]


def test_nothing_goes_that_the_next_round_needs(store: Store) -> None:
    commits = write_rounds(store, [A, R, A, R, R])
    prune(store, commits, 1, None)
    needed = needed_files(commits)
    store.check_files(needed)
    assert {file.path.split("/")[1] for file in needed if file.path.startswith("checkpoints/")} == {"round-0000", "round-0003"}
    assert [file.path for file in needed if "selected" in file.path] == [f"rounds/{n:04d}/parts/selected.parquet" for n in (1, 3)]
    assert [file.path for file in needed if "predictions" in file.path] == [f"rounds/{n:04d}/parts/predictions.parquet" for n in (0, 3)]


def test_nothing_is_prunable_before_the_next_commit(store: Store) -> None:
    commits = write_rounds(store, [A, R])
    for end in range(1, len(commits) + 1):
        newest = f"checkpoints/round-{end - 1:04d}"
        assert newest not in prunable(commits[:end], 1, None)


def test_the_digest_is_the_same_whenever_and_whether_a_run_is_pruned(store: Store, run_dir: Path) -> None:
    commits = write_rounds(store, [A, A, A])
    before = verify(store)
    store.prune_checkpoint("checkpoints/round-0001", "for a test")
    half = verify(store)
    prune(store, commits, 1, None)
    prune(store, commits, 1, None)
    after = verify(store)
    assert before.digest == half.digest == after.digest
    assert [report.num_pruned_files for report in (before, half, after)] == [0, 2, 4]
    assert before.num_files == half.num_files + 2 == after.num_files + 4
    assert after.problems == []
    assert Store.open(run_dir).commits() == commits


def test_a_lost_checkpoint_is_no_pruned_one(store: Store, run_dir: Path) -> None:
    write_rounds(store, [A, A])
    shutil.rmtree(run_dir / "checkpoints/round-0001")
    report = verify(store)
    assert len(report.problems) == 2
    assert report.num_pruned_files == 0


def test_a_damaged_tombstone_vouches_for_nothing(store: Store, run_dir: Path) -> None:
    write_rounds(store, [A, A])
    store.prune_checkpoint("checkpoints/round-0001", "for a test")
    flip(run_dir / "checkpoints/round-0001.pruned.json", 40)
    problems = verify(store).problems
    assert "checkpoints/round-0001.pruned.json is damaged" in problems[0]
    assert ["round-0001" in problem for problem in problems] == [True] * 4, "the tombstone, two files and their receipt"


def test_a_pruned_checkpoint_says_so_and_which_are_kept(store: Store) -> None:
    prune(store, write_rounds(store, [A, A]), 1, None)
    with pytest.raises(errors.PrunedCheckpointError) as caught:
        store.local_checkpoint("checkpoints/round-0001")
    assert str(caught.value) == (
        "checkpoints/round-0001 was pruned: retention keeps the seed model, the champion, and the checkpoints of the last 1 rounds; "
        "kept are round-0000, round-0002"
    )
    with pytest.raises(errors.StoreError, match="cannot change any more"):
        checkpoint(store, "round-0001")


_KILLED = """
import os, signal, shutil, sys
from loop.store.run_store import Store

def killer(real):
    def call(*args, **options):
        global steps_left
        steps_left -= 1
        if steps_left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    return call

for steps_left, folder in enumerate(sys.argv[1:]):
    if os.fork() == 0:
        with Store.open(folder).locked() as store:
            for name in ("fsync", "replace", "unlink", "rmdir"):
                setattr(os, name, killer(getattr(os, name)))
            store.prune_checkpoint("checkpoints/round-0001", "for a test")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_driver_killed_anywhere_in_a_pruning_leaves_it_undone_or_to_be_completed(run_dir: Path) -> None:
    with Store.create(run_dir, RUN).locked() as store:
        write_rounds(store, [A, A])
    digest = verify(store).digest
    folders = [shutil.copytree(run_dir, run_dir.with_name(f"step-{step}")) for step in range(16)]
    done = subprocess.run([sys.executable, "-c", _KILLED, *map(str, folders)], check=True, timeout=60, stdout=subprocess.PIPE)
    exits = [int(line) for line in done.stdout.split()]
    assert exits[0] == -signal.SIGKILL
    assert exits[-1] == 0
    outcomes = []
    for folder in folders:
        report = verify(Store.open(folder))
        assert (report.digest, report.problems) == (digest, [])
        with Store.open(folder).locked():
            pass
        report = verify(Store.open(folder))
        assert (report.digest, report.problems) == (digest, [])
        left = sorted(os.listdir(folder / "checkpoints"))
        whole = ["round-0000", "round-0000.json", "round-0001", "round-0001.json", "round-0002", "round-0002.json"]
        assert left in (whole, ["round-0000", "round-0000.json", "round-0001.pruned.json", "round-0002", "round-0002.json"])
        outcomes.append(left != whole)
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


def test_a_run_in_an_object_store_is_pruned_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with Store.create(f"fsspec+memory://bucket-{uuid4().hex}/runs/x", RUN).locked() as store:
        commits = write_rounds(store, [A, A])
        digest = verify(store).digest
        prune(store, commits, 1, None)
        report = verify(store)
        assert (report.digest, report.problems, report.num_pruned_files) == (digest, [], 2)
        with pytest.raises(errors.PrunedCheckpointError):
            store.local_checkpoint("checkpoints/round-0001")


def test_verify_shows_what_was_pruned(store: Store, run_dir: Path) -> None:
    prune(store, write_rounds(store, [A, A]), 1, None)
    assert "all intact, 2 files pruned" in CliRunner().invoke(app, ["verify", str(run_dir)]).output
    assert json.loads(CliRunner().invoke(app, ["verify", str(run_dir), "--json"]).output)["num_pruned_files"] == 2


def test_a_setting_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="keep_every 5 has no effect because keep_last null keeps all"):
        RetentionConfig(keep_last=None, keep_every=5)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        RetentionConfig(keep_last=0, keep_every=None)
