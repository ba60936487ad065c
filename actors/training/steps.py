"""Step checkpoints: saves and restores an unfinished job after its ranks have died, bit for bit in float32.

    FOLDER/step-00000050/engine/...     DeepSpeed's own files: weights and optimizer, one part per rank if ZeRO shards them
    FOLDER/step-00000050/rank-0.pt      a rank's random state and its share of the loss log
    FOLDER/step-00000050/receipt.json   the job, and size and SHA-256 of every other file; written last

A step checkpoint is renamed into place once all of it is on disk; only then is the previous one deleted. The position in the data
and in the learning-rate schedule follow from the number of steps. Only tensors and plain values are unpickled, and only from files
that match the receipt; a damaged step checkpoint is ignored.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from actors.durable import fsync, fsync_tree
from actors.training.distributed import sum_over_ranks
from actors.training.job import TrainerError

log = logging.getLogger(__name__)

_RECEIPT = "receipt.json"
_ENGINE = "engine"
_TMP = ".tmp"


class StepCheckpoints:
    """One rank's part of a job's step checkpoints. `save` and `restore` are collective: every rank must call them."""

    def __init__(self, folder: Path, job: str, rank: int, world_size: int) -> None:
        """Args:
        folder: folder of the step checkpoints, the same for all ranks; it may not exist yet.
        job: identifies the job; with another number of ranks it is another job.
        """
        self._folder = folder
        self._job = f"{job}/{world_size}"
        self._rank = rank
        self._world_size = world_size

    def save(self, step: int, engine: Any, position: dict[str, Any]) -> None:
        """Write the state after `step` steps; `position` is this rank's own and consists of tensors and plain values.

        Raises:
            TrainerError: the disk is full, or the folder cannot be written.
        """
        target = self._folder / f"step-{step:08d}"
        scratch = target.with_name(target.name + _TMP)
        try:
            if self._rank == 0:
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir(parents=True)
            dist.barrier()
            _read_tensors_only(engine)
            engine.save_checkpoint(scratch, tag=_ENGINE, save_latest=False)
            save_tensors({"step": step, "random": _random_state(), "position": position}, scratch / f"rank-{self._rank}.pt")
            dist.barrier()
            if self._rank == 0:
                self._rename_into_place(scratch, target)
        except OSError as error:
            raise TrainerError(f"cannot write the step checkpoint {target}: {error}; free some space, then resume") from error

    def restore(self, engine: Any) -> dict[str, Any]:
        """Restore the engine and this process to the newest intact step checkpoint.

        Returns:
            the `position` that this rank passed to `save`; empty if there is no intact step checkpoint of this job that all ranks
            can see.
        """
        found = self._newest() if self._rank == 0 else 0
        step = self._summed(found)
        own = self._folder / f"step-{step:08d}" / f"rank-{self._rank}.pt"
        if step == 0 or self._summed(int(own.is_file())) < self._world_size:
            return {}
        _read_tensors_only(engine)
        loaded, _ = engine.load_checkpoint(own.parent, tag=_ENGINE, load_lr_scheduler_states=False)
        assert loaded is not None, f"{own.parent} was verified"
        said = torch.load(own, weights_only=True)
        assert said["step"] == step, f"{own} is of step {said['step']}"
        _set_random_state(said["random"])
        return said["position"]

    def _summed(self, value: int) -> int:
        return int(sum_over_ranks(torch.tensor([value]), self._world_size).item())

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


def save_tensors(state: Any, path: Path) -> None:
    """Write tensors and plain values; raises `OSError`. torch raises `RuntimeError` for a full disk, as it does for a lost rank."""
    try:
        torch.save(state, path)
    except RuntimeError as error:
        raise OSError(f"{path.name}: {str(error).splitlines()[0]}") from error


def measure(path: Path) -> list[int | str]:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as stream:
        return [path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _read_tensors_only(engine: Any) -> None:
    """Give DeepSpeed's engine a checkpoint engine that unpickles only tensors, plain values and DeepSpeed's own small classes."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    class TensorsOnly(TorchCheckpointEngine):
        def save(self, state_dict: Any, path: str) -> None:
            save_tensors(state_dict, Path(path))

        def load(self, path: str, map_location: Any = None) -> Any:
            with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
                return torch.load(path, map_location=map_location, weights_only=True)

    engine.checkpoint_engine = TensorsOnly()
