"""Reads, digests and describes weights as named tensors. An engine hashes an update's weights once, before or after it serves them."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from actors.engines.errors import WeightMismatchError
from actors.folders import Folder, RemoteFolder

_INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"
LENGTH_BYTES = 8
"""A safetensors file begins with the length of its JSON header: https://huggingface.co/docs/safetensors/index#format."""
_MAX_HEADER_BYTES = 100 << 20
"""As in the safetensors library."""
_MAX_INDEX_BYTES = 100 << 20
_DTYPE_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16", "I64": "int64", "I32": "int32", "BOOL": "bool"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    """torch's name: `float32`, `bfloat16`."""


def read_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a Hugging Face folder's safetensors files, sharded or not, by name.

    Raises:
        WeightMismatchError: there are no safetensors files, or one cannot be read.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        try:
            tensors.update(load_file(file))
        except (OSError, SafetensorError) as error:
            raise WeightMismatchError(f"cannot read weights from {file}: {error}") from error
    return tensors


def manifest_of_checkpoint(folder: Folder) -> dict[str, TensorSpec]:
    """Shape and dtype by name, read from the headers of a folder's safetensors files; a remote folder is not copied for it.

    Raises:
        WeightMismatchError: there are no safetensors files, or one cannot be read.
    """
    if isinstance(folder, RemoteFolder):
        return _manifest_of_remote(folder)
    return {name: spec for file in weight_files(folder) for name, spec in manifest_of_file(file).items()}


def manifest_of_file(file: Path) -> dict[str, TensorSpec]:
    """Shape and dtype by name, read from the header of a safetensors file.

    Raises:
        WeightMismatchError: the file cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            return {name: TensorSpec(tuple(one.get_shape()), _DTYPE_NAMES[one.get_dtype()]) for name, one in slices.items()}
    except (OSError, KeyError, SafetensorError) as error:
        raise WeightMismatchError(f"cannot read weights from {file}: {error}") from error


def _manifest_of_remote(folder: RemoteFolder) -> dict[str, TensorSpec]:
    names = folder.names()
    listed = _listed(folder.read(_INDEX, 0, _MAX_INDEX_BYTES), f"{folder}/{_INDEX}") if _INDEX in names else {_WEIGHTS}
    if missing := listed - set(names):
        raise WeightMismatchError(f"{folder} has no file {min(missing)}")
    manifest: dict[str, TensorSpec] = {}
    for name in sorted(listed):
        try:
            (num_bytes,) = struct.unpack("<Q", folder.read(name, 0, LENGTH_BYTES))
            header = json.loads(folder.read(name, LENGTH_BYTES, min(num_bytes, _MAX_HEADER_BYTES)))
            header.pop("__metadata__", None)
            manifest |= {key: TensorSpec(tuple(one["shape"]), _DTYPE_NAMES[one["dtype"]]) for key, one in header.items()}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error) as error:
            raise WeightMismatchError(f"cannot read weights from {folder}/{name}: {error!r}") from error
    return manifest


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those in its index, or `model.safetensors` if there is no index.

    Raises:
        WeightMismatchError: the index cannot be read, or lists anything but safetensors files of the same folder.
    """
    index = folder / _INDEX
    if not index.exists():
        return [folder / _WEIGHTS]
    try:
        content = index.read_bytes()
    except OSError as error:
        raise WeightMismatchError(f"cannot read the list of weights in {index}: {error!r}") from error
    return sorted(folder / name for name in _listed(content, str(index)))


def _listed(content: bytes, index: str) -> set[str]:
    """The names of files in an index, which `index` names in errors."""
    try:
        names = set(json.loads(content)["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightMismatchError(f"cannot read the list of weights in {index}: {error!r}") from error
    if bad := [name for name in names if not (isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name)]:
        raise WeightMismatchError(f"{index} lists {bad[0]!r}, which is not a safetensors file in the same folder")
    return names


def manifest_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorSpec]:
    """Shape and dtype by name."""
    return {name: TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for name, tensor in tensors.items()}


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor in main memory, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def num_bytes_of(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def num_bytes_in(manifest: Mapping[str, TensorSpec]) -> int:
    """Bytes of the tensors that a manifest describes."""
    return sum(math.prod(spec.shape) * getattr(torch, spec.dtype).itemsize for spec in manifest.values())


def weight_version(round_index: int, digest: str) -> str:
    """A name for weights made of their round and digest: `r2-3fa9c1d07b42`."""
    return f"r{round_index}-{digest[:12]}"


def difference_of(given: Mapping[str, TensorSpec], served: Mapping[str, TensorSpec]) -> str:
    """Describes the first tensor by name in which two manifests differ; empty if they are equal."""
    for name in sorted(served.keys() | given.keys()):
        if given.get(name) != served.get(name):
            return f"{name}: {_describe(given.get(name))} given, {_describe(served.get(name))} served"
    return ""


def _describe(spec: TensorSpec | None) -> str:
    return "nothing" if spec is None else f"{spec.dtype}{list(spec.shape)}"
