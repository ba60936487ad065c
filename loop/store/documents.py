"""The small JSON documents of a run beside its commit records, and the checksum that each of them carries."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, Field

from loop.errors import DamagedFileError, SchemaVersionError
from loop.store.commits import SCHEMA_VERSION, Document, FileEntry, RoundCommit

REMEDY = "restore it from a copy of the run (`vigc verify` lists every damaged file)"
_NOT_IN_DIGEST = {"run_id", "started_at", "committed_at", "epoch", "stage_seconds", "idle", "incidents", "files"}
_NOT_IN_DIGEST_IF_EMPTY = ("findings", "mean_teacher", "mean_teacher_path")
"""Keys that records of earlier versions lack: records without a value keep their digest."""
_Model = TypeVar("_Model", bound=BaseModel)


class RunInfo(Document):
    """Identity and config of a run, written once when it is created."""

    run_id: str
    config: dict[str, Any]
    """The resolved config, every default filled in."""
    schema_version: int = SCHEMA_VERSION


class Lease(Document):
    """Which process drives a run. Each driver increments the epoch by one."""

    epoch: int
    pid: int
    host: str
    acquired_at: float
    """Seconds since the epoch of time."""
    renewals: int = 0
    """Grows while the driver is alive, where no file lock shows that."""
    released: bool = False
    """Whether the driver has ended and given the lease back."""

    def same_driver(self, other: Lease) -> bool:
        """Whether both are leases of one driver, before and after a renewal."""
        return (self.epoch, self.pid, self.host, self.acquired_at) == (other.epoch, other.pid, other.host, other.acquired_at)

    def __str__(self) -> str:
        return f"epoch {self.epoch} (pid {self.pid} on {self.host}, since {time.strftime('%F %T', time.localtime(self.acquired_at))})"


class PartReceipt(Document):
    """A finished part: its file as it should be on disk. `extra` holds counts and timings; no hash in a commit covers it."""

    path: str
    num_bytes: int
    sha256: str
    num_rows: int
    """Rows of a table; 1 for a JSON document."""
    extra: dict[str, Any] = Field(default_factory=dict)

    @property
    def entry(self) -> FileEntry:
        """The part as a commit record lists it."""
        return FileEntry(path=self.path, num_bytes=self.num_bytes, sha256=self.sha256)


class CheckpointReceipt(Document):
    """A finished checkpoint folder and its files."""

    path: str
    """Relative to the run folder."""
    files: list[FileEntry]


class PrunedCheckpoint(Document):
    """Tombstone of a checkpoint folder that was deleted on purpose."""

    path: str
    """Relative to the run folder."""
    files: list[FileEntry]
    """Its files, as the commit record lists them."""
    reason: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `loop.store.verifying.verify` found."""

    num_files: int
    num_bytes: int
    num_pruned_files: int
    """Committed files that retention has deleted; the digest uses their entries in the commit record."""
    digest: str
    """SHA-256 over all committed data as it is on disk: equal for two runs with the same results, wherever and whenever they ran."""
    problems: list[str]

    @property
    def ok(self) -> bool:
        return not self.problems


def canonical_json(content: Any) -> bytes:
    """The canonical form of a JSON value, for hashing."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def seal(content: dict[str, Any]) -> bytes:
    """A readable JSON file with the SHA-256 of its own content, so that a flipped bit in a number is detected."""
    sealed = {"content": content, "sha256": hashlib.sha256(canonical_json(content)).hexdigest()}
    return (json.dumps(sealed, sort_keys=True, indent=1) + "\n").encode()


def unseal(path: str, data: bytes) -> dict[str, Any]:
    """The content of a sealed file.

    Raises:
        DamagedFileError: it is not JSON, not a sealed file, or its content does not match its hash.
    """
    try:
        sealed = json.loads(data)
        content, wanted = sealed["content"], sealed["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFileError(path, "JSON with the keys content and sha256", f"other bytes ({error!r})", REMEDY) from error
    found = hashlib.sha256(canonical_json(content)).hexdigest()
    if not isinstance(content, dict) or found != wanted:
        raise DamagedFileError(path, f"content with SHA-256 {wanted}", f"SHA-256 {found}", REMEDY)
    return content


def describe(file: FileEntry) -> str:
    return f"{file.num_bytes} bytes with SHA-256 {file.sha256}"


def note_damage(load: Callable[[], _Model], problems: list[str]) -> _Model | None:
    """What `load` gives; None where that is damaged or of another version, which goes to `problems`."""
    try:
        return load()
    except (DamagedFileError, SchemaVersionError) as error:
        problems.append(str(error))
        return None


def canonical(commit: RoundCommit) -> bytes:
    """What a commit says, free of when, where and by whom it was written."""
    files = sorted((file.path, file.sha256) for file in commit.files)
    exclude = _NOT_IN_DIGEST.union(name for name in _NOT_IN_DIGEST_IF_EMPTY if not getattr(commit, name))
    return canonical_json({"commit": commit.model_dump(mode="json", exclude=exclude), "files": files})
