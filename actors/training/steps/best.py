"""The best weights of a training with early stop, until its checkpoint is written.

    FOLDER/best-00000050.pt     the weights with the lowest held-out loss so far, after 50 steps

Only rank 0 calls this. A file is deleted only once no step checkpoint refers to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from actors.durable import fsync
from actors.folders import RemoteSteps
from actors.training.job import TrainerError
from actors.training.steps.state import measure, save_tensors

Measured = list[int | str]
"""Size in bytes and SHA-256 of a file of weights."""
_WEIGHTS = "weights.pt"


class BestWeights(Protocol):
    """Keeps the weights of some steps of one training."""

    def write(self, step: int, state: dict[str, torch.Tensor]) -> Measured:
        """Keep the weights after `step` steps.

        Raises:
            TrainerError: they cannot be written.
        """
        ...

    def read(self, step: int, measured: Measured) -> dict[str, torch.Tensor]:
        """The weights after `step` steps.

        Raises:
            TrainerError: they are damaged or lost.
        """
        ...

    def keep_only(self, step: int | None) -> None:
        """Delete the weights of all other steps; with `None`, of all."""
        ...


class FolderWeights:
    """In a folder, which may not exist yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, step: int, state: dict[str, torch.Tensor]) -> Measured:
        path = self._path(step)
        scratch = path.with_suffix(".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(state, scratch)
            fsync(scratch)
            scratch.rename(path)
            return measure(path)
        except OSError as error:
            raise TrainerError(f"cannot write the best weights {path}: {error}; free some space, then resume") from error

    def read(self, step: int, measured: Measured) -> dict[str, torch.Tensor]:
        path = self._path(step)
        if not path.is_file() or measure(path) != measured:
            raise TrainerError(f"{path} is not what training wrote; remove {path.parent} to train again")
        return torch.load(path, weights_only=True)

    def keep_only(self, step: int | None) -> None:
        for path in self._folder.glob("best-*"):
            if step is None or path != self._path(step):
                path.unlink()
        if step is None and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _path(self, step: int) -> Path:
        return self._folder / f"best-{step:08d}.pt"


class UploadedWeights:
    """Behind a URI."""

    def __init__(self, steps: RemoteSteps, job: str) -> None:
        self._steps = steps
        self._job = job

    def write(self, step: int, state: dict[str, torch.Tensor]) -> Measured:
        try:
            with self._steps.scratch() as scratch:
                save_tensors(state, scratch / _WEIGHTS)
                measured = measure(scratch / _WEIGHTS)
                self._steps.publish(scratch, _part(step), self._job)
                return measured
        except OSError as error:
            raise TrainerError(f"cannot write the best weights {_part(step)}: {error}; free some space, then resume") from error

    def read(self, step: int, measured: Measured) -> dict[str, torch.Tensor]:
        copy = self._steps.fetch(_part(step), self._job)
        if copy is None or measure(copy / _WEIGHTS) != measured:
            raise TrainerError(f"{_part(step)} of {self._steps} is not what training wrote; remove that folder to train again")
        state: dict[str, torch.Tensor] = torch.load(copy / _WEIGHTS, weights_only=True)
        self._steps.drop_copies(_part(step))
        return state

    def keep_only(self, step: int | None) -> None:
        for part in self._steps.parts():
            if part.startswith("best-") and (step is None or part != _part(step)):
                self._steps.remove(part)


def best_weights(folder: Path | RemoteSteps, job: str) -> BestWeights:
    """The best weights of a job, in the folder of its step checkpoints."""
    return FolderWeights(folder) if isinstance(folder, Path) else UploadedWeights(folder, job)


def _part(step: int) -> str:
    return f"best-{step:08d}"
