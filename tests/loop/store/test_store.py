"""The promises of the run folder: parts and checkpoints as their receipts say, rounds immutable once committed, one digest."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from loop import errors
from loop.store.commits import Finding, RoundState
from loop.store.documents import canonical, seal
from loop.store.run_store import Store
from loop.store.verifying import verify
from policies.records import from_table
from tests.loop.store.make_run import RUN, checkpoint, commit_of, flip, records

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
    with pytest.raises(errors.UserError, match="not a valid run address"):
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
        errors.WriteError("a/b", "No space left on device"),
        errors.PrunedCheckpointError("checkpoints/a", "by retention", "b, c"),
        errors.InterruptedRunError("runs/x"),
    ],
)
def test_errors_survive_pickling(error: errors.LoopError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    interrupted = isinstance(error, errors.InterruptedRunError)
    assert error.exit_code == (2 if isinstance(error, errors.UserError) else 130 if interrupted else 1)


# ---- parts


def test_a_part_comes_back_as_it_was_written(store: Store) -> None:
    receipt = store.write_part(1, "shard-0000", records(), {"seconds": 1.5})
    assert receipt.path == "rounds/0001/parts/shard-0000.parquet"
    assert (receipt.num_rows, receipt.extra) == (5, {"seconds": 1.5})
    assert store.finished_part(1, "shard-0000") == receipt
    for part in (receipt, receipt.entry):
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
def test_a_part_unlike_its_receipt_is_not_finished_and_says_so(
    store: Store, run_dir: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
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
            store.read_part(store.file_entry(receipt.path))
        flip(run_dir / receipt.path, position)


def test_reading_a_missing_part_names_it(store: Store) -> None:
    with pytest.raises(errors.DamagedFileError, match=r"rounds/0001/parts/x\.parquet is damaged: expected a file, found none"):
        store.read_part(store.file_entry("rounds/0001/parts/x.parquet"))
    with pytest.raises(errors.StoreError, match="not a path inside a run"):
        store.read_part(store.file_entry("../secret"))


def test_parts_are_written_through_a_pickled_handle(store: Store) -> None:
    copy = pickle.loads(pickle.dumps(store))
    receipt = copy.write_part(1, "shard", records())
    assert store.finished_part(1, "shard") == receipt


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
    with pytest.raises(errors.StoreError, match="cannot change any more"):
        store.write_part(0, "predictions", records())


def test_a_committed_checkpoint_does_not_change(store: Store) -> None:
    receipt = checkpoint(store, "base")
    checkpoint(store, "base", b"other weights, before the commit")
    receipt = store.finished_checkpoint("base")
    assert receipt is not None
    store.commit(commit_of(store, files=receipt.files))
    with pytest.raises(errors.StoreError, match="cannot change any more"):
        checkpoint(store, "base", b"yet others")
    assert verify(store).ok


def test_a_round_cannot_be_committed_before_the_one_before_it(store: Store) -> None:
    with pytest.raises(errors.StoreError, match="round 0 is not"):
        store.commit(commit_of(store, 1))


def test_commits_stop_at_the_first_gap_and_verify_tells(store: Store, run_dir: Path) -> None:
    for round in range(3):
        store.commit(commit_of(store, round))
    (run_dir / "rounds/0001/commit.json").unlink()
    assert [commit.round for commit in store.commits()] == [0]
    assert "committed rounds are [0, 2]" in verify(store).problems[0]


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
    with Store.create(run_dir, RUN.model_copy(update={"run_id": run_id})).locked() as store:
        files = [*checkpoint(store, "base").files, store.write_part(0, "predictions", records(), {"seconds": started_at}).entry]
        when = {"run_id": run_id, "started_at": started_at, "committed_at": started_at + 1, "stage_seconds": {"round": started_at}}
        store.commit(commit_of(store, 0, files, **when))
        store.commit(commit_of(store, 1, list(reversed(files)) if started_at > 50 else files, **when))
    return store


def test_the_digest_depends_on_content_alone(tmp_path: Path) -> None:
    first, second = build(tmp_path / "a", "one", 1.0), build(tmp_path / "elsewhere/b", "two", 100.0)
    moved = shutil.copytree(tmp_path / "a", tmp_path / "moved")
    reports = [verify(first), verify(second), verify(Store.open(moved))]
    assert all(report.ok for report in reports)
    assert len({report.digest for report in reports}) == 1
    assert reports[0].num_files == 6


def test_the_digest_tells_other_content_apart(tmp_path: Path) -> None:
    digests = set()
    finding = Finding(kind="passed_over", count=1, message="one sample")
    for name, changes in (("a", {"metrics": {"accuracy": 0.5}}), ("b", {"metrics": {"accuracy": 0.6}}), ("c", {"findings": [finding]})):
        with Store.create(tmp_path / name, RUN).locked() as store:
            store.commit(commit_of(store, **changes))
            digests.add(verify(store).digest)
    assert len(digests) == 3


def test_a_record_from_before_findings_loads_and_keeps_its_digest(store: Store, run_dir: Path) -> None:
    commit = commit_of(store)
    old = commit.model_dump(mode="json", exclude={"findings"})
    store.storage.write("rounds/0000/commit.json", seal(old))
    assert Store.open(run_dir).commits() == [commit]
    assert canonical(commit) == (
        b'{"commit":{"candidate":null,"champion":"r0","champion_path":"checkpoints/base","counts":{},"decision":null,"filters":[],'
        b'"metrics":{"accuracy/near":0.5},"round":0,"schema_version":1,"state":"baseline"},"files":[]}'
    )


def test_what_happened_to_the_machines_is_kept_and_changes_no_digest(store: Store) -> None:
    moved = Finding(kind="fleet_changed", count=1, message="an engine moved")
    quiet, eventful = commit_of(store), commit_of(store, incidents=[moved])
    assert canonical(eventful) == canonical(quiet)
    store.commit(eventful)
    assert store.commits() == [eventful]
    assert eventful.reported == [moved]


@pytest.mark.parametrize("name", ["checkpoints/base/model.safetensors", "rounds/0000/parts/predictions.parquet", "run.json"])
def test_verify_names_every_damaged_file(tmp_path: Path, name: str) -> None:
    store = build(tmp_path / "a", "one", 1.0)
    intact = verify(store).digest
    flip(tmp_path / "a" / name, 6)
    report = verify(store)
    assert not report.ok
    assert all(name in problem for problem in report.problems)
    assert (report.digest == intact) == (name == "run.json")
    (tmp_path / "a" / name).unlink()
    assert name in verify(store).problems[0]


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
