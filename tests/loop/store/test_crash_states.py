"""After a power loss at any moment a run shows whole things alone, and has everything that a finished call promised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loop.store.commits import RoundState
from loop.store.run_store import Store
from loop.store.verifying import verify
from tests.loop.store.crash_states import Recorder, crash_states, install
from tests.loop.store.make_run import RUN, checkpoint, commit_of, records

Promise = Callable[[Store], bool]


def history(store: Store, recorder: Recorder) -> list[tuple[int, Promise]]:
    """Three rounds and a pruning, recorded: what holds after how many steps."""
    promises: list[tuple[int, Promise]] = []

    def promise(holds: Promise) -> None:
        promises.append((len(recorder.steps), holds))

    checkpoint(store, "round-0000", b"weights that are written again")
    champion = ""
    for index, state in enumerate((RoundState.BASELINE, RoundState.ACCEPTED, RoundState.ACCEPTED)):
        parts = []
        for name in ("records-00000", "selected"):
            part = store.write_part(index, name, records(index + 1))
            promise(lambda found, index=index, name=name, part=part: found.finished_part(index, name) == part)
            parts.append(part.entry)
        name = f"round-{index:04d}"
        made = checkpoint(store, name, f"weights {index}".encode())
        if index != 1:
            promise(lambda found, name=name, made=made: found.finished_checkpoint(name) == made)
        champion = made.path
        store.commit(commit_of(store, index, [*parts, *made.files], state=state, champion=champion, champion_path=champion))
        promise(lambda found, index=index: len(found.commits()) > index)
    store.prune_checkpoint("checkpoints/round-0001", "for a test")
    promise(lambda found: verify(found).num_pruned_files == 2)
    return promises


@pytest.fixture
def recorder(run_dir: Path) -> Recorder:
    recorder = Recorder(run_dir)
    install(recorder)
    return recorder


def check(folder: Path, done: int, promises: list[tuple[int, Promise]], commits: list[Any]) -> None:
    with Store.open(folder).locked() as store:
        report = verify(store)
        assert report.problems == [], (done, report.problems)
        assert store.commits() == commits[: len(store.commits())]
        assert all(holds(store) for after, holds in promises if after <= done), done
        assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
        for path in folder.glob("rounds/*/parts/*.parquet"):
            assert store.read_part(store.file_entry(path.relative_to(folder).as_posix())).num_rows > 0
        for path in folder.glob("checkpoints/*/model.safetensors"):
            assert path.read_bytes().startswith(b"weights ")


def test_every_state_after_a_power_loss_is_whole_and_has_what_was_promised(run_dir: Path, tmp_path: Path, recorder: Recorder) -> None:
    with Store.create(run_dir, RUN).locked() as store:
        start = tmp_path / "start"
        start.mkdir()
        for name in ("run.json", "lock.json", "lock"):
            (start / name).write_bytes((run_dir / name).read_bytes())
        with recorder.recording():
            promises = history(store, recorder)
        commits = store.commits()
    assert {verb for verb, _ in recorder.steps} == {"create", "mkdir", "fsync", "rename", "remove"}
    num_states = 0
    for done, folder in crash_states(start, recorder.steps, tmp_path / "states"):
        check(folder, done, promises, commits)
        num_states += 1
    assert num_states > 500
    assert len(promises) == 6 + 2 + 3 + 1
