"""Reads and writes the run folder, with the commit protocol that keeps it consistent.

    run.json                              run id, resolved config, schema version; written once
    rounds/0001/parts/NAME.parquet        a stage's data, or NAME.data.json
    rounds/0001/parts/NAME.json           its receipt: size, SHA-256, rows, extra; written after the data
    rounds/0001/commit.json               written last: lists every file of the round with size and SHA-256
    checkpoints/NAME/, NAME.json          a Hugging Face checkpoint folder and its receipt
    checkpoints/NAME.pruned.json          in their place after retention has deleted them
    checkpoints/NAME.steps/               step checkpoints of an unfinished training
    lock, lock.json                       who drives the run, and the fencing epoch
    run.log, status.json, mlflow.log      for people: terminal output, state of the driver; not data of the run

A round exists when its commit record does. There is no pointer to the latest one: the newest complete commit record wins.
The fencing epoch refuses every write through a handle that is not, or no longer, the run's driver.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from loop.errors import (
    DamagedFileError,
    LockedError,
    NoRunError,
    PrunedCheckpointError,
    RunExistsError,
    SchemaVersionError,
    StoreError,
    UserError,
    WriteError,
)
from loop.store.commits import SCHEMA_VERSION, FileEntry, RoundCommit
from loop.store.documents import (
    REMEDY,
    CheckpointReceipt,
    Lease,
    PartReceipt,
    PrunedCheckpoint,
    RunInfo,
    canonical,
    describe,
    note_damage,
    seal,
    unseal,
)
from loop.store.storage import Storage, open_storage
from policies.records import SCHEMA_VERSION as RECORD_SCHEMA_VERSION
from policies.records import Record, RecordSchemaError, from_table

log = logging.getLogger(__name__)

_RUN, _LOCK = "run.json", "lock.json"
_PRUNED = ".pruned.json"
_OTHERS = {
    "train.json": "a training of `vigc train`; continue it with `vigc train --resume {}`",
    "evaluation.json": "an evaluation; run the same `vigc evaluate` command again to continue it",
    "journal.sqlite": "the output of a teacher; run the same `vigc teach` command again to continue it",
}
"""Files by which the folders of other commands are recognised, and what those folders are."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Store:
    """A handle on one run. It can be pickled: actors write parts through the driver's handle. Reading needs no lock."""

    storage: Storage
    lease: Lease | None = None
    """The lock this handle writes under; None for a handle that only reads."""

    @classmethod
    def create(cls, uri: str | Path, run: RunInfo) -> Store:
        """Create a run.

        Raises:
            RunExistsError: the folder already holds one.
            UserError: the folder cannot be created.
        """
        store = cls(open_storage(uri))
        try:
            with store.storage.exclusive():
                if store.storage.size(_RUN) is not None:
                    raise RunExistsError(str(uri))
                store.storage.write(_RUN, seal(run.model_dump(mode="json")))
        except BlockingIOError as error:
            raise RunExistsError(str(uri)) from error
        except WriteError as error:
            raise UserError(f"cannot create a run in {uri}: {error.path}: {error.reason}; choose a folder that you can write to") from error
        return store

    @classmethod
    def open(cls, uri: str | Path) -> Store:
        """Open an existing run for reading; `locked` makes it writable.

        Raises:
            NoRunError: the folder holds no run.
        """
        store = cls.find(uri)
        if store is None:
            storage = open_storage(uri)
            others = (what for name, what in _OTHERS.items() if storage.size(name) is not None)
            raise NoRunError(str(uri), next(others, "").format(uri))
        return store

    @classmethod
    def find(cls, uri: str | Path) -> Store | None:
        """The run in a folder, for reading; None where there is none."""
        store = cls(open_storage(uri))
        return None if store.storage.size(_RUN) is None else store

    @property
    def uri(self) -> str:
        return self.storage.uri

    @property
    def epoch(self) -> int:
        """Fencing epoch of this handle; 0 for one that only reads."""
        return 0 if self.lease is None else self.lease.epoch

    def read_run(self) -> RunInfo:
        """Raises `DamagedFileError` or `SchemaVersionError`."""
        return self.load(_RUN, RunInfo)

    # ---- the lock

    @contextmanager
    def locked(self) -> Iterator[Store]:
        """Become the run's only driver: yields a handle that may write. Half-written files of dead drivers are removed first.

        Object stores have no lock: a second driver takes over, and the first is refused at its next write.

        Raises:
            LockedError: another driver is alive.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self.storage.exclusive())
            except BlockingIOError as error:
                raise LockedError(f"{self.uri} is driven by {self._holder() or 'another process'}; wait for it or stop it") from error
            yield self._acquire()

    def _acquire(self) -> Store:
        previous = self._holder()
        epoch = 1 if previous is None else previous.epoch + 1
        lease = Lease(epoch=epoch, pid=os.getpid(), host=socket.gethostname(), acquired_at=time.time())
        self.storage.write(_LOCK, seal(lease.model_dump(mode="json")))
        self.storage.remove_leftovers()
        driver = Store(self.storage, lease)
        for path in self.tombstones():
            driver._finish_pruning(path.removesuffix(_PRUNED))
        return driver

    def _holder(self) -> Lease | None:
        return None if self.storage.size(_LOCK) is None else self.load(_LOCK, Lease)

    def _check_fence(self) -> None:
        if self.lease is None:
            raise LockedError(f"this handle on {self.uri} only reads; write inside `with store.locked() as store:`")
        holder = self._holder()
        if holder is None:
            raise DamagedFileError(f"{self.uri}/{_LOCK}", f"the lease of {self.lease}", "no file", "put the run folder back")
        if holder != self.lease:
            raise LockedError(f"{self.uri} was taken over: this driver is {self.lease}, the current one is {holder}; stop this one")

    # ---- parts

    def write_part(self, round: int, name: str, table: pa.Table, extra: Mapping[str, Any] | None = None) -> PartReceipt:
        """Write a stage's table; it is durable on return. The same table gives the same bytes. Writing a part again replaces it.

        Raises:
            LockedError: this handle is not the run's driver.
            StoreError: the round is already committed.
        """
        sink = io.BytesIO()
        pq.write_table(table.combine_chunks(), sink, compression="zstd", write_page_checksum=True)
        return self._write_part(round, name, ".parquet", sink.getvalue(), table.num_rows, extra)

    def write_json_part(self, round: int, name: str, document: Any, extra: Mapping[str, Any] | None = None) -> PartReceipt:
        """Write a stage's JSON document, with the same guarantees as `write_part`."""
        data = json.dumps(document, sort_keys=True, indent=1).encode() + b"\n"
        return self._write_part(round, name, ".data.json", data, 1, extra)

    def finished_part(self, round: int, name: str) -> PartReceipt | None:
        """The receipt of a part that matches it; None when the part has to be made (again)."""
        path = _part(round, name) + ".json"
        return self._finished(path, PartReceipt, lambda receipt: [receipt.entry])

    def drop_part(self, round: int, name: str) -> None:
        """Remove a part of a round that is not committed, so that it is made again.

        Raises:
            LockedError: this handle is not the run's driver.
            StoreError: the round is committed.
        """
        self._refuse_change(round, name)
        stem = _part(round, name)
        self.storage.remove(stem + ".json")  # first: data without a receipt are ignored
        self.storage.remove(stem + ".parquet")

    def read_part(self, part: PartReceipt | FileEntry | str) -> pa.Table:
        """The table of a part. With a receipt or an entry of a commit record the bytes are verified, with a bare path they are not.

        Raises:
            DamagedFileError: it is missing, altered, or not a Parquet file.
        """
        path, data = self._read(part)
        try:
            return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
        except (pa.ArrowException, OSError) as error:
            raise DamagedFileError(path, "a Parquet file with intact pages", str(error), REMEDY) from error

    def read_records(self, part: PartReceipt | FileEntry) -> list[Record]:
        """The records of a part. Raises `DamagedFileError` as `read_part` does, and `SchemaVersionError`."""
        return records_in(part.path, self.read_part(part))

    def read_json_part(self, part: PartReceipt | FileEntry | str) -> Any:
        """The document of a JSON part. Raises `DamagedFileError`."""
        path, data = self._read(part)
        try:
            return json.loads(data)
        except ValueError as error:
            raise DamagedFileError(path, "a JSON document", str(error), REMEDY) from error

    def file_entry(self, path: str) -> FileEntry:
        """Size and SHA-256 of any file of the run, as a commit record lists it. Raises `DamagedFileError` when it is missing."""
        try:
            return self.storage.entry(path)
        except FileNotFoundError as error:
            raise DamagedFileError(path, "a file", "none", REMEDY) from error

    def _write_part(self, round: int, name: str, suffix: str, data: bytes, num_rows: int, extra: Mapping[str, Any] | None) -> PartReceipt:
        stem = _part(round, name)
        self._refuse_change(round, name)
        receipt = PartReceipt(
            path=stem + suffix, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), num_rows=num_rows, extra=dict(extra or {})
        )
        self.storage.write(receipt.path, data)
        self.storage.write(stem + ".json", seal(receipt.model_dump(mode="json")))
        return receipt

    def _refuse_change(self, round: int, name: str) -> None:
        self._check_fence()
        if self.storage.size(_commit_path(round)) is not None:
            raise StoreError(f"round {round} of {self.uri} is committed; its part {name} cannot change any more")

    def _read(self, part: PartReceipt | FileEntry | str) -> tuple[str, bytes]:
        path = part if isinstance(part, str) else part.path
        try:
            data = self.storage.read(path)
        except FileNotFoundError as error:
            raise DamagedFileError(path, "a file", "none", REMEDY) from error
        if not isinstance(part, str):
            wanted = FileEntry(path=path, num_bytes=part.num_bytes, sha256=part.sha256)
            found = FileEntry(path=path, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            if found != wanted:
                raise DamagedFileError(path, describe(wanted), describe(found), REMEDY)
        return path, data

    # ---- checkpoints

    def checkpoint_dir(self, name: str) -> Path:
        """An empty local folder to write checkpoint `name` into (`checkpoints/NAME.tmp` of a local run); then `publish_checkpoint`.
        Call it once per checkpoint: it empties what is there."""
        self._check_fence()
        return self.storage.scratch(_checkpoint(name))

    def publish_checkpoint(self, scratch: Path, name: str) -> CheckpointReceipt:
        """Turn the folder that `checkpoint_dir` returned into checkpoint `name`: make it durable, then visible, then write its receipt.

        Raises:
            LockedError: this handle is not the run's driver.
            StoreError: a committed round lists a checkpoint of that name.
        """
        path = _checkpoint(name)
        self._check_fence()
        if any(file.path.startswith(path + "/") for commit in self.commits() for file in commit.files):
            raise StoreError(f"checkpoint {name} of {self.uri} is committed; it cannot change any more")
        receipt = CheckpointReceipt(path=path, files=self.storage.publish(scratch, path))
        self.storage.write(path + ".json", seal(receipt.model_dump(mode="json")))
        return receipt

    def steps_folder(self, name: str) -> Path:
        """Where the trainer of checkpoint `name` keeps its step checkpoints, from which the next driver continues; it may not exist yet."""
        return self.storage.workspace(_checkpoint(name) + ".steps")

    def drop_steps(self, name: str) -> None:
        """Remove the step checkpoints of checkpoint `name`, which is finished."""
        self._check_fence()
        folder = self.steps_folder(name)
        if folder.exists():
            shutil.rmtree(folder)

    def finished_checkpoint(self, name: str) -> CheckpointReceipt | None:
        """The receipt of a checkpoint whose files all match it; None when it has to be made (again)."""
        return self._finished(_checkpoint(name) + ".json", CheckpointReceipt, lambda receipt: receipt.files)

    def local_checkpoint(self, path: str) -> Path:
        """The checkpoint folder `path` (relative to the run: `checkpoints/NAME`) on this machine: in place for a local run, where
        only sizes are checked (see `check_files`); otherwise a verified copy in the cache folder.

        Raises:
            PrunedCheckpointError: it was deleted by retention.
            DamagedFileError: there is no such checkpoint, or a file of it is missing or altered.
        """
        pruned = self._tombstone(path)
        if pruned is not None:
            names = [name for name in self.storage.names("checkpoints") if name.endswith(".json") and not name.endswith(_PRUNED)]
            raise PrunedCheckpointError(path, pruned.reason, ", ".join(name.removesuffix(".json") for name in names))
        return self.storage.fetch(path, self.load(path + ".json", CheckpointReceipt).files)

    def prune_checkpoint(self, path: str, reason: str) -> None:
        """Delete the committed checkpoint folder `path` for good. A tombstone with its files and the reason is made durable first: it
        distinguishes pruned from lost files, and lets the next driver finish an interrupted deletion.

        Raises:
            LockedError: this handle is not the run's driver.
        """
        self._check_fence()
        if self._tombstone(path) is None:
            files = [file for commit in self.commits() for file in commit.files if file.path.startswith(path + "/")]
            assert files, f"no committed round lists {path}"
            tombstone = PrunedCheckpoint(path=path, files=files, reason=reason)
            self.storage.write(path + _PRUNED, seal(tombstone.model_dump(mode="json")))
        self._finish_pruning(path)

    def tombstones(self) -> list[str]:
        """Paths of the tombstones of pruned checkpoints."""
        return ["checkpoints/" + name for name in self.storage.names("checkpoints") if name.endswith(_PRUNED)]

    def _finish_pruning(self, path: str) -> None:
        receipt = path + ".json"
        if self.storage.names(path) or self.storage.size(receipt) is not None:
            self.load(path + _PRUNED, PrunedCheckpoint)  # raises if it is damaged: then nothing is deleted
            self.storage.remove(path)
            self.storage.remove(receipt)

    def _tombstone(self, path: str) -> PrunedCheckpoint | None:
        return None if self.storage.size(path + _PRUNED) is None else self.load(path + _PRUNED, PrunedCheckpoint)

    # ---- commits

    def commit(self, commit: RoundCommit) -> None:
        """Make a round exist: check that every listed file is there, then write the record. Committing the same again changes nothing.

        Raises:
            LockedError: this handle is not the run's driver.
            StoreError: a listed file is missing or of another size, the round before is absent, or the round is already committed
                with other content.
        """
        self._check_fence()
        assert commit.epoch == self.epoch, f"commit of epoch {commit.epoch} through a handle of epoch {self.epoch}"
        done = self.commits()
        if commit.round < len(done):
            if canonical(done[commit.round]) != canonical(commit):
                raise StoreError(f"round {commit.round} of {self.uri} is already committed with other content and cannot change")
            return
        if commit.round > len(done):
            raise StoreError(f"round {commit.round} of {self.uri} cannot be committed: round {len(done)} is not")
        for file in commit.files:
            size = self.storage.size(file.path)
            if size != file.num_bytes:
                found = "missing" if size is None else f"{size} bytes long"
                raise StoreError(f"round {commit.round} cannot be committed: {file.path} is {found}, not {file.num_bytes} bytes long")
        self.storage.write(_commit_path(commit.round), seal(commit.model_dump(mode="json")))

    def commits(self) -> list[RoundCommit]:
        """The committed rounds from 0 on, up to the first that is absent.

        Raises:
            DamagedFileError: a commit record cannot be read.
            SchemaVersionError: one is of another version.
        """
        found: list[RoundCommit] = []
        while self.storage.size(_commit_path(len(found))) is not None:
            found.append(self.read_commit(len(found)))
        return found

    def read_commit(self, round: int) -> RoundCommit:
        """The record of one round, even if others are damaged. Raises `DamagedFileError` or `SchemaVersionError`."""
        commit = self.load(_commit_path(round), RoundCommit)
        if commit.round != round:
            raise DamagedFileError(_commit_path(round), f"the record of round {round}", f"the record of round {commit.round}", REMEDY)
        return commit

    def committed_rounds(self) -> list[int]:
        """The numbers of the rounds that have a record, damaged or not."""
        numbers = sorted(int(name) for name in self.storage.names("rounds") if name.isdecimal())
        return [number for number in numbers if self.storage.size(_commit_path(number)) is not None]

    def readable_commits(self) -> tuple[list[RoundCommit], list[str]]:
        """The rounds whose records are intact, and what is wrong with the others."""
        problems: list[str] = []
        found = [note_damage(partial(self.read_commit, round), problems) for round in self.committed_rounds()]
        return [commit for commit in found if commit is not None], problems

    def check_files(self, files: Iterable[FileEntry]) -> None:
        """Verify files against their entries in a commit record. Raises `DamagedFileError` for the first that differs."""
        for file in files:
            found = self.file_entry(file.path)
            if found != file:
                raise DamagedFileError(file.path, describe(file), describe(found), REMEDY)

    # ---- sealed documents

    def load(self, path: str, model: type[_Model]) -> _Model:
        """The sealed document at `path`. Raises `DamagedFileError` or `SchemaVersionError`."""
        try:
            content = unseal(path, self.storage.read(path))
        except FileNotFoundError as error:
            raise DamagedFileError(path, "a file", "none", REMEDY) from error
        version = content.get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise SchemaVersionError(f"{self.uri}/{path}", version, SCHEMA_VERSION)
        try:
            return model.model_validate(content)
        except ValidationError as error:
            raise DamagedFileError(path, f"a {model.__name__}", str(error), REMEDY) from error

    def _finished(self, path: str, model: type[_Model], files_of: Callable[[_Model], Sequence[FileEntry]]) -> _Model | None:
        """The receipt at `path` if every file it lists is intact. A damaged one counts as missing: the work is redone."""
        if self.storage.size(path) is None:
            return None
        try:
            receipt = self.load(path, model)
            self.check_files(files_of(receipt))
        except DamagedFileError as error:
            log.warning("%s of %s: expected %s, found %s; it will be made again", error.path, self.uri, error.expected, error.found)
            return None
        return receipt


def records_in(path: str, table: pa.Table) -> list[Record]:
    """The rows of the part `path` as records. Raises `SchemaVersionError`."""
    try:
        return from_table(table)
    except RecordSchemaError as error:
        found = (table.schema.metadata or {}).get(b"vigc_record_schema", b"none").decode()
        raise SchemaVersionError(path, found, RECORD_SCHEMA_VERSION) from error


def _commit_path(round: int) -> str:
    return f"rounds/{round:04d}/commit.json"


def _part(round: int, name: str) -> str:
    assert round >= 0, round
    assert _NAME.fullmatch(name), f"part {name!r}: names are letters, digits, - and _"
    return f"rounds/{round:04d}/parts/{name}"


def _checkpoint(name: str) -> str:
    assert _NAME.fullmatch(name), f"checkpoint {name!r}: names are letters, digits, - and _"
    return f"checkpoints/{name}"
