"""LoRA (Hu et al. 2021, arXiv 2106.09685): trains small matrices beside frozen ones and merges them into the checkpoint.

peft adds the adapters to the model. This module merges them in the gathered state dict: at ZeRO stage 3 no rank holds the modules'
weights, and a checkpoint with the names and shapes of its base can be swapped into a running engine.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from actors.engines.adapters.files import Adapter
from actors.training.checkpoint import group_of
from actors.training.job import Lora

_NAME = "vigc"
_BASE = ".base_layer."
_DOWN = f".lora_A.{_NAME}."
_UP = f".lora_B.{_NAME}."


def add_adapters(model: Any, lora: Lora) -> None:
    """Add an adapter to each target matrix of the language model, in place. Initially its product is 0, so it has no effect.

    Raises:
        ValueError: a target does not name a linear layer of the language model.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    found = {name: name.rpartition(".")[2] for name in linear if group_of(f"{name}.weight") == "language_model"}
    targets = set(lora.targets)
    if "o_proj" in targets and "o_proj" not in found.values() and "out_proj" in found.values():
        targets = targets - {"o_proj"} | {"out_proj"}  # as OPT and LFM2 call it
    unknown = sorted(targets - set(found.values()))
    if unknown:
        raise ValueError(f"lora targets {unknown} are not linear layers of the language model; it has {sorted(set(found.values()))}")
    modules = [name for name, kind in found.items() if kind in targets]
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=modules)
    inject_adapter_in_model(config, model, adapter_name=_NAME)


def is_adapter(parameter_name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return _DOWN in parameter_name or _UP in parameter_name


@torch.no_grad()
def load_adapter(model: Any, adapter: Adapter, lora: Lora) -> None:
    """Let the adapters of a model continue from `adapter`.

    Raises:
        ValueError: rank, alpha or target modules are not those of `lora`.
    """
    wanted = {name.partition(_DOWN)[0] for name, _ in model.named_parameters() if _DOWN in name}
    if (adapter.rank, adapter.alpha, set(adapter.matrices)) != (lora.rank, lora.alpha, wanted):
        raise ValueError(
            f"lora has rank {lora.rank}, alpha {lora.alpha} and {len(wanted)} target modules, and the adapter to continue has rank "
            f"{adapter.rank}, alpha {adapter.alpha} and {len(adapter.matrices)}; give the same lora"
        )
    parameters = dict(model.named_parameters())
    for name, (down, up) in adapter.matrices.items():
        parameters[f"{name}{_DOWN}weight"].copy_(down)
        parameters[f"{name}{_UP}weight"].copy_(up)


def adapter_state(state: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The adapters' part of a state dict or of named parameters."""
    return {name: tensor for name, tensor in state if is_adapter(name)}


def adapter_of(state: dict[str, torch.Tensor], lora: Lora, base_digest: str) -> Adapter:
    """The adapter in a state dict, relative to a base with digest `base_digest`."""
    names = [name.partition(_DOWN)[0] for name in sorted(state) if _DOWN in name]
    matrices = {name: (state[f"{name}{_DOWN}weight"], state[f"{name}{_UP}weight"]) for name in names}
    return Adapter(base_digest, lora.rank, lora.alpha, matrices)


def require_adapters_alone(model: Any) -> None:
    """Check that nothing but adapters is trained.

    Raises:
        ValueError: a parameter of another group is trained, and would not be in the adapter.
    """
    others = {group_of(name) for name, one in model.named_parameters() if one.requires_grad and not is_adapter(name)}
    if others:
        raise ValueError(f"an adapter leaves out the trained weights of {sorted(others)}; name them in `frozen`, or train without it")


def merged(state: dict[str, torch.Tensor], lora: Lora) -> dict[str, torch.Tensor]:
    """The state dict of the model without adapters: each product is added to its matrix in float32."""
    plain = {name.replace(_BASE, "."): tensor for name, tensor in state.items() if not is_adapter(name)}
    for name, down in state.items():
        if _DOWN in name:
            target = name.replace(_DOWN, ".")
            product = state[name.replace(_DOWN, _UP)].float() @ down.float()
            plain[target] = (plain[target].float() + product * (lora.alpha / lora.rank)).to(plain[target].dtype)
    return plain
