"""The models of a run: seed model, champion, mean teacher and controls."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.engines.weights import digest_of, read_checkpoint, weight_version
from loop.errors import DamagedFileError
from loop.models.files import downloaded, model_files
from loop.store.commits import MEAN_TEACHER, FileEntry, RoundCommit, RoundState, champion_commit, checkpoint_name, writer_commit
from loop.store.run_store import Store, checkpoint_path


@dataclass(frozen=True)
class Model:
    """A checkpoint of the run."""

    version: str
    path: str
    """Relative to the run folder."""
    digest: str
    """Digest of the weights, see `actors.engines.weights.digest_of`."""
    files: tuple[FileEntry, ...]


@dataclass
class Models:
    """Finds models in the commits of a run. Weights are hashed when they are written: this process remembers the digests of its own
    models, and reads those of earlier drivers from the training parts. A resuming driver rehashes only the seed model."""

    store: Store
    commits: Sequence[RoundCommit]
    """The run's commits; the driver appends to the same list."""
    _known: dict[str, Model] = field(default_factory=dict)

    def adopt(self, source: str) -> Model:
        """Copy the seed model `source`, a folder or a Hugging Face id, into the run, so that a run folder is self-contained and every node
        can have the model. A second call does nothing."""
        name = checkpoint_name(0)
        path = checkpoint_path(name)
        if path in self._known:
            return self._known[path]
        receipt = self.store.finished_checkpoint(name)
        if receipt is None:
            folder = self.store.checkpoint_dir(name)
            for path in model_files(downloaded(source)):
                shutil.copyfile(path, folder / path.name)
            receipt = self.store.publish_checkpoint(folder, name)
        return self.add(0, self._hash(receipt.path), receipt.path, receipt.files)

    def add(self, round_index: int, digest: str, path: str, files: Sequence[FileEntry]) -> Model:
        """Register a model of round `round_index` under its path."""
        self._known[path] = Model(weight_version(round_index, digest), path, digest, tuple(files))
        return self._known[path]

    def base(self) -> Model:
        """The seed model of the run."""
        commit = self.commits[0]
        path = commit.champion_path
        return self._known.get(path) or self._checked(commit, path, commit.champion, self._hash(path))

    def champion(self) -> Model:
        """The newest accepted model."""
        return self._accepted(champion_commit(self.commits))

    def writer(self, round_index: int, overlap: int) -> Model:
        """The model that writes the records of a round: the champion of `loop.store.commits.writer_commit`, or the mean teacher of then."""
        commit = writer_commit(self.commits, round_index, overlap)
        if commit.mean_teacher is None:
            return self._accepted(commit)
        path = commit.writer_path
        return self._known.get(path) or self._checked(commit, path, commit.writer, self._trained_digest(commit, MEAN_TEACHER))

    def _accepted(self, commit: RoundCommit) -> Model:
        if commit.state is RoundState.BASELINE:
            return self.base()
        path = commit.champion_path
        return self._known.get(path) or self._checked(commit, path, commit.champion, self._trained_digest(commit, "training"))

    def control(self, name: str) -> Model:
        """The start checkpoint of a control: the control of the champion's round, or the seed model before any acceptance."""
        commit = champion_commit(self.commits)
        if commit.state is RoundState.BASELINE:
            return self.base()
        path = f"{commit.champion_path}-control-{name}"
        return self._known.get(path) or self._committed(commit, self._trained_digest(commit, f"training-control-{name}"), path)

    def _checked(self, commit: RoundCommit, path: str, version: str, digest: str) -> Model:
        """A model that a round has made, with its digest verified against its version."""
        if version != (found := weight_version(commit.round, digest)):
            raise DamagedFileError(path, f"weights {version}", found, "restore it")
        return self._committed(commit, digest, path)

    def _committed(self, commit: RoundCommit, digest: str, path: str) -> Model:
        return self.add(commit.round, digest, path, [file for file in commit.files if file.path.startswith(f"{path}/")])

    def _trained_digest(self, commit: RoundCommit, part: str) -> str:
        return self.store.read_json_part(commit.file(f"{part}.data.json"))["digest"]

    def _hash(self, path: str) -> str:
        return digest_of(read_checkpoint(self.store.local_checkpoint(path)))
