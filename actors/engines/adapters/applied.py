"""A live transformers model that computes with an adapter beside its own weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from actors.engines.adapters.files import Adapter
from actors.engines.errors import WeightMismatchError

Hook = Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]


class AppliedAdapter:
    """Applies at most one adapter to a model, by hooks on its target modules. The model's weights and names stay as they are."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._hooks: list[RemovableHandle] = []
        self._served: Adapter | None = None

    def check(self, adapter: Adapter) -> None:
        """Check that an adapter fits the model.

        Raises:
            WeightMismatchError: a module is not a linear layer of the model, or a matrix has another shape or dtype than it needs.
        """
        layers = {name: one for name, one in self._model.named_modules() if isinstance(one, torch.nn.Linear)}
        for name, (down, up) in adapter.matrices.items():
            if name not in layers:
                raise WeightMismatchError(f"the adapter has matrices for {name}, which is not a linear layer of the served model")
            layer = layers[name]
            for kind, matrix, shape in (("A", down, (adapter.rank, layer.in_features)), ("B", up, (layer.out_features, adapter.rank))):
                given, wanted = _described(matrix.shape, matrix.dtype), _described(shape, layer.weight.dtype)
                if given != wanted:
                    raise WeightMismatchError(f"the adapter's {kind} for {name} is {given}, and the served model needs {wanted}")

    def apply(self, adapter: Adapter | None) -> None:
        """Compute with a copy of `adapter` from now on, in place of the previous one; `None` is the model alone."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._served = [], None
        if adapter is None:
            return
        copies: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, (down, up) in adapter.matrices.items():
            module: Any = self._model.get_submodule(name)
            copies[name] = down.to(module.weight.device, copy=True), up.to(module.weight.device, copy=True)
            self._hooks.append(module.register_forward_hook(_beside(*copies[name], adapter.scale)))
        self._served = replace(adapter, matrices=copies)

    def digest(self, base_digest: str) -> str:
        """Digest of the model with the matrices that it computes with, where its own weights have `base_digest`."""
        return base_digest if self._served is None else replace(self._served, base_digest=base_digest).digest


def _described(shape: Sequence[int], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"


def _beside(down: torch.Tensor, up: torch.Tensor, scale: float) -> Hook:
    def add(_: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return torch.add(output, linear(linear(inputs[0], down), up), alpha=scale)

    return add
