"""Step checkpoints: an unfinished job continues from the last one after its ranks have died."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from actors.folders import RemoteSteps
from actors.training.steps.folder import FolderSteps
from actors.training.steps.remote import UploadedSteps


class StepCheckpoints(Protocol):
    """One rank's part of a job's step checkpoints. `save` and `restore` are collective: every rank must call them."""

    def save(self, step: int, engine: Any, position: dict[str, Any]) -> None:
        """Write the state after `step` steps; `position` is this rank's own and consists of tensors and plain values.

        Raises:
            TrainerError: the disk is full, or the folder cannot be written.
        """
        ...

    def restore(self, engine: Any) -> dict[str, Any]:
        """Restore the engine and this process to the newest intact step checkpoint.

        Returns:
            the `position` that this rank passed to `save`; empty if there is no intact step checkpoint of this job that all ranks
            can have.
        """
        ...


def step_checkpoints(folder: Path | RemoteSteps, job: str, rank: int, world_size: int) -> StepCheckpoints:
    """The step checkpoints of a job, which `job` identifies; with another number of ranks it is another job."""
    identity = f"{job}/{world_size}"
    if isinstance(folder, Path):
        return FolderSteps(folder, identity, rank, world_size)
    return UploadedSteps(folder, identity, rank, world_size)
