"""The journal's promises: what was put is there after any end, one process writes, and what is not its own file is refused."""

from __future__ import annotations

import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loop.errors import DamagedFileError, SchemaVersionError, UserError, WriteError
from loop.journal import Journal

WRITER = """
import sys
from pathlib import Path
from loop.journal import Journal
with Journal(Path(sys.argv[1]), {}) as journal:
    for i in range(1_000_000):
        journal.put(str(i), {"text": "x" * 5000})
        print(i, flush=True)
"""


def journal_of(path: Path, **about: str) -> Path:
    with Journal(path, about) as journal:
        for i in range(50):
            journal.put(f"key {i}", {"text": f"text {i} of a reply ✓" + " and more" * 50})
    return path


def refused(path: Path, error: type[Exception], says: str, **about: str) -> None:
    before = path.read_bytes()
    with pytest.raises(error, match=says), Journal(path, about):
        pass
    assert path.read_bytes() == before


def change(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as other:
        other.execute(statement)
    other.close()


def test_documents_are_kept_replaced_and_ordered_by_key(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.sqlite"
    with Journal(path, {}) as journal:
        for key in ("b", "a", "half a character \ud800", "b"):
            journal.put(key, {"is": key, "seen": journal.get(key) is not None})
    with Journal(path, {}) as journal:
        assert [(key, document["seen"]) for key, document in journal.documents()] == [
            ("a", False), ("b", True), ("half a character \ud800", False),
        ]  # fmt: skip
        assert (journal.get("a"), journal.get("c")) == ({"is": "a", "seen": False}, None)
    assert [one.name for one in path.parent.iterdir()] == ["a.sqlite"]


@pytest.mark.parametrize("num", [1, 40])
def test_after_a_kill_everything_is_there_that_was_put(tmp_path: Path, num: int) -> None:
    path = tmp_path / "a.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for _ in range(num):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    num_put = num + len(writer.stdout.readlines())
    writer.wait()
    with Journal(path, {}) as journal:
        found = dict(journal.documents())
        assert {str(i) for i in range(num_put)} <= set(found)
        assert len(found) <= num_put + 1
        journal.put("the next", {})


def test_what_was_being_written_when_the_power_failed_is_taken_back(tmp_path: Path) -> None:
    path, copy = journal_of(tmp_path / "a.sqlite"), tmp_path / "copy.sqlite"
    with Journal(path, {}, commit_every_s=1e9) as journal:
        for i in range(5000):  # more than SQLite's cache: the file holds a part of them
            journal.put(f"new {i}", {"text": "x" * 1000})
        assert path.stat().st_size > 1_000_000
        copy.write_bytes(path.read_bytes())
        copy.with_name("copy.sqlite-journal").write_bytes(path.with_name("a.sqlite-journal").read_bytes())
    with Journal(copy, {}) as journal:
        assert len(list(journal.documents())) == 50


@pytest.mark.parametrize(("every_s", "num_kept"), [(0.0, 1), (1e9, 0)])
def test_a_document_is_synced_before_put_returns_unless_it_may_be_lost(tmp_path: Path, every_s: float, num_kept: int) -> None:
    path, copy = tmp_path / "a.sqlite", tmp_path / "copy.sqlite"
    with Journal(path, {}, every_s) as journal:
        assert journal._pragma("synchronous") == 2  # FULL: every commit is synced
        journal.put("a", {})
        copy.write_bytes(path.read_bytes())
    with Journal(copy, {}) as journal:
        assert len(list(journal.documents())) == num_kept


def test_one_process_at_a_time_writes_it(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "a.sqlite")
    with Journal(path, {}):
        with pytest.raises(UserError, match="is being written by another process; wait for it or choose another"), Journal(path, {}):
            pass
        other = subprocess.run([sys.executable, "-c", WRITER, str(path)], capture_output=True, text=True, timeout=20)
        assert "is being written by another process" in other.stderr
    journal_of(path)


def test_a_full_disk_is_named_and_what_was_put_before_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path, {}) as journal:
        journal.put("a", {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            with pytest.raises(WriteError, match=r"cannot write .*a\.sqlite: .*; free space.*run the same command again"):
                journal.put("b", {"text": "x" * 100_000})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert [key for key, _ in journal.documents()] == ["a"]
        journal.put("c", {})
    with Journal(path, {}) as journal:
        assert [key for key, _ in journal.documents()] == ["a", "c"]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "a.sqlite", tmp_path):
        with pytest.raises(UserError, match=r"cannot be written: .*; choose another --out"), Journal(path, {}):
            pass


@pytest.mark.parametrize(
    "altered",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1000],
        lambda data: data[:10],
        lambda data: b"garbage" * 1000,
        lambda data: b"garbage" * 1000 + data[7000:],
        lambda data: data[:8192] + bytes(4096) + data[12288:],
        lambda data: data.replace(b"text 7 of", b"text 9 of"),
        lambda data: data.replace(b"key 7", b"key x"),
    ],
)
def test_a_truncated_or_altered_file_is_refused_and_left_as_it_is(tmp_path: Path, altered: Callable[[bytes], bytes]) -> None:
    path = journal_of(tmp_path / "a.sqlite")
    path.write_bytes(altered(path.read_bytes()))
    refused(path, DamagedFileError, r"a.sqlite is damaged: expected a journal as vigc wrote it, found .*; restore it from a copy")


@pytest.mark.parametrize(
    ("statement", "error", "says"),
    [
        ("UPDATE documents SET content = '{}' WHERE rowid = 3", DamagedFileError, "hash mismatch in document b'key 1'"),
        ("DROP TABLE documents", DamagedFileError, "no such table"),
        ("PRAGMA application_id = 0", UserError, "is a SQLite file of another program"),
        ("PRAGMA user_version = 2", SchemaVersionError, "schema version 2; this vigc-loop reads version 1"),
    ],
)
def test_what_another_program_or_version_wrote_is_refused(tmp_path: Path, statement: str, error: type[Exception], says: str) -> None:
    path = journal_of(tmp_path / "a.sqlite")
    change(path, statement)
    refused(path, error, says)


def test_an_application_s_own_database_is_refused(tmp_path: Path) -> None:
    change(tmp_path / "a.sqlite", "CREATE TABLE documents (key, content, sha256)")
    refused(tmp_path / "a.sqlite", UserError, "is a SQLite file of another program; expected one that vigc wrote; choose another --out")


def test_the_journal_of_an_earlier_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"version": 1}\n')
    with pytest.raises(UserError, match=r"a\.jsonl was written by an earlier vigc-loop.*choose another --out, or delete the file"):
        journal_of(tmp_path / "a.sqlite")
    assert not (tmp_path / "a.sqlite").exists()


def test_documents_have_in_common_what_was_said_first(tmp_path: Path) -> None:
    with Journal(tmp_path / "a.sqlite", {"seed": "1"}):
        pass  # without documents it may still change
    path = journal_of(tmp_path / "a.sqlite", seed="3")
    journal_of(path, seed="3")
    refused(path, UserError, "holds answers made with seed 3, but now it is 4; use the same value, or choose another", seed="4")
    refused(path, UserError, "holds answers made with seed 3, but now it is None")
