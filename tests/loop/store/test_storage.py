"""How a run reaches the disk: durable in the right order, whole after any kill, by one writer, on any filesystem."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from loop import errors
from loop.store.fencing import acquire
from loop.store.run_store import Store
from loop.store.storage.remote import StoredFolder
from loop.store.verifying import verify
from policies.records import from_table
from tests.loop.store.make_run import RUN, checkpoint, commit_of, records

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
        with pytest.raises(errors.WriteError, match=r"cannot write .*shard\.parquet: No space left on device; free space"):
            store.write_part(1, "shard", records())
    assert list((run_dir / "rounds/0001/parts").iterdir()) == []
    store.write_part(1, "shard", records())


_NUM_STEPS = 20
_KILLED = """
import os, signal, sys
import pyarrow as pa
from loop.store.fencing import acquire
from loop.store.run_store import Store

table = pa.table({"x": list(range(1000))})

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
        store.write_part(1, "shard", table)
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
            assert store.read_part(store.file_entry(path.relative_to(folder).as_posix())).num_rows == 1000
        for path in folder.rglob("model.safetensors"):
            assert path.read_bytes() == b"weights"
        return store.finished_part(1, "shard") is not None, store.finished_checkpoint("base") is not None


# ---- the lock


def test_only_one_driver_at_a_time(store: Store) -> None:
    with pytest.raises(errors.LockedError, match=rf"is driven by epoch 1 \(pid {os.getpid()} on "), Store.open(store.uri).locked():
        pass


_HOLDING = """
import sys, time
from loop.store.fencing import acquire
from loop.store.run_store import Store
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


# ---- other filesystems


@pytest.fixture(params=["fsspec", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a run on a filesystem of fsspec, and of one in a real object store."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return request.getfixturevalue("s3_uri") if request.param == "s3" else f"fsspec+memory://bucket-{uuid4().hex}/runs/x"


def test_a_run_in_an_object_store(uri: str, tmp_path: Path) -> None:
    with Store.create(uri, RUN).locked() as store:
        copy = pickle.loads(pickle.dumps(store))
        part = copy.write_part(0, "shard", records())
        assert copy.write_part(0, "shard", records()) == part, "written again, over the file that is there"
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
    remote = found.checkpoint("checkpoints/base")
    assert isinstance(remote, StoredFolder)
    assert [remote.read("model.safetensors", *part) for part in ((2, 3), (5, 99))] == [b"igh", b"ts"]
    assert verify(found).ok


def test_an_object_store_and_a_folder_give_one_digest(uri: str, run_dir: Path) -> None:
    digests = set()
    for address in (uri, str(run_dir)):
        with Store.create(address, RUN).locked() as store:
            files = [store.write_part(0, "shard", records()).entry, *checkpoint(store, "base").files]
            store.commit(commit_of(store, files=files))
        digests.add(verify(store).digest)
    assert len(digests) == 1


def test_behind_a_uri_a_second_driver_takes_over_when_the_lease_has_expired(uri: str) -> None:
    run = Store.create(uri, RUN)
    old = Store(run.storage, acquire(run))
    with Store.open(uri).locked(lease_s=0.1) as new:
        new.commit(commit_of(new))
        with pytest.raises(errors.LockedError, match="taken over"):
            old.write_part(1, "shard", records())


def test_a_lease_that_is_read_in_the_middle_of_its_renewal_is_read_again(tmp_path: Path) -> None:
    uri = f"fsspec+memory://bucket-{uuid4().hex}/runs/x"
    with Store.create(uri, RUN).locked() as store:
        whole = store.storage.read("lock.json")
        store.storage.write("lock.json", b"")
        threading.Timer(0.2, store.storage.write, ("lock.json", whole)).start()
        assert store.finished_part(0, "shard") is None
        assert store.write_part(0, "shard", records()) == store.finished_part(0, "shard")
        store.storage.write("lock.json", b"")
        with pytest.raises(errors.DamagedFileError, match=r"lock\.json"):
            store.write_part(0, "other", records())
        store.storage.write("lock.json", whole)


def test_a_damaged_remote_checkpoint_is_not_served(uri: str, tmp_path: Path) -> None:
    with Store.create(uri, RUN).locked() as store:
        checkpoint(store, "base")
        store.storage.write("checkpoints/base/model.safetensors", b"wEights")
        shutil.rmtree(tmp_path / "cache")  # as on another machine
        with pytest.raises(errors.DamagedFileError, match=r"model\.safetensors"):
            store.local_checkpoint("checkpoints/base")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.name.endswith(("safetensors", ".seen"))] == []
