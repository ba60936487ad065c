"""Averages the weights of two checkpoints: the step of a mean teacher (Tarvainen & Valpola 2017, arXiv 1703.01780). A Ray task without
state, see `cluster.training.averaging`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from actors.engines.errors import WeightMismatchError
from actors.engines.weights import LENGTH_BYTES, bytes_of, digest_of, manifest_of_checkpoint, read_checkpoint, weight_files
from actors.folders import Folder, RemoteOutput, local_path
from actors.training.checkpoint import between, write_folder

_METADATA = "__metadata__"
"""The key in the header that is no tensor."""
_PIECE = 1 << 22
"""Weights that are averaged at once: tens of megabytes in float64, while an embedding has gigabytes."""


def write_average(older: Folder, newer: Folder, decay: float, output: Path | RemoteOutput) -> str:
    """Write a checkpoint whose weights are `decay * older + (1 - decay) * newer`, computed in float64. Names, dtypes, the cut into files
    and everything beside the weights are those of `newer`. Holds one tensor at a time. A second call writes the same bytes.

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
