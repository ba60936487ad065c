"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685) as data: small matrices relative to a base checkpoint, and their files in peft's format.

A model with an adapter computes `W x + scale * B (A x)` in every target module. The base is named by the digest of its weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from actors.engines.errors import WeightMismatchError
from actors.engines.weights import digest_of

ADAPTER_FOLDER = "adapter"
"""Subfolder of a checkpoint. transformers applies an adapter that lies beside the weights to them, and these contain it already."""
Matrices = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""A module's name in the transformers model -> A `[rank, inputs]` and B `[outputs, rank]`."""

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_BASE = "sha256:"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter of a base. Without matrices it is the base itself."""

    base_digest: str
    """`actors.engines.weights.digest_of` the base checkpoint."""
    rank: int = 1
    alpha: int = 1
    matrices: Matrices = field(default_factory=dict)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The matrices under peft's names."""
        return {
            f"{_PREFIX}{name}{part}": matrix
            for name, pair in self.matrices.items()
            for part, matrix in zip((_DOWN, _UP), pair, strict=True)
        }  # fmt: skip

    @property
    def digest(self) -> str:
        """Digest of the base with this adapter: over the base's digest, the scale and the matrices; without matrices, the base's."""
        if not self.matrices:
            return self.base_digest
        return hashlib.sha256(f"{self.base_digest}\0{self.scale!r}\0{digest_of(self.tensors)}".encode()).hexdigest()


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Write an adapter to `folder`, which is created. The same adapter gives the same bytes.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in adapter.tensors.items()}, folder / _WEIGHTS, {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": f"{_BASE}{adapter.base_digest}",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "target_modules": sorted(adapter.matrices),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / _CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter that `write_adapter` wrote.

    Raises:
        WeightMismatchError: a file is missing or damaged.
    """
    try:
        config, tensors = json.loads((folder / _CONFIG).read_bytes()), load_file(folder / _WEIGHTS)
        names = [name.removesuffix(_DOWN) for name in sorted(tensors) if name.endswith(_DOWN)]
        matrices = {name.removeprefix(_PREFIX): (tensors[name + _DOWN], tensors[name + _UP]) for name in names}
        base_digest = config["base_model_name_or_path"].removeprefix(_BASE)
        return Adapter(base_digest, config["r"], config["lora_alpha"], matrices)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise WeightMismatchError(f"cannot read the adapter in {folder}: {error}") from error
