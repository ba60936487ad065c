"""Step checkpoints in a folder that all ranks see: saves and restores an unfinished job after its ranks have died, bit for bit in float32.

    FOLDER/step-00000050/engine/...     DeepSpeed's own files: weights and optimizer, one part per rank if ZeRO shards them
    FOLDER/step-00000050/rank-0.pt      a rank's random state and its share of the loss log
    FOLDER/step-00000050/receipt.json   the job, and size and SHA-256 of every other file; written last

A step checkpoint is renamed into place once all of it is on disk; only then is the previous one deleted. The position in the data
and in the learning-rate schedule follow from the number of steps. Only tensors and plain values are unpickled, and only from files
that match the receipt; a damaged step checkpoint is ignored.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from actors.durable import fsync, fsync_tree
from actors.training.distributed import count_over_ranks
from actors.training.job import TrainerError
from actors.training.steps.state import load_engine, load_rank, measure, save_engine, save_rank

log = logging.getLogger(__name__)

_RECEIPT = "receipt.json"
_TMP = ".tmp"


class FolderSteps:
    """Implements `actors.training.steps.checkpoints.StepCheckpoints`."""

    def __init__(self, folder: Path, job: str, rank: int, world_size: int) -> None:
        """Args:
        folder: folder of the step checkpoints, the same for all ranks; it may not exist yet.
        job: identifies the job and its number of ranks.
        """
        self._folder = folder
        self._job = job
        self._rank = rank
        self._world_size = world_size

    def save(self, step: int, engine: Any, position: dict[str, Any]) -> None:
        target = self._folder / f"step-{step:08d}"
        scratch = target.with_name(target.name + _TMP)
        try:
            if self._rank == 0:
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir(parents=True)
            dist.barrier()
            save_engine(engine, scratch)
            save_rank(step, position, scratch / f"rank-{self._rank}.pt")
            dist.barrier()
            if self._rank == 0:
                self._rename_into_place(scratch, target)
        except OSError as error:
            raise TrainerError(f"cannot write the step checkpoint {target}: {error}; free some space, then resume") from error

    def restore(self, engine: Any) -> dict[str, Any]:
        found = self._newest() if self._rank == 0 else 0
        step = count_over_ranks(found, self._world_size)
        own = self._folder / f"step-{step:08d}" / f"rank-{self._rank}.pt"
        if step == 0 or count_over_ranks(int(own.is_file()), self._world_size) < self._world_size:
            return {}
        load_engine(engine, own.parent)
        return load_rank(step, own)

    def _rename_into_place(self, scratch: Path, target: Path) -> None:
        files = {path.relative_to(scratch).as_posix(): measure(path) for path in sorted(scratch.rglob("*")) if path.is_file()}
        (scratch / _RECEIPT).write_text(json.dumps({"job": self._job, "files": files}, indent=1))
        fsync_tree(scratch)
        if target.exists():  # a damaged one
            shutil.rmtree(target)
        scratch.rename(target)
        fsync(target.parent)
        for other in self._folder.glob("step-*"):
            if other != target:
                shutil.rmtree(other)

    def _newest(self) -> int:
        """Steps of the newest intact step checkpoint of this job; 0 if there is none."""
        for path in sorted(self._folder.glob("step-*[0-9]"), reverse=True):
            problem = self._problem_with(path)
            if problem is None:
                return int(path.name.removeprefix("step-"))
            log.warning("the step checkpoint %s is not used: %s", path, problem)
        return 0

    def _problem_with(self, path: Path) -> str | None:
        try:
            receipt = json.loads((path / _RECEIPT).read_text())
            if receipt["job"] != self._job:
                return "it belongs to another job"
            damaged = [name for name, expected in receipt["files"].items() if measure(path / name) != expected]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"
        return f"damaged: {', '.join(damaged)}" if damaged else None
