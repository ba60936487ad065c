"""What a bad disk does to a run: full, read-only, gone, or with other bytes than were written. Every error names the file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from loop import errors
from loop.cli import app
from loop.export import export
from loop.run.retention import check_needed, needed_files
from loop.store.commits import RoundState
from loop.store.documents import seal, unseal
from loop.store.run_store import Store
from loop.store.verifying import verify
from tests.loop.store.make_run import RUN, commit_of, flip, records
from tests.loop.store.test_retention import write_rounds
from tests.paths import ROOT


def has_user_namespaces() -> bool:
    """Whether this user may mount a small filesystem of its own."""
    return subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False, capture_output=True).returncode == 0


needs_tmpfs = pytest.mark.skipif(
    shutil.which("unshare") is None or not has_user_namespaces(), reason="needs user namespaces, to mount a small filesystem"
)

# ---- no space left

_FULL = """
import os, subprocess, sys
from pathlib import Path
from loop.errors import WriteError
from loop.store.run_store import Store
from loop.store.verifying import verify
from tests.loop.store.make_run import RUN, checkpoint, commit_of, records
from tests.loop.store.test_disk import visible

root = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", root], check=True)
part = None

def refused(call):
    try:
        call()
    except WriteError as error:
        print(error)
    else:
        raise SystemExit("a write to a full disk was not refused")

ballast = root / "ballast"

def fill():
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass

with Store.create(root / "run", RUN).locked() as store:
    part = store.write_part(0, "predictions", records())
    fill()
    before = visible(root)
    refused(lambda: store.write_part(0, "shard", records(1000)))
    refused(lambda: store.write_json_part(0, "training", {"losses": [0.5] * 10000}))
    refused(lambda: store.commit(commit_of(store, files=[part.entry])))
    assert visible(root) == before, visible(root)
    assert store.commits() == [] and store.finished_part(0, "predictions") == part
    ballast.unlink()
    folder = store.checkpoint_dir("base")
    (folder / "model.safetensors").write_bytes(b"weights")
    fill()
    refused(lambda: store.publish_checkpoint(folder, "base"))
    assert store.finished_checkpoint("base") is None
    ballast.unlink()
    store.write_part(0, "shard", records(1000))
    files = checkpoint(store, "base").files
    store.commit(commit_of(store, files=[part.entry, *files]))
    assert verify(store).ok
with Store.open(root / "run").locked():
    assert not [path for path in visible(root) if ".tmp" in path]
"""


def visible(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


@needs_tmpfs
def test_no_space_left_is_a_named_error_leaves_nothing_half_written_and_ends_when_there_is_room(tmp_path: Path) -> None:
    script = ["unshare", "-rm", sys.executable, "-c", _FULL, str(tmp_path)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line, name in zip(lines, ("shard.parquet", "training.data.json", "commit.json", "base.json"), strict=True):
        assert line.startswith(f"cannot write {tmp_path}/run/")
        assert f"{name}: No space left on device; free space" in line


@needs_tmpfs
def test_a_read_only_folder_can_be_looked_at_and_says_what_cannot_be_written(run_dir: Path, tmp_path: Path) -> None:
    with Store.create(run_dir, RUN).locked() as store:
        write_rounds(store, [])
    script = """
import subprocess, sys
from pathlib import Path
from loop.store.run_store import Store
from loop.store.verifying import verify
root = Path(sys.argv[1])
subprocess.run(["mount", "--bind", root, root], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
store = Store.open(root)
assert verify(store).ok and len(store.commits()) == 1
try:
    store.locked().__enter__()
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", script, str(run_dir)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.startswith(f"WriteError cannot write {run_dir}/lock: Read-only file system; free space or fix the cause"), done


def test_a_vanished_folder_is_a_named_error(store: Store, run_dir: Path) -> None:
    write_rounds(store, [])
    shutil.rmtree(run_dir)
    with pytest.raises(errors.DamagedFileError, match=rf"{run_dir}/lock\.json is damaged: expected .* found no file; put the run folder"):
        store.write_part(1, "shard", records())
    with pytest.raises(errors.NoRunError, match="holds no run"):
        Store.open(run_dir)


# ---- other bytes than were written


def flipped(path: Path) -> None:
    flip(path, path.stat().st_size // 2, 3)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: list[Callable[[Path], None]] = [flipped, truncated, emptied, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_named_and_those_of_the_next_round_stop_it(
    store: Store, run_dir: Path, damage: Callable[[Path], None]
) -> None:
    commits = write_rounds(store, [RoundState.ACCEPTED, RoundState.REJECTED, RoundState.ACCEPTED])
    sound = verify(store)
    needed = {file.path for file in needed_files(commits)}
    assert len(needed) == 2 * 2 + 2 * 2 + 2, (
        "two checkpoints, what two accepted rounds trained on and where it lies, the answers of champion and seed model"
    )
    for file in [file for commit in commits for file in commit.files]:
        path = run_dir / file.path
        before = path.read_bytes()
        damage(path)
        report = verify(store)
        assert [problem.startswith(f"{file.path} is damaged: ") for problem in report.problems] == [True], report.problems
        assert report.digest != sound.digest
        if file.path in needed:
            with pytest.raises(errors.DamagedFileError, match=file.path):
                check_needed(store, store.commits())
        else:
            check_needed(store, store.commits())
        path.write_bytes(before)
    assert verify(store) == sound


@pytest.mark.parametrize("name", ["run.json", "rounds/0001/commit.json", "checkpoints/round-0000.json", "checkpoints/round-0002.json"])
@pytest.mark.parametrize("damage", [flipped, truncated, emptied])
def test_a_damaged_record_is_named_and_stops_the_next_round(store: Store, run_dir: Path, name: str, damage: Callable[[Path], None]) -> None:
    write_rounds(store, [RoundState.ACCEPTED, RoundState.ACCEPTED])
    damage(run_dir / name)
    assert any(problem.startswith(f"{name} is damaged: ") for problem in verify(store).problems)
    with pytest.raises(errors.DamagedFileError, match=name):
        _resume_reads(store)


def _resume_reads(store: Store) -> None:
    """What a driver reads of a run before it starts anything."""
    store.read_run()
    check_needed(store, store.commits())


# ---- older rounds stay readable


class GreyImages:
    def image_ids(self) -> list[str]:
        return []

    def open(self, image_id: str) -> Image.Image:
        return Image.new("RGB", (8, 8), "grey")


@pytest.mark.parametrize("damage", DAMAGES[:3])
def test_intact_rounds_can_be_exported_and_seen_beside_a_damaged_record(
    store: Store, run_dir: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    write_rounds(store, [RoundState.ACCEPTED, RoundState.ACCEPTED])
    damage(run_dir / "rounds/0002/commit.json")
    report = export(store, 1, "parquet", tmp_path / "round-1.parquet", GreyImages())
    assert report.num_records == 2
    with pytest.raises(errors.DamagedFileError, match=r"rounds/0002/commit\.json"):
        export(store, 2, "parquet", tmp_path / "round-2.parquet", GreyImages())
    with pytest.raises(errors.UserError, match=r"round 7 .* is not committed; committed rounds are \[0, 1, 2\]"):
        export(store, 7, "parquet", tmp_path / "round-7.parquet", GreyImages())
    commits, problems = store.readable_commits()
    assert [commit.round for commit in commits] == [0, 1]
    assert [problem.partition(" is damaged")[0] for problem in problems] == ["rounds/0002/commit.json"]
    shown = CliRunner().invoke(app, ["status", str(run_dir), "--json"])
    assert shown.exit_code == 0
    assert '"state": "damaged"' in shown.output
    assert "rounds/0002/commit.json is damaged" in shown.output


# ---- another schema version


@pytest.mark.parametrize("name", ["run.json", "rounds/0001/commit.json"])
def test_another_schema_version_is_named_and_refused(store: Store, run_dir: Path, name: str) -> None:
    write_rounds(store, [RoundState.ACCEPTED])
    path = run_dir / name
    path.write_bytes(seal({**unseal(name, path.read_bytes()), "schema_version": 2, "a_new_key": 1}))
    with pytest.raises(errors.SchemaVersionError, match=rf"{name} has schema version 2; this vigc-loop reads version 1") as caught:
        _resume_reads(store)
    assert caught.value.exit_code == 2


def test_records_of_another_schema_version_are_named_and_refused(store: Store, run_dir: Path, tmp_path: Path) -> None:
    table = records().replace_schema_metadata({"vigc_record_schema": "99"})
    store.commit(commit_of(store, files=[store.write_part(0, "records-00000", table).entry]))
    with pytest.raises(errors.SchemaVersionError, match=r"rounds/0000/parts/records-00000\.parquet has schema version 99") as caught:
        export(store, 0, "parquet", tmp_path / "out.parquet", GreyImages())
    assert caught.value.exit_code == 2
