"""Where a training of a run writes its checkpoint and its unfinished work, from whichever node a rank runs on.

| what             | local run folder                          | behind a URI                                                              |
|------------------|-------------------------------------------|---------------------------------------------------------------------------|
| checkpoint       | rank 0 writes it, the driver publishes it | rank 0 writes it on its node and publishes it                             |
| step checkpoints | ranks write them into one folder          | each rank uploads a part, `checkpoints/NAME.steps/PART`, then its receipt |
| training samples | a folder that ranks map into memory       | the driver uploads them, and ranks map a copy on their node               |
| pairs for DPO    | a folder in that of the training samples  | the same                                                                  |

What ranks write behind a URI is under the driver's lease, as everything that the driver writes itself.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from actors.folders import subfolder
from actors.training.checkpoint import RESULT_FILE
from actors.training.samples import StoredSamples
from loop.errors import DamagedFileError
from loop.store.commits import FileEntry
from loop.store.documents import CheckpointReceipt, Document, seal
from loop.store.run_store import Store, checkpoint_path
from loop.store.storage.remote import RemoteStorage

log = logging.getLogger(__name__)

PAIRS = "pairs"
"""Folder of the pairs for DPO, in that of the training samples."""
_SAMPLES = "samples"


class StepReceipt(Document):
    """A part of unfinished work and its files."""

    job: str
    files: list[FileEntry]


@dataclass(frozen=True)
class _Stored:
    """A place of a run behind a URI."""

    store: Store
    storage: RemoteStorage
    path: str
    """Relative to the run."""

    def __str__(self) -> str:
        return f"{self.store.uri}/{self.path}"

    def scratch(self) -> AbstractContextManager[Path]:
        return self.storage.cache.scratch()


class StoredOutput(_Stored):
    """A checkpoint that the actor or task publishes which has written it; implements `actors.folders.RemoteOutput`."""

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    def publish(self, scratch: Path) -> None:
        """Raises what `Store.publish_checkpoint` does."""
        self.store.publish_checkpoint(scratch, self.name)


class StoredSteps(_Stored):
    """Unfinished work on a checkpoint; implements `actors.folders.RemoteSteps`."""

    def publish(self, scratch: Path, part: str, job: str) -> None:
        files = self.storage.upload_all(scratch, f"{self.path}/{part}", self.store.check_fence)
        receipt = StepReceipt(job=job, files=files)
        self.store.storage.write(f"{self.path}/{part}.json", seal(receipt.model_dump(mode="json")), self.store.check_fence)

    def parts(self) -> list[str]:
        receipts = (path for path in self.store.storage.sizes(self.path) if path.endswith(".json"))
        return sorted(path.removeprefix(f"{self.path}/").removesuffix(".json") for path in receipts)

    def fetch(self, part: str, job: str) -> Path | None:
        path = f"{self.path}/{part}"
        try:
            receipt = self.store.load_if_there(f"{path}.json", StepReceipt)
            if receipt is None or receipt.job != job:
                log.warning("%s of %s is not used: %s", part, self, "it is missing" if receipt is None else "it belongs to another job")
                return None
            return self.storage.fetch(path, receipt.files)
        except DamagedFileError as error:
            log.warning("%s of %s is not used: %s", part, self, error)
            return None

    def drop_copies(self, part: str) -> None:
        self.storage.cache.drop(f"{self.path}/{part}")

    def remove(self, part: str) -> None:
        self.store.check_fence()
        self.store.storage.remove(f"{self.path}/{part}.json")  # first: files without a receipt count for nothing
        self.store.storage.remove(f"{self.path}/{part}")


def training_output(store: Store, name: str) -> Path | StoredOutput:
    """Where an actor or task writes checkpoint `name`; then `finish_checkpoint`."""
    if isinstance(store.storage, RemoteStorage):
        return StoredOutput(store, store.storage, checkpoint_path(name))
    return store.checkpoint_dir(name)


def finish_checkpoint(store: Store, output: Path | StoredOutput, name: str) -> CheckpointReceipt:
    """The receipt of a checkpoint that an actor or task has written to its `training_output`; the driver publishes that of a local run.

    Raises:
        DamagedFileError: behind a URI, it has not been published.
    """
    if isinstance(output, StoredOutput):
        return store.load(checkpoint_path(name) + ".json", CheckpointReceipt)
    (output / RESULT_FILE).unlink(missing_ok=True)  # a training's contains times, which committed files must not
    return store.publish_checkpoint(output, name)


def training_steps(store: Store, name: str) -> Path | StoredSteps:
    """Where the trainer of checkpoint `name` keeps its unfinished work, from which the next driver continues; it may not exist yet."""
    path = _steps(name)
    if isinstance(store.storage, RemoteStorage):
        return StoredSteps(store, store.storage, path)
    return store.storage.workspace(path)


def samples_folder(store: Store, name: str) -> AbstractContextManager[Path]:
    """A folder on this machine to write the training samples of checkpoint `name` into; then `shared_samples`."""
    if isinstance(store.storage, RemoteStorage):
        return store.storage.cache.scratch()
    return nullcontext(store.storage.workspace(_steps(name)) / _SAMPLES)


def shared_samples(store: Store, name: str, samples: StoredSamples) -> StoredSamples:
    """Samples in a `samples_folder` as ranks on any node read them."""
    if not isinstance(store.storage, RemoteStorage):
        return samples
    assert isinstance(samples.folder, Path), "they were written on this machine"
    path = f"{_steps(name)}/{_SAMPLES}"
    files = store.storage.publish(samples.folder, path, store.check_fence)
    return StoredSamples(store.storage.checkpoint(path, files), samples.digest)


def shared_pairs(samples: StoredSamples, pairs: StoredSamples) -> StoredSamples:
    """Pairs that were written into the folder `PAIRS` of shared samples, as ranks on any node read them."""
    folder = subfolder(samples.folder, PAIRS)
    assert folder is not None, "they were shared with the samples"
    return StoredSamples(folder, pairs.digest)


def drop_steps(store: Store, name: str) -> None:
    """Remove the unfinished work on checkpoint `name`, which is finished."""
    store.check_fence()
    store.storage.remove(_steps(name))
    if isinstance(store.storage, RemoteStorage):
        store.storage.cache.drop(_steps(name))


def _steps(name: str) -> str:
    return checkpoint_path(name) + ".steps"
