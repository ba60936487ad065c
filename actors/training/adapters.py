"""LoRA (Hu et al. 2021, arXiv 2106.09685): trains small matrices beside frozen ones and merges them into the checkpoint.

peft adds the adapters to the model. This module merges them in the gathered state dict: at ZeRO stage 3 no rank holds the modules'
weights, and a checkpoint with the names and shapes of its base can be swapped into a running engine.
"""

from __future__ import annotations

from typing import Any

import torch

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


def merged(state: dict[str, torch.Tensor], lora: Lora) -> dict[str, torch.Tensor]:
    """The state dict of the model without adapters: each product is added to its matrix in float32."""
    plain = {name.replace(_BASE, "."): tensor for name, tensor in state.items() if not is_adapter(name)}
    for name, down in state.items():
        if _DOWN in name:
            target = name.replace(_DOWN, ".")
            product = state[name.replace(_DOWN, _UP)].float() @ down.float()
            plain[target] = (plain[target].float() + product * (lora.alpha / lora.rank)).to(plain[target].dtype)
    return plain
