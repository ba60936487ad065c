"""Extends vLLM's workers for swaps, and its loading of checkpoints. vLLM mixes the extension into its worker class by name
(`worker_extension_cls`), so that it runs where the weights are, even if they are sharded over several processes."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn.functional import pad

from actors.engines.vllm.options import LOAD_FORMAT
from actors.engines.vllm.served_names import LoadRecorder, Place, loader_names
from actors.engines.weights import TensorSpec, digest_of, read_checkpoint

_loaders: Any = importlib.import_module("vllm.model_executor.model_loader")
_PR_SET_PDEATHSIG = 1
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer types by size in bytes. Comparing weights byte by byte takes five times as long."""

_rotary: Any = importlib.import_module("vllm.model_executor.layers.rotary_embedding.base").RotaryEmbedding
_rotate_by_kernel = _rotary.forward_cpu


def _rotate_on_cpu(self: Any, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None) -> Any:
    """Of queries and keys [tokens, heads, width], as LFM2 has them, vLLM's kernel for CPUs rotates the first head only."""
    rotate = _rotate_by_kernel if query.ndim == 2 else _rotary.forward_native
    return rotate(self, positions, query, key)


_rotary.forward_cpu = _rotate_on_cpu
_recorders: WeakKeyDictionary[Any, LoadRecorder] = WeakKeyDictionary()
"""What has been recorded while a model was loaded."""


@_loaders.register_model_loader(LOAD_FORMAT)
class CheckpointLoader(_loaders.DefaultModelLoader):
    """vLLM's loader for safetensors only, which also reads checkpoints written by transformers 5, and records where it puts tensors."""

    def __init__(self, load_config: Any) -> None:
        safetensors_only = copy(load_config)
        safetensors_only.load_format = "safetensors"
        super().__init__(safetensors_only)

    def load_weights(self, model: Any, model_config: Any) -> None:
        _recorders[model] = recorder = LoadRecorder(model)
        with recorder:
            super().load_weights(model, model_config)

    def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        loader_name = loader_names(model)
        weights = super().get_all_weights(model_config, model)
        return _recorders[model].watched((name, loader_name(name), tensor) for name, tensor in weights)


class ServedWeights:
    """Reads and writes the served parameters of one worker. `self.model_runner` is vLLM's."""

    model_runner: Any

    def die_with_parent(self, parent: int) -> None:
        """Have the kernel kill this process when `parent` ends for any reason. Does nothing in `parent` itself."""
        if os.getpid() == parent:
            return
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:  # it has already ended
            os.kill(os.getpid(), signal.SIGKILL)

    def ban_tokens(self, banned_ids: Sequence[int]) -> None:
        """Ban tokens permanently in sampling and scoring: log-probabilities are over the other tokens."""
        model: Any = self.model_runner.get_model()
        compute_logits, banned = model.compute_logits, list(banned_ids)

        def without_banned(*args: Any, **kwargs: Any) -> torch.Tensor | None:
            logits = compute_logits(*args, **kwargs)
            if logits is not None:
                logits[..., banned] = -torch.inf
            return logits

        model.compute_logits = without_banned

    def find_places(self, manifest: Mapping[str, TensorSpec]) -> dict[str, Place] | None:
        """The place of each checkpoint tensor among the served ones; see `LoadRecorder.places`."""
        if self.model_runner.model_config.use_mla:  # its attention keeps products of weights, which loading in place leaves as they are
            return None
        model: Any = self.model_runner.get_model()
        return _recorders[model].places(model, manifest)

    def load_in_place(self, source: Mapping[str, torch.Tensor] | Path) -> list[str]:
        """Overwrite the served weights through the model's own loader. Requires parameters in the layout in which they were loaded.

        Returns:
            served parameters into which nothing was loaded.
        """
        model: Any = self.model_runner.get_model()
        loader_name = loader_names(model)
        with torch.no_grad():
            loaded = model.load_weights((loader_name(name), tensor) for name, tensor in _tensors(source).items())
        return sorted(dict(model.named_parameters()).keys() - loaded)

    def reload(self, source: Mapping[str, torch.Tensor] | Path) -> None:
        """Replace the served weights and have vLLM process them for its kernels again; works for any layout."""
        model: Any = self.model_runner.get_model()
        loader_name = loader_names(model)
        self.model_runner.reload_weights(weights_iterator=((loader_name(name), tensor) for name, tensor in _tensors(source).items()))

    def find_difference(self, sent: Mapping[str, torch.Tensor], places: Mapping[str, Place]) -> str | None:
        """The name of a tensor whose served bytes differ from those sent; `None` if all are equal."""
        served = self._served(places).items()
        return next((name for name, one in served if not torch.equal(_bits(one), _bits(sent[name].to(one.device)))), None)

    def served_digest(self, places: Mapping[str, Place], dropped: Mapping[str, torch.Tensor]) -> str:
        """Digest of the checkpoint that consists of the served tensors and of those that vLLM drops."""
        return digest_of({**dropped, **self._served(places)})

    def find_adapter_difference(self, sent: Mapping[str, tuple[torch.Tensor, torch.Tensor]], scale: float) -> str | None:
        """The name of a module whose served adapter is not the one sent (module -> A and B, where vLLM serves `scale * B`); `None` if all
        are equal. Without tensor parallelism only: otherwise each worker has a part of the matrices."""
        model: Any = self.model_runner.get_model()
        mapper = getattr(model, "hf_to_vllm_mapper", None)
        mapped = str if mapper is None else mapper.get_rename_mapper()._map_name  # not to names of merged modules
        expected = {mapped(name): pair for name, pair in sent.items()}
        for name, down, up in _adapted(model):
            pair = expected.pop(name, None)
            sent_down, sent_up = (down[:0], up[:, :0]) if pair is None else (pair[0], pair[1] * scale)
            num_unused = len(down) - len(sent_down)
            wanted = pad(sent_down.to(down.device), (0, 0, 0, num_unused)), pad(sent_up.to(up.device), (0, num_unused))
            if not all(torch.equal(_bits(one), _bits(other)) for one, other in zip((down, up), wanted, strict=True)):
                return name
        return next(iter(expected), None)

    def _served(self, places: Mapping[str, Place]) -> dict[str, torch.Tensor]:
        model = self.model_runner.get_model()
        served = {name: tensor.detach() for name, tensor in [*model.named_buffers(), *model.named_parameters()]}
        return {name: _read(served, place) for name, place in places.items()}


def _adapted(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Each module that adapters may have matrices for, by vLLM's name before merging, with the matrices A and B that it serves, padded
    to the highest rank."""
    merged = _merged_modules(model)
    for path, layer in model.named_modules():
        if hasattr(layer, "lora_a_stacked"):
            parent, _, own = path.rpartition(".")
            for at, member in enumerate(merged.get(own, [own])):
                stacked: Any = layer
                yield f"{parent}.{member}", stacked.lora_a_stacked[at][0, 0], stacked.lora_b_stacked[at][0, 0]


def _merged_modules(model: torch.nn.Module) -> dict[str, list[str]]:
    """The members of each module that vLLM merges, by its name."""
    merged: dict[str, list[str]] = {}
    for module in model.modules():
        merged |= getattr(module, "packed_modules_mapping", None) or {}
    return merged


def _tensors(source: Mapping[str, torch.Tensor] | Path) -> Mapping[str, torch.Tensor]:
    return read_checkpoint(source) if isinstance(source, Path) else source


def _read(served: Mapping[str, torch.Tensor], place: Place) -> torch.Tensor:
    """A checkpoint tensor as it is served; copied only if it is served in several parts."""
    parts = [served[name].view(-1)[start : start + length] for name, start, length in place.spans]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(place.shape)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bits as integers: a NaN equals itself, and zero does not equal minus zero."""
    return tensor.contiguous().reshape(-1).view(_INTEGERS[tensor.element_size()])
