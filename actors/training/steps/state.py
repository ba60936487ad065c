"""What a step checkpoint contains: tensors, plain values and random states, and how they are written and read safely."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

ENGINE = "engine"
"""Subfolder of DeepSpeed's own files."""


def save_engine(engine: Any, folder: Path) -> None:
    """Write this rank's files of a DeepSpeed engine; every rank must call this. Raises `OSError`."""
    _read_tensors_only(engine)
    engine.save_checkpoint(folder, tag=ENGINE, save_latest=False)


def load_engine(engine: Any, folder: Path) -> None:
    """Restore an engine from files that `save_engine` wrote and that have been verified; every rank must call this."""
    _read_tensors_only(engine)
    loaded, _ = engine.load_checkpoint(folder, tag=ENGINE, load_lr_scheduler_states=False)
    assert loaded is not None, f"{folder} was verified"


def save_rank(step: int, position: dict[str, Any], path: Path) -> None:
    """Write this process's random state and `position`. Raises `OSError`."""
    save_tensors({"step": step, "random": _random_state(), "position": position}, path)


def load_rank(step: int, path: Path) -> dict[str, Any]:
    """Restore this process's random state; returns the `position`."""
    said = torch.load(path, weights_only=True)
    assert said["step"] == step, f"{path} is of step {said['step']}"
    _set_random_state(said["random"])
    return said["position"]


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
