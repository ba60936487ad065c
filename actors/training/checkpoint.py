"""Reads, writes and averages checkpoints: Hugging Face folders of an image-text-to-text model and its processor."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from actors.durable import fsync, fsync_tree
from actors.engines.adapters.files import ADAPTER_FOLDER, Adapter, write_adapter
from actors.engines.errors import WeightMismatchError
from actors.engines.weights import LENGTH_BYTES, bytes_of, digest_of, manifest_of_checkpoint, read_checkpoint, weight_files
from actors.folders import Folder, RemoteOutput, local_path
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
_METADATA = "__metadata__"
"""The key in the header of a safetensors file that is no tensor."""
_PIECE = 1 << 22
"""Weights that are averaged at once: tens of megabytes in float64, while an embedding has gigabytes."""


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


def write_average(older: Folder, newer: Folder, decay: float, output: Path | RemoteOutput) -> str:
    """Write a checkpoint whose weights are `decay * older + (1 - decay) * newer`, computed in float64: the step of a mean teacher
    (Tarvainen & Valpola 2017, arXiv 1703.01780). Names, dtypes, the cut into files and everything beside the weights are those of
    `newer`. Holds one tensor at a time. A second call writes the same bytes.

    Args:
        older, newer: checkpoints with the same names, shapes and dtypes.
        decay: share of `older`, 0 to 1.
        output: where the checkpoint goes; what is in a local folder is replaced.

    Returns:
        the digest of the weights.

    Raises:
        WeightMismatchError: the checkpoints differ in more than values, or one cannot be read.
        TrainerError: the disk is full, or the folder cannot be written.
    """
    old, new = local_path(older), local_path(newer)
    _require_alike(old, new)
    if isinstance(output, Path) and output.exists():
        shutil.rmtree(output)  # empty, or whole: of a task that Ray has started again because its process died before it returned

    def save(folder: Path) -> str:
        _write_averages(old, new, decay, folder)
        return digest_of(read_checkpoint(folder))

    return write_folder(output, save)


def _require_alike(older: Path, newer: Path) -> None:
    one, other = manifest_of_checkpoint(older), manifest_of_checkpoint(newer)
    if differing := sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)):
        raise WeightMismatchError(f"{older} and {newer} have no average: they differ in name, shape or dtype of {differing[0]}")


def _write_averages(older: Path, newer: Path, decay: float, folder: Path) -> None:
    files = weight_files(newer)
    names = {file.name for file in files}
    shutil.copytree(newer, folder, ignore=lambda _, there: names.intersection(there), dirs_exist_ok=True)
    with ExitStack() as opened:
        readers = [opened.enter_context(safe_open(file, framework="pt")) for file in weight_files(older)]
        reader_of = {name: reader for reader in readers for name in reader.keys()}  # noqa: SIM118 (no mapping)
        for file in files:
            _write_file(reader_of, file, decay, folder / file.name)


def _write_file(older: Mapping[str, Any], newer: Path, decay: float, target: Path) -> None:
    """Write the averages of the tensors in the safetensors file `newer` under its header: their dtypes and places are the same."""
    with safe_open(newer, framework="pt") as reader, newer.open("rb") as source, target.open("xb") as sink:
        length = source.read(LENGTH_BYTES)
        header = source.read(int.from_bytes(length, "little"))
        sink.write(length + header)
        entries = {name: entry for name, entry in json.loads(header).items() if name != _METADATA}
        for name in sorted(entries, key=lambda one: entries[one]["data_offsets"]):
            for piece in _averaged(older[name].get_tensor(name), reader.get_tensor(name), decay):
                sink.write(bytes_of(piece))


def _averaged(older: torch.Tensor, newer: torch.Tensor, decay: float) -> Iterator[torch.Tensor]:
    """The average in order, in flat pieces; integers are those of `newer`."""
    pieces = zip(older.reshape(-1).split(_PIECE), newer.reshape(-1).split(_PIECE), strict=True)
    return (between(old, new, 1 - decay) if new.is_floating_point() else new for old, new in pieces)
