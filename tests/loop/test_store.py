"""The promises of the run folder: whole or absent, durable in the right order, immutable once committed, one writer."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest

from loop import errors
from loop.commits import FileEntry, RoundCommit, RoundState
from loop.store import RunInfo, Store
from policies.records import Record, from_table, to_table

RUN = RunInfo(run_id="run-1", config={"seed": 7, "rate": 1e-05})


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "x"


@pytest.fixture
def store(run_dir: Path) -> Iterator[Store]:
    with Store.create(run_dir, RUN).locked() as store:
        yield store


def records(num: int = 5, shard: int = 0) -> pa.Table:
    return to_table(
        Record(f"r1-s{shard}-{i}", 1, shard, f"image-{i}", "conversation", "Ask.", 3, question=f"What is {i}?", sentences=("A.", "B."))
        for i in range(num)
    )


def commit_of(store: Store, round: int = 0, files: list[FileEntry] | None = None, **changes: Any) -> RoundCommit:
    values: dict[str, Any] = {
        "run_id": "run-1", "round": round, "state": RoundState.BASELINE, "epoch": store.epoch, "started_at": 1.0, "committed_at": 2.0,
        "champion": "r0", "champion_path": "checkpoints/base", "metrics": {"accuracy/near": 0.5}, "files": files or [],
    }  # fmt: skip
    return RoundCommit(**{**values, **changes})


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def checkpoint(store: Store, name: str, content: bytes = b"weights") -> Any:
    folder = store.checkpoint_dir(name)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "sub").mkdir()
    (folder / "sub" / "config.json").write_text("{}")
    return store.publish_checkpoint(folder, name)


# ---- creating and opening


def test_a_created_run_can_be_opened_and_read(run_dir: Path) -> None:
    Store.create(run_dir, RUN)
    assert Store.open(run_dir).read_run() == RUN
    assert Store.open(f"file://{run_dir}").read_run() == RUN
    assert Store.open(run_dir).commits() == []


def test_a_second_run_in_the_same_folder_is_refused_with_the_way_out(run_dir: Path) -> None:
    Store.create(run_dir, RUN)
    with pytest.raises(errors.RunExistsError, match="already holds a run; continue it with `vigc resume"):
        Store.create(run_dir, RUN)


def test_opening_nothing_names_the_folder(run_dir: Path) -> None:
    with pytest.raises(errors.NoRunError, match=str(run_dir)):
        Store.open(run_dir)
    assert not run_dir.exists()


def test_a_run_below_a_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.UserError, match="cannot create a run"):
        Store.create(tmp_path / "file" / "run", RUN)


def test_an_unknown_address_is_a_user_error() -> None:
    with pytest.raises(errors.UserError, match="no address for a run"):
        Store.open("nowhere://bucket/run")


def test_a_run_of_another_schema_version_is_refused(run_dir: Path) -> None:
    store = Store.create(run_dir, RUN.model_copy(update={"schema_version": 99}))
    with pytest.raises(errors.SchemaVersionError, match="schema version 99"):
        store.read_run()


@pytest.mark.parametrize(
    "error",
    [
        errors.StoreError("text"),
        errors.DamagedFileError("a/b", "5 bytes", "4 bytes", "make it again"),
        errors.RunExistsError("runs/x"),
        errors.NoRunError("runs/x"),
        errors.LockedError("held"),
        errors.SchemaVersionError("run.json", 2, 1),
    ],
)
def test_errors_survive_pickling(error: errors.LoopError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert error.exit_code == (2 if isinstance(error, errors.UserError) else 1)


# ---- parts


def test_a_part_comes_back_as_it_was_written(store: Store) -> None:
    receipt = store.write_part(1, "shard-0000", records(), {"seconds": 1.5})
    assert receipt.path == "rounds/0001/parts/shard-0000.parquet"
    assert (receipt.num_rows, receipt.extra) == (5, {"seconds": 1.5})
    assert store.finished_part(1, "shard-0000") == receipt
    for part in (receipt, receipt.entry, receipt.path):
        table = store.read_part(part)
        assert table.schema.equals(records().schema)
        assert table.schema.metadata == records().schema.metadata
        assert from_table(table) == from_table(records())


def test_a_json_part_comes_back_as_it_was_written(store: Store) -> None:
    document = {"metrics": {"loss": 0.1, "worst": float("inf")}, "losses": [1.0, 2], "text": "ä"}
    receipt = store.write_json_part(1, "training", document)
    assert store.read_json_part(receipt) == document
    assert store.finished_part(1, "training") == receipt


def test_the_same_table_gives_the_same_bytes(store: Store) -> None:
    first = store.write_part(1, "one", records())
    second = store.write_part(1, "two", pa.concat_tables([records().slice(0, 2), records().slice(2)]))
    assert first.sha256 == second.sha256


def test_a_part_that_was_never_written_is_not_finished(store: Store) -> None:
    assert store.finished_part(1, "shard-0000") is None


@pytest.mark.parametrize("damage", ["data bit", "data truncated", "data missing", "receipt bit", "receipt truncated"])
def test_a_part_unlike_its_receipt_is_not_finished_and_says_so(store: Store, run_dir: Path, damage: str, caplog: Any) -> None:
    receipt = store.write_part(1, "shard", records())
    what, _, how = damage.partition(" ")
    path = run_dir / receipt.path if what == "data" else run_dir / "rounds/0001/parts/shard.json"
    if how == "bit":
        flip(path, path.stat().st_size // 2)
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        path.unlink()
    assert store.finished_part(1, "shard") is None
    assert path.name in caplog.text
    assert "made again" in caplog.text
    store.write_part(1, "shard", records())
    assert store.finished_part(1, "shard") == receipt


def test_a_flipped_bit_anywhere_in_a_part_is_caught(store: Store, run_dir: Path) -> None:
    receipt = store.write_part(1, "shard", records(100))
    path = run_dir / receipt.path
    for position in range(0, receipt.num_bytes, max(1, receipt.num_bytes // 60)):
        flip(path, position, position % 8)
        with pytest.raises(errors.DamagedFileError, match=r"shard\.parquet is damaged: expected .* found .*; restore"):
            store.read_part(receipt)
        flip(path, position, position % 8)
    store.read_part(receipt)


def test_flipped_bits_in_pages_are_caught_without_a_receipt(store: Store, run_dir: Path) -> None:
    receipt = store.write_part(1, "blobs", pa.table({"blob": [os.urandom(20_000) for _ in range(5)]}))
    for position in range(1_000, 90_000, 9_000):
        flip(run_dir / receipt.path, position)
        with pytest.raises(errors.DamagedFileError):
            store.read_part(receipt.path)
        flip(run_dir / receipt.path, position)


def test_reading_a_missing_part_names_it(store: Store) -> None:
    with pytest.raises(errors.DamagedFileError, match=r"rounds/0001/parts/x\.parquet is damaged: expected a file, found none"):
        store.read_part("rounds/0001/parts/x.parquet")
    with pytest.raises(errors.StoreError, match="no path inside a run"):
        store.read_part("../secret")


def test_parts_are_written_through_a_pickled_handle(store: Store) -> None:
    copy = pickle.loads(pickle.dumps(store))
    receipt = copy.write_part(1, "shard", records())
    assert store.finished_part(1, "shard") == receipt


# ---- the order of writes


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The calls that make writes durable and visible, in order, by file name; the real functions run."""
    seen: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(descriptor: int) -> None:
        seen.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def recording_replace(source: Path, target: Path) -> None:
        seen.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    return seen


def test_data_is_durable_before_it_is_visible_and_the_receipt_comes_after(store: Store, calls: list[tuple[str, str]]) -> None:
    store.write_part(1, "warm-up", records())
    calls.clear()
    store.write_part(1, "shard", records())
    assert [verb for verb, _ in calls] == ["fsync", "rename", "fsync"] * 2
    data_sync, data_rename, data_folder, receipt_sync, receipt_rename, receipt_folder = (name for _, name in calls)
    assert data_sync.startswith(".shard.parquet.")
    assert (data_rename, data_folder) == ("shard.parquet", "parts")
    assert receipt_sync.startswith(".shard.json.")
    assert (receipt_rename, receipt_folder) == ("shard.json", "parts")


def test_new_folders_are_made_durable_in_their_parents(store: Store, calls: list[tuple[str, str]]) -> None:
    store.write_part(1, "shard", records())
    assert [name for _, name in calls[:3]] == ["x", "rounds", "0001"]


def test_a_checkpoint_is_durable_before_it_is_visible(store: Store, calls: list[tuple[str, str]]) -> None:
    checkpoint(store, "base")
    renamed = calls.index(("rename", "base"))
    assert {name for verb, name in calls[:renamed] if verb == "fsync"} >= {"model.safetensors", "config.json", "sub", "base.tmp"}
    assert calls[renamed + 1] == ("fsync", "checkpoints")
    assert calls[-2:] == [("rename", "base.json"), ("fsync", "checkpoints")]


def test_a_commit_is_durable_before_it_returns(store: Store, calls: list[tuple[str, str]]) -> None:
    store.commit(commit_of(store))
    assert [verb for verb, _ in calls[-3:]] == ["fsync", "rename", "fsync"]
    assert calls[-2:] == [("rename", "commit.json"), ("fsync", "0000")]


def test_a_full_disk_leaves_nothing_behind(store: Store, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    (run_dir / "rounds/0001/parts").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            store.write_part(1, "shard", records())
    assert list((run_dir / "rounds/0001/parts").iterdir()) == []
    store.write_part(1, "shard", records())


_NUM_STEPS = 20
_KILLED = """
import os, signal, sys
import pyarrow as pa
from loop.store import Store

def killer(real):
    def call(*args):
        global steps_left
        steps_left -= 1
        if steps_left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)
    return call

def work(folder):
    with Store.open(folder).locked() as store:
        os.fsync, os.replace = killer(os.fsync), killer(os.replace)
        store.write_part(1, "shard", pa.table({"x": list(range(1000))}))
        folder = store.checkpoint_dir("base")
        (folder / "model.safetensors").write_bytes(b"weights")
        store.publish_checkpoint(folder, "base")

for steps_left, folder in enumerate(sys.argv[1:]):
    if os.fork() == 0:
        work(folder)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_kill_minus_nine_before_every_step_leaves_only_whole_files(run_dir: Path) -> None:
    Store.create(run_dir, RUN)
    folders = [shutil.copytree(run_dir, run_dir.with_name(f"step-{step}")) for step in range(_NUM_STEPS)]
    done = subprocess.run([sys.executable, "-c", _KILLED, *map(str, folders)], check=True, timeout=60, stdout=subprocess.PIPE)
    exits = [int(line) for line in done.stdout.split()]
    num_killed = exits.count(-signal.SIGKILL)
    assert exits == [-signal.SIGKILL] * num_killed + [0] * (_NUM_STEPS - num_killed)
    assert 12 <= num_killed < _NUM_STEPS
    outcomes = [_whole_files(folder) for folder in folders]
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {(False, False), (True, False), (True, True)}


def _whole_files(folder: Path) -> tuple[bool, bool]:
    """Whether the part and the checkpoint are finished, after making sure that nothing visible is half written."""
    with Store.open(folder).locked() as store:
        assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
        for path in folder.rglob("*.parquet"):
            assert store.read_part(path.relative_to(folder).as_posix()).num_rows == 1000
        for path in folder.rglob("model.safetensors"):
            assert path.read_bytes() == b"weights"
        return store.finished_part(1, "shard") is not None, store.finished_checkpoint("base") is not None


# ---- commits


def test_commits_come_back_in_order(store: Store) -> None:
    part = store.write_part(0, "predictions", records())
    zero, one = commit_of(store, 0, [part.entry]), commit_of(store, 1, state=RoundState.REJECTED, metrics={"loss": float("nan")})
    store.commit(zero)
    store.commit(one)
    found = Store.open(store.uri).commits()
    assert found[0] == zero
    assert [commit.round for commit in found] == [0, 1]


@pytest.mark.parametrize("change", ["missing", "longer"])
def test_a_commit_of_files_that_are_not_there_is_refused(store: Store, run_dir: Path, change: str) -> None:
    part = store.write_part(0, "predictions", records())
    if change == "missing":
        (run_dir / part.path).unlink()
    else:
        (run_dir / part.path).write_bytes(b"x" * (part.num_bytes + 1))
    with pytest.raises(errors.StoreError, match=r"round 0 cannot be committed: .*predictions\.parquet is"):
        store.commit(commit_of(store, files=[part.entry]))
    assert store.commits() == []


def test_a_committed_round_does_not_change(store: Store) -> None:
    part = store.write_part(0, "predictions", records())
    store.commit(commit_of(store, files=[part.entry]))
    store.commit(commit_of(store, files=[part.entry], committed_at=99.0))
    assert store.commits()[0].committed_at == 2.0
    with pytest.raises(errors.StoreError, match="already committed with other content"):
        store.commit(commit_of(store, files=[part.entry], metrics={"accuracy/near": 0.6}))
    with pytest.raises(errors.StoreError, match="does not change any more"):
        store.write_part(0, "predictions", records())


def test_a_committed_checkpoint_does_not_change(store: Store) -> None:
    receipt = checkpoint(store, "base")
    checkpoint(store, "base", b"other weights, before the commit")
    receipt = store.finished_checkpoint("base")
    assert receipt is not None
    store.commit(commit_of(store, files=receipt.files))
    with pytest.raises(errors.StoreError, match="does not change any more"):
        checkpoint(store, "base", b"yet others")
    assert store.verify().ok


def test_a_round_cannot_be_committed_before_the_one_before_it(store: Store) -> None:
    with pytest.raises(errors.StoreError, match="round 0 is not"):
        store.commit(commit_of(store, 1))


def test_commits_stop_at_the_first_gap_and_verify_tells(store: Store, run_dir: Path) -> None:
    for round in range(3):
        store.commit(commit_of(store, round))
    (run_dir / "rounds/0001/commit.json").unlink()
    assert [commit.round for commit in store.commits()] == [0]
    assert "committed rounds are [0, 2]" in store.verify().problems[0]


def test_a_flipped_bit_anywhere_in_a_commit_record_is_caught(store: Store, run_dir: Path) -> None:
    store.commit(commit_of(store, files=[checkpoint(store, "base").files[0]]))
    path = run_dir / "rounds/0000/commit.json"
    for position in range(0, path.stat().st_size, 3):
        flip(path, position, position % 5)
        with pytest.raises((errors.DamagedFileError, errors.SchemaVersionError), match=r"commit\.json"):
            store.commits()
        flip(path, position, position % 5)
    assert len(store.commits()) == 1


# ---- verify


def build(run_dir: Path, run_id: str, started_at: float) -> Store:
    time.sleep(0.01)
    with Store.create(run_dir, RUN.model_copy(update={"run_id": run_id})).locked() as store:
        files = [*checkpoint(store, "base").files, store.write_part(0, "predictions", records(), {"seconds": started_at}).entry]
        when = {"run_id": run_id, "started_at": started_at, "committed_at": started_at + 1, "stage_seconds": {"round": started_at}}
        store.commit(commit_of(store, 0, files, **when))
        store.commit(commit_of(store, 1, list(reversed(files)) if started_at > 50 else files, **when))
    return store


def test_the_digest_depends_on_content_alone(tmp_path: Path) -> None:
    first, second = build(tmp_path / "a", "one", 1.0), build(tmp_path / "elsewhere/b", "two", 100.0)
    moved = shutil.copytree(tmp_path / "a", tmp_path / "moved")
    reports = [first.verify(), second.verify(), Store.open(moved).verify()]
    assert all(report.ok for report in reports)
    assert len({report.digest for report in reports}) == 1
    assert reports[0].num_files == 6


def test_the_digest_tells_other_content_apart(tmp_path: Path) -> None:
    digests = set()
    for name, metrics in (("a", {"accuracy": 0.5}), ("b", {"accuracy": 0.6})):
        with Store.create(tmp_path / name, RUN).locked() as store:
            store.commit(commit_of(store, metrics=metrics))
            digests.add(store.verify().digest)
    assert len(digests) == 2


@pytest.mark.parametrize("name", ["checkpoints/base/model.safetensors", "rounds/0000/parts/predictions.parquet", "run.json"])
def test_verify_names_every_damaged_file(tmp_path: Path, name: str) -> None:
    store = build(tmp_path / "a", "one", 1.0)
    intact = store.verify().digest
    flip(tmp_path / "a" / name, 6)
    report = store.verify()
    assert not report.ok
    assert all(name in problem for problem in report.problems)
    assert (report.digest == intact) == (name == "run.json")
    (tmp_path / "a" / name).unlink()
    assert name in store.verify().problems[0]


# ---- the lock


def test_only_one_driver_at_a_time(store: Store) -> None:
    with pytest.raises(errors.LockedError, match=rf"is driven by epoch 1 \(pid {os.getpid()} on "), Store.open(store.uri).locked():
        pass


_HOLDING = """
import sys, time
from loop.store import Store
with Store.open(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_driver_is_free_again(run_dir: Path) -> None:
    Store.create(run_dir, RUN)
    with subprocess.Popen([sys.executable, "-c", _HOLDING, str(run_dir)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(errors.LockedError, match=f"pid {holder.pid}"), Store.open(run_dir).locked():
            pass
        holder.kill()
    with Store.open(run_dir).locked() as store:
        assert store.epoch == 2


def attempts() -> list[Callable[[Store], object]]:
    return [
        lambda store: store.write_part(0, "shard", records()),
        lambda store: store.write_json_part(0, "training", {}),
        lambda store: store.checkpoint_dir("base"),
        lambda store: store.publish_checkpoint(Path("nowhere"), "base"),
        lambda store: store.commit(commit_of(store)),
    ]


@pytest.mark.parametrize("attempt", attempts())
def test_a_driver_that_was_taken_over_can_write_nothing(run_dir: Path, attempt: Callable[[Store], object]) -> None:
    with Store.create(run_dir, RUN).locked() as old:
        pass
    with Store.open(run_dir).locked() as new:
        with pytest.raises(errors.LockedError, match=r"this driver is epoch 1 .* the current one is epoch 2"):
            attempt(old)
        new.commit(commit_of(new))
    assert not (run_dir / "rounds/0000/parts").exists()


@pytest.mark.parametrize("attempt", attempts())
def test_a_handle_without_the_lock_only_reads(run_dir: Path, attempt: Callable[[Store], object]) -> None:
    with pytest.raises(errors.LockedError, match="only reads"):
        attempt(Store.create(run_dir, RUN))


def test_leftovers_of_dead_drivers_are_removed_and_nothing_else(run_dir: Path) -> None:
    with Store.create(run_dir, RUN).locked() as store:
        store.write_part(1, "shard", records())
        checkpoint(store, "base")
        (store.checkpoint_dir("half") / "model.safetensors").touch()
    kept = sorted(path for path in run_dir.rglob("*") if ".tmp" not in str(path))
    for name in (".run.json.1-ab.tmp", "rounds/0001/parts/.shard.parquet.1-ab.tmp", "rounds/0001/.commit.json.1-ab.tmp"):
        (run_dir / name).touch()
    with Store.open(run_dir).locked():
        assert sorted(run_dir.rglob("*")) == kept


# ---- checkpoints


def test_a_checkpoint_is_served_from_its_place(store: Store, run_dir: Path) -> None:
    receipt = checkpoint(store, "base")
    assert receipt.path == "checkpoints/base"
    assert {file.path for file in receipt.files} == {"checkpoints/base/model.safetensors", "checkpoints/base/sub/config.json"}
    assert store.finished_checkpoint("base") == receipt
    assert store.local_checkpoint("checkpoints/base") == run_dir / "checkpoints/base"
    assert store.file_entry("checkpoints/base/model.safetensors") in receipt.files


def test_a_damaged_checkpoint_is_not_finished_and_not_served(store: Store, run_dir: Path) -> None:
    checkpoint(store, "base")
    path = run_dir / "checkpoints/base/model.safetensors"
    flip(path, 0)
    assert store.finished_checkpoint("base") is None
    path.unlink()
    with pytest.raises(errors.DamagedFileError, match=r"model\.safetensors is damaged: expected 7 bytes, found no file"):
        store.local_checkpoint("checkpoints/base")
    with pytest.raises(errors.DamagedFileError, match=r"checkpoints/other\.json"):
        store.local_checkpoint("checkpoints/other")


# ---- other filesystems


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"fsspec+memory://bucket-{uuid4().hex}/runs/x"


def test_a_run_in_an_object_store(uri: str, tmp_path: Path) -> None:
    with Store.create(uri, RUN).locked() as store:
        copy = pickle.loads(pickle.dumps(store))
        part = copy.write_part(0, "shard", records())
        assert store.finished_part(0, "shard") == part
        base = checkpoint(store, "base")
        store.commit(commit_of(store, files=[part.entry, *base.files]))
    with pytest.raises(errors.RunExistsError):
        Store.create(uri, RUN)
    found = Store.open(uri)
    assert from_table(found.read_part(found.commits()[0].files[0])) == from_table(records())
    folder = found.local_checkpoint("checkpoints/base")
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert (folder / "sub/config.json").read_text() == "{}"
    assert found.local_checkpoint("checkpoints/base") == folder
    assert folder.is_relative_to(tmp_path / "cache")
    assert found.verify().ok


def test_an_object_store_and_a_folder_give_one_digest(uri: str, run_dir: Path) -> None:
    digests = set()
    for address in (uri, str(run_dir)):
        with Store.create(address, RUN).locked() as store:
            store.commit(commit_of(store, files=[store.write_part(0, "shard", records()).entry]))
        digests.add(store.verify().digest)
    assert len(digests) == 1


def test_on_an_object_store_a_second_driver_takes_over(uri: str) -> None:
    with Store.create(uri, RUN).locked() as old, Store.open(uri).locked() as new:
        new.commit(commit_of(new))
        with pytest.raises(errors.LockedError, match="taken over"):
            old.write_part(1, "shard", records())


def test_a_damaged_remote_checkpoint_is_not_served(uri: str, tmp_path: Path) -> None:
    with Store.create(uri, RUN).locked() as store:
        checkpoint(store, "base")
        store.storage.write("checkpoints/base/model.safetensors", b"wEights")
        with pytest.raises(errors.DamagedFileError, match=r"model\.safetensors"):
            store.local_checkpoint("checkpoints/base")
    assert list((tmp_path / "cache/vigc-loop/checkpoints").iterdir()) == []
