"""Reads and writes checkpoints: Hugging Face folders of an image-text-to-text model and its processor."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from actors.durable import fsync, fsync_tree
from actors.engines.adapters.files import ADAPTER_FOLDER, Adapter, write_adapter
from actors.engines.weights import digest_of, read_checkpoint
from actors.folders import RemoteOutput, local_path
from actors.processors import load_processor
from actors.training.inputs.skips import SkippedSamples, SkipReason
from actors.training.job import RESULT_FILE, TrainerError, TrainingJob, TrainingResult

T = TypeVar("T")

_MARKS = {
    "language_model": ("language_model",),
    "qformer": ("qformer", "query_tokens"),
    "projector": ("projector", "projection", "connector", "merger", "aligner", "image_newline", "visual_embeddings_table"),
    "vision_tower": ("vision", "visual", "image_encoder"),
}
_MERGER = "merger"
"""In the name of the projector if it is a module of the vision tower, as in Qwen-VL and GLM-4V."""


def load_model(folder: Path) -> Any:
    """The model in float32, on the CPU, in training mode.

    Raises:
        ValueError: the folder is not an image-text-to-text checkpoint.
    """
    from transformers import AutoModelForImageTextToText

    try:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} is not an image-text-to-text checkpoint with safetensors weights: {error}") from error
    return model.train()


def group_of(parameter_name: str) -> str:
    """The group of `actors.training.job.PARAMETER_GROUPS` that a parameter belongs to, by its name."""
    modules = parameter_name.lower().partition(".layers.")[0].split(".")
    for module, inner in zip(modules, [*modules[1:], ""], strict=True):
        group = next((group for group, marks in _MARKS.items() if any(mark in module for mark in marks)), None)
        if group is not None:  # modules inside may have any name: layers of vision towers contain projections too
            return "projector" if group == "vision_tower" and _MERGER in inner else group
    return "language_model"


def write_checkpoint(
    job: TrainingJob, model: Any, state: dict[str, torch.Tensor], result: TrainingResult, adapter: Adapter | None = None
) -> TrainingResult:
    """Write weights, processor and the adapter that the weights contain if it is given, as `write_folder` does to `job.output`, which a
    local folder also tells the result.

    Returns:
        the result with the digest of the written weights.

    Raises what `write_folder` does.
    """
    return write_folder(job.output, lambda folder: _save(folder, job, model, state, result, adapter))


def write_folder(output: Path | RemoteOutput, save: Callable[[Path], T]) -> T:
    """Have `save` fill an empty folder, which is renamed to `output` once it is on disk, or uploaded there.

    Returns:
        what `save` returns.

    Raises:
        ValueError: `output` is not empty.
        TrainerError: the disk is full, or the folder cannot be written.
    """
    try:
        if isinstance(output, Path):
            return _write_into_place(output, save)
        with output.scratch() as folder:
            saved = save(folder)
            output.publish(folder)
        return saved
    except (OSError, SafetensorError) as error:
        raise TrainerError(f"cannot write the checkpoint {output}: {error}; free some space, then resume") from error


def _save(
    folder: Path, job: TrainingJob, model: Any, state: dict[str, torch.Tensor], result: TrainingResult, adapter: Adapter | None
) -> TrainingResult:
    """Write the checkpoint's files; returns the result with the digest of the written weights."""
    model.save_pretrained(folder, state_dict=state)
    load_processor(local_path(job.base_checkpoint)).save_pretrained(folder)
    if adapter is not None:
        write_adapter(folder / ADAPTER_FOLDER, adapter)
    # Hashed as written, which is in the page cache: only `save_pretrained` knows the names and dtypes that it gives to the state.
    digested = replace(result, digest=digest_of(read_checkpoint(folder)))
    if isinstance(job.output, Path):
        (folder / RESULT_FILE).write_text(json.dumps({"job": job.fingerprint(), "result": asdict(digested)}, indent=1))
    return digested


def _write_into_place(output: Path, save: Callable[[Path], T]) -> T:
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        saved = save(folder)
        folder.chmod(0o755)  # mkdtemp makes it private, but an engine may run as another user
        fsync_tree(folder)
        try:
            folder.rename(output)
        except OSError as error:
            raise ValueError(f"cannot put the checkpoint at {output}: {error}; give an output folder that does not exist") from error
        fsync(output.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return saved


def finished_result(job: TrainingJob) -> TrainingResult | None:
    """The result of this job if `job.output` contains it, with its weights verified; `None` if the folder is empty, or behind a URI, where
    a job whose result is lost is done again from its last step checkpoint.

    Raises:
        ValueError: the folder contains another job's checkpoint, or this job's with damaged weights.
    """
    output = job.output
    if not isinstance(output, Path) or not output.exists() or not any(output.iterdir()):
        return None
    file = output / RESULT_FILE
    said = json.loads(file.read_text()) if file.exists() else {}
    if said.get("job") != job.fingerprint():
        raise ValueError(f"{output} contains files that are not this job's checkpoint; give an output folder that does not exist")
    result = _result_from(said["result"])
    if digest_of(read_checkpoint(output)) != result.digest:
        raise ValueError(f"the weights in {output} are not those that training wrote; remove the folder to train again")
    return result


def _result_from(plain: dict[str, Any]) -> TrainingResult:
    """Rebuild a result from `asdict` and JSON."""
    if "num_steps_kept" in plain:  # the name in results of earlier versions
        plain["resumed_from_step"] = plain.pop("num_steps_kept")
    losses, held_out = (tuple((int(step), float(loss)) for step, loss in plain.pop(name, ())) for name in ("losses", "held_out_losses"))
    pairs = tuple((int(step), float(loss), float(share), float(margin)) for step, loss, share, margin in plain.pop("pair_points", ()))
    skipped = tuple(SkippedSamples(**{**one, "reason": SkipReason(one["reason"])}) for one in plain.pop("skipped", ()))
    return TrainingResult(**plain, losses=losses, skipped=skipped, held_out_losses=held_out, pair_points=pairs)


@torch.no_grad()
def interpolate(state: dict[str, torch.Tensor], base: dict[str, torch.Tensor], share: float) -> None:
    """Interpolate from base (0) to trained weights (1) in place; integers and untrained weights stay unchanged."""
    for name, tensor in {id(tensor): (name, tensor) for name, tensor in state.items()}.values():  # each tied weight once
        if tensor.is_floating_point() and not torch.equal(tensor, base[name].to(tensor.dtype)):
            tensor.copy_(between(base[name], tensor, share))


def between(start: torch.Tensor, end: torch.Tensor, share: float) -> torch.Tensor:
    """The weights at `share` of the way from `start` (0) to `end` (1): computed in float64, in the dtype of `end`."""
    return torch.lerp(start.double(), end.double(), share).to(end.dtype)
