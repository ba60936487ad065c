"""Writes the run folder, with the commit protocol that keeps it consistent. `loop.store.reading` reads it.

    run.json                              run id, resolved config, schema version; written once
    rounds/0001/parts/NAME.parquet        a stage's data, or NAME.data.json
    rounds/0001/parts/NAME.json           its receipt: size, SHA-256, rows, extra; written after the data
    rounds/0001/commit.json               written last: lists every file of the round with size and SHA-256
    checkpoints/NAME/, NAME.json          a Hugging Face checkpoint folder and its receipt
    checkpoints/NAME.pruned.json          in their place after retention has deleted them
    checkpoints/NAME.steps/               step checkpoints and samples of an unfinished training
    lock, lock.json                       who drives the run, and the fencing epoch
    run.log, status.json, mlflow.log      for people: terminal output, state of the driver; not data of the run
    events.jsonl, mlflow.json, mlflow-live/   of monitors: events, the run's place in MLflow, points that it lacks; not data of the run

A round exists when its commit record does. There is no pointer to the latest one: the newest complete commit record wins.
The fencing epoch refuses every write through a handle that is not, or no longer, the run's driver.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loop.errors import DamagedFileError, LockedError, NoRunError, RunExistsError, StoreError, UserError, WriteError
from loop.store.commits import FileEntry, RoundCommit
from loop.store.documents import CheckpointReceipt, Lease, PartReceipt, PrunedCheckpoint, RunInfo, canonical, seal
from loop.store.fencing import LEASE_S, acquire, check_fence, holder, renewed
from loop.store.reading import PRUNED, RUN, Model, RunReader, commit_path
from loop.store.storage import open_storage

log = logging.getLogger(__name__)

_OTHERS = {
    "train.json": "a training of `vigc train`; continue it with `vigc train --resume {}`",
    "evaluation.json": "an evaluation; run the same `vigc evaluate` command again to continue it",
    "journal.sqlite": "the output of a teacher; run the same `vigc teach` command again to continue it",
}
"""Files by which the folders of other commands are recognised, and what those folders are."""
_NUM_REQUESTS = 16
"""Files that are looked at side by side behind a URI, where a request takes milliseconds of waiting."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Store(RunReader):
    """A handle on one run. It can be pickled: actors write parts through the driver's handle. Reading needs no lock."""

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
                store.storage.write(RUN, seal(run.model_dump(mode="json")), store._refuse_another_run)
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
        return None if store.storage.size(RUN) is None else store

    @property
    def epoch(self) -> int:
        """Fencing epoch of this handle; 0 for one that only reads."""
        return 0 if self.lease is None else self.lease.epoch

    def _refuse_another_run(self) -> None:
        if self.storage.size(RUN) is not None:
            raise RunExistsError(self.uri)

    # ---- the lock

    @contextmanager
    def locked(self, lease_s: float = LEASE_S) -> Iterator[Store]:
        """Become the run's only driver: yields a handle that may write. Half-written files of dead drivers are removed first.

        Behind a URI there is no lock: the lease of a driver that was killed on another machine has to expire first, which takes up to
        `lease_s` seconds.

        Raises:
            LockedError: another driver is alive.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self.storage.exclusive())
            except BlockingIOError as error:
                raise LockedError(f"{self.uri} is driven by {holder(self) or 'another process'}; wait for it or stop it") from error
            lease = acquire(self, lease_s)
            held.enter_context(renewed(self, lease, lease_s))
            yield self._cleaned(lease)

    def _cleaned(self, lease: Lease) -> Store:
        self.storage.remove_leftovers()
        driver = Store(self.storage, lease)
        for path in self.tombstones():
            driver._finish_pruning(path.removesuffix(PRUNED))
        return driver

    def check_fence(self) -> None:
        """Raise `LockedError` if this handle is not, or no longer, the run's driver."""
        check_fence(self, self.lease)

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

    def finished_parts(self, round: int, names: Iterable[str]) -> dict[str, PartReceipt]:
        """The receipts of those of the parts `names` that match them, by name. What is not there costs no request of its own."""
        there = set(self.storage.names(f"rounds/{round:04d}/parts"))
        written = [name for name in names if f"{name}.json" in there]
        with ThreadPoolExecutor(1 if self.storage.has_lock else _NUM_REQUESTS) as pool:
            found = dict(zip(written, pool.map(partial(self.finished_part, round), written), strict=True))
        return {name: part for name, part in found.items() if part is not None}

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

    def _write_part(self, round: int, name: str, suffix: str, data: bytes, num_rows: int, extra: Mapping[str, Any] | None) -> PartReceipt:
        stem, check = _part(round, name), partial(self._refuse_change, round, name)
        receipt = PartReceipt(
            path=stem + suffix, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), num_rows=num_rows, extra=dict(extra or {})
        )
        self.storage.write(receipt.path, data, check)
        self.storage.write(stem + ".json", seal(receipt.model_dump(mode="json")), check)
        return receipt

    def _refuse_change(self, round: int, name: str) -> None:
        self.check_fence()
        if self.storage.size(commit_path(round)) is not None:
            raise StoreError(f"round {round} of {self.uri} is committed; its part {name} cannot change any more")

    # ---- checkpoints

    def checkpoint_dir(self, name: str) -> Path:
        """An empty folder on this node to write checkpoint `name` into (`checkpoints/NAME.tmp` of a local run); then `publish_checkpoint`.
        Call it once per checkpoint: it empties what is there."""
        self.check_fence()
        return self.storage.scratch(checkpoint_path(name))

    def publish_checkpoint(self, scratch: Path, name: str) -> CheckpointReceipt:
        """Turn a folder such as `checkpoint_dir` returns into checkpoint `name`: make it durable, then visible, then write its receipt.

        Raises:
            LockedError: this handle is not the run's driver.
            StoreError: a committed round lists a checkpoint of that name.
        """
        path = checkpoint_path(name)
        self.check_fence()
        if any(file.path.startswith(path + "/") for commit in self.commits() for file in commit.files):
            raise StoreError(f"checkpoint {name} of {self.uri} is committed; it cannot change any more")
        receipt = CheckpointReceipt(path=path, files=self.storage.publish(scratch, path, self.check_fence))
        self.storage.write(path + ".json", seal(receipt.model_dump(mode="json")), self.check_fence)
        return receipt

    def finished_checkpoint(self, name: str) -> CheckpointReceipt | None:
        """The receipt of a checkpoint whose files all match it; None when it has to be made (again)."""
        return self._finished(checkpoint_path(name) + ".json", CheckpointReceipt, lambda receipt: receipt.files)

    def prune_checkpoint(self, path: str, reason: str) -> None:
        """Delete the committed checkpoint folder `path` for good. A tombstone with its files and the reason is made durable first: it
        distinguishes pruned from lost files, and lets the next driver finish an interrupted deletion.

        Raises:
            LockedError: this handle is not the run's driver.
        """
        self.check_fence()
        if self.tombstone(path) is None:
            files = [file for commit in self.commits() for file in commit.files if file.path.startswith(path + "/")]
            assert files, f"no committed round lists {path}"
            tombstone = PrunedCheckpoint(path=path, files=files, reason=reason)
            self.storage.write(path + PRUNED, seal(tombstone.model_dump(mode="json")), self.check_fence)
        self._finish_pruning(path)

    def _finish_pruning(self, path: str) -> None:
        receipt = path + ".json"
        if self.storage.names(path) or self.storage.size(receipt) is not None:
            self.load(path + PRUNED, PrunedCheckpoint)  # raises if it is damaged: then nothing is deleted
            self.storage.remove(path)
            self.storage.remove(receipt)

    # ---- commits

    def commit(self, commit: RoundCommit) -> None:
        """Make a round exist: check that every listed file is there, then write the record. Committing the same again changes nothing.

        Raises:
            LockedError: this handle is not the run's driver.
            StoreError: a listed file is missing or of another size, the round before is absent, or the round is already committed
                with other content.
        """
        done = self.commits()
        self.check_fence()  # after reading: a round that another driver commits meanwhile is found by the conditional write
        assert commit.epoch == self.epoch, f"commit of epoch {commit.epoch} through a handle of epoch {self.epoch}"
        if commit.round < len(done):
            if canonical(done[commit.round]) != canonical(commit):
                raise StoreError(f"round {commit.round} of {self.uri} is already committed with other content and cannot change")
            return
        if commit.round > len(done):
            raise StoreError(f"round {commit.round} of {self.uri} cannot be committed: round {len(done)} is not")
        folders = {str(PurePosixPath(file.path).parent) for file in commit.files}
        sizes = {path: size for folder in sorted(folders) for path, size in self.storage.sizes(folder).items()}
        for file in commit.files:
            size = sizes.get(file.path)
            if size != file.num_bytes:
                found = "missing" if size is None else f"{size} bytes long"
                raise StoreError(f"round {commit.round} cannot be committed: {file.path} is {found}, not {file.num_bytes} bytes long")
        self.storage.write(commit_path(commit.round), seal(commit.model_dump(mode="json")), self.check_fence)

    # ---- receipts

    def _finished(self, path: str, model: type[Model], files_of: Callable[[Model], Sequence[FileEntry]]) -> Model | None:
        """The receipt at `path` if every file it lists is intact. A damaged one counts as missing: the work is redone."""
        try:
            receipt = self.load_if_there(path, model)
            if receipt is not None:
                self.check_files(files_of(receipt))
        except DamagedFileError as error:
            log.warning("%s of %s: expected %s, found %s; it will be made again", error.path, self.uri, error.expected, error.found)
            return None
        return receipt


def _part(round: int, name: str) -> str:
    assert round >= 0, round
    assert _NAME.fullmatch(name), f"part {name!r}: names are letters, digits, - and _"
    return f"rounds/{round:04d}/parts/{name}"


def checkpoint_path(name: str) -> str:
    """Folder of checkpoint `name`, relative to the run."""
    assert _NAME.fullmatch(name), f"checkpoint {name!r}: names are letters, digits, - and _"
    return f"checkpoints/{name}"
