"""Reads a run folder. Nothing here needs the run's lock, and everything that is trusted is verified.

`loop.store.run_store` describes the folder and writes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from actors.folders import Folder, local_path
from loop.errors import DamagedFileError, PrunedCheckpointError, SchemaVersionError
from loop.store.commits import SCHEMA_VERSION, FileEntry, RoundCommit
from loop.store.documents import REMEDY, CheckpointReceipt, PartReceipt, PrunedCheckpoint, RunInfo, describe, note_damage, unseal
from loop.store.storage.base import Storage
from policies.records import SCHEMA_VERSION as RECORD_SCHEMA_VERSION
from policies.records import Record, RecordSchemaError, columns_of, from_table, record_version

RUN = "run.json"
PRUNED = ".pruned.json"
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class RunReader:
    """A run that can be read."""

    storage: Storage

    @property
    def uri(self) -> str:
        return self.storage.uri

    def read_run(self) -> RunInfo:
        """Raises `DamagedFileError` or `SchemaVersionError`."""
        return self.load(RUN, RunInfo)

    # ---- parts

    def read_part(self, part: PartReceipt | FileEntry) -> pa.Table:
        """The table of a part.

        Raises:
            DamagedFileError: it is missing, altered, or not a Parquet file.
        """
        return _table(part.path, self._read(part))

    def read_records(self, part: PartReceipt | FileEntry) -> list[Record]:
        """The records of a part. Raises `DamagedFileError` as `read_part` does, and `SchemaVersionError`."""
        table = self.read_part(part)
        with _of_this_version(part.path, table):
            return from_table(table)

    def read_record_columns(self, part: PartReceipt | FileEntry, columns: Sequence[str]) -> pa.Table:
        """Some columns of the records of a part. Raises `DamagedFileError` as `read_part` does, and `SchemaVersionError`."""
        table = _table(part.path, self._read(part), columns)
        with _of_this_version(part.path, table):
            return columns_of(table, columns)

    def read_json_part(self, part: PartReceipt | FileEntry) -> Any:
        """The document of a JSON part. Raises `DamagedFileError`."""
        data = self._read(part)
        try:
            return json.loads(data)
        except ValueError as error:
            raise DamagedFileError(part.path, "a JSON document", str(error), REMEDY) from error

    def file_entry(self, path: str) -> FileEntry:
        """Size and SHA-256 of any file of the run, as a commit record lists it. Raises `DamagedFileError` when it is missing."""
        try:
            return self.storage.entry(path)
        except FileNotFoundError as error:
            raise DamagedFileError(path, "a file", "none", REMEDY) from error

    def _read(self, part: PartReceipt | FileEntry) -> bytes:
        try:
            data = self.storage.read(part.path)
        except FileNotFoundError as error:
            raise DamagedFileError(part.path, "a file", "none", REMEDY) from error
        wanted = part.entry if isinstance(part, PartReceipt) else part
        found = FileEntry(path=part.path, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        if found != wanted:
            raise DamagedFileError(part.path, describe(wanted), describe(found), REMEDY)
        return data

    # ---- checkpoints

    def local_checkpoint(self, path: str) -> Path:
        """The checkpoint folder `path` on this machine. Raises what `checkpoint` does, and `DamagedFileError` for an altered file."""
        return local_path(self.checkpoint(path))

    def checkpoint(self, path: str, kept: Sequence[str] = ()) -> Folder:
        """The checkpoint folder `path` (relative to the run: `checkpoints/NAME`) as actors on any node read it: in place for a local run,
        where only sizes are checked (see `check_files`); otherwise nodes make verified copies, and delete those of checkpoints whose
        names begin with none of `kept`.

        Raises:
            PrunedCheckpointError: it was deleted by retention.
            DamagedFileError: there is no such checkpoint, or a file of a local one is missing or of another size.
        """
        pruned = self.tombstone(path)
        if pruned is not None:
            names = [name for name in self.storage.names("checkpoints") if name.endswith(".json") and not name.endswith(PRUNED)]
            raise PrunedCheckpointError(path, pruned.reason, ", ".join(name.removesuffix(".json") for name in names))
        return self.storage.checkpoint(path, self.load(path + ".json", CheckpointReceipt).files, kept)

    def tombstones(self) -> list[str]:
        """Paths of the tombstones of pruned checkpoints."""
        return ["checkpoints/" + name for name in self.storage.names("checkpoints") if name.endswith(PRUNED)]

    def tombstone(self, path: str) -> PrunedCheckpoint | None:
        return self.load_if_there(path + PRUNED, PrunedCheckpoint)

    # ---- commits

    def commits(self) -> list[RoundCommit]:
        """The committed rounds from 0 on, up to the first that is absent.

        Raises:
            DamagedFileError: a commit record cannot be read.
            SchemaVersionError: one is of another version.
        """
        found: list[RoundCommit] = []
        while commit := self._commit_if_there(len(found)):
            found.append(commit)
        return found

    def read_commit(self, round: int) -> RoundCommit:
        """The record of one round, even if others are damaged. Raises `DamagedFileError` or `SchemaVersionError`."""
        commit = self._commit_if_there(round)
        if commit is None:
            raise DamagedFileError(commit_path(round), "a file", "none", REMEDY)
        return commit

    def _commit_if_there(self, round: int) -> RoundCommit | None:
        commit = self.load_if_there(commit_path(round), RoundCommit)
        if commit is not None and commit.round != round:
            raise DamagedFileError(commit_path(round), f"the record of round {round}", f"the record of round {commit.round}", REMEDY)
        return commit

    def committed_rounds(self) -> list[int]:
        """The numbers of the rounds that have a record, damaged or not."""
        numbers = sorted(int(name) for name in self.storage.names("rounds") if name.isdecimal())
        return [number for number in numbers if self.storage.size(commit_path(number)) is not None]

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

    def load(self, path: str, model: type[Model]) -> Model:
        """The sealed document at `path`. Raises `DamagedFileError` or `SchemaVersionError`."""
        found = self.load_if_there(path, model)
        if found is None:
            raise DamagedFileError(path, "a file", "none", REMEDY)
        return found

    def load_if_there(self, path: str, model: type[Model]) -> Model | None:
        """As `load`; None when there is no such file."""
        try:
            content = unseal(path, self.storage.read(path))
        except FileNotFoundError:
            return None
        version = content.get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise SchemaVersionError(f"{self.uri}/{path}", version, SCHEMA_VERSION)
        try:
            return model.model_validate(content)
        except ValidationError as error:
            raise DamagedFileError(path, f"a {model.__name__}", str(error), REMEDY) from error


def _table(path: str, data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The content of a Parquet file: the columns that it has of those wanted, all by default."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        return file.read(None if columns is None else [name for name in columns if name in file.schema_arrow.names])
    except (pa.ArrowException, OSError) as error:
        raise DamagedFileError(path, "a Parquet file with intact pages", str(error), REMEDY) from error


@contextmanager
def _of_this_version(path: str, table: pa.Table) -> Iterator[None]:
    """Name the part at `path` if the schema of its table is not this version's. Raises `SchemaVersionError`."""
    try:
        yield
    except RecordSchemaError as error:
        raise SchemaVersionError(path, record_version(table), RECORD_SCHEMA_VERSION) from error


def commit_path(round: int) -> str:
    return f"rounds/{round:04d}/commit.json"
