"""Weights as named arrays: reading, digesting and describing them. The digest is what a swap verifies before and attests after."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from actors.engines.base import TensorSpec, WeightMismatchError, WeightUpdate


def read_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a Hugging Face folder's safetensors files, sharded or not, by name.

    Raises:
        WeightMismatchError: there are no safetensors files, or one cannot be read.
    """
    index = folder / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder / name for name in names):
        try:
            tensors.update(load_file(file))
        except (OSError, SafetensorError) as error:
            raise WeightMismatchError(f"cannot read weights from {file}: {error}") from error
    return tensors


def manifest_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorSpec]:
    """Shape and dtype by name."""
    return {name: TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for name, tensor in tensors.items()}


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def num_bytes_of(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def weight_version(round_index: int, digest: str) -> str:
    """A name for weights that says where they came from and what they are: `r2-3fa9c1d07b42`."""
    return f"r{round_index}-{digest[:12]}"


def load_update(update: WeightUpdate) -> dict[str, torch.Tensor]:
    """The tensors of an update, wherever it carries them.

    Raises:
        ValueError: it carries both or neither of a checkpoint and tensors.
        WeightMismatchError: its checkpoint cannot be read.
    """
    if update.checkpoint is not None and update.tensors is None:
        return read_checkpoint(update.checkpoint)
    if update.tensors is not None and update.checkpoint is None:
        return dict(update.tensors)
    raise ValueError(f"update {update.version} must carry exactly one of a checkpoint and tensors")


def verify(update: WeightUpdate, tensors: Mapping[str, torch.Tensor], served_manifest: Mapping[str, TensorSpec]) -> None:
    """Checks that an update's tensors fit the served model and are the ones that the driver digested. Touches nothing.

    Raises:
        WeightMismatchError: a name is missing or unexpected, a shape or dtype differs (the first tensor by name is named), or
            the digest is another one.
    """
    manifest = manifest_of(tensors)
    for name in sorted(served_manifest.keys() | manifest.keys()):
        served, given = served_manifest.get(name), manifest.get(name)
        if given != served:
            raise WeightMismatchError(f"update {update.version} does not fit: {name}: {_describe(given)} given, {_describe(served)} served")
    digest = digest_of(tensors)
    if digest != update.digest:
        raise WeightMismatchError(f"update {update.version} has digest {digest}; {update.digest} was prepared")


def _describe(spec: TensorSpec | None) -> str:
    return "nothing" if spec is None else f"{spec.dtype}{list(spec.shape)}"
