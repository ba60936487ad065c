"""LoRA (Hu et al. 2021, arXiv 2106.09685): small trained matrices beside frozen ones, and in the checkpoint their sum.

peft puts the adapters into the model. They are merged here, in the gathered state dict: at ZeRO stage 3 no rank holds the modules'
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
    """Put an adapter beside each target matrix of the language model, in place. At first it changes nothing: its product is 0.

    Raises:
        ValueError: a target is not the name of a linear layer of the language model.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    found = {name: name.rpartition(".")[2] for name in linear if group_of(f"{name}.weight") == "language_model"}
    unknown = sorted(set(lora.targets) - set(found.values()))
    if unknown:
        raise ValueError(f"lora targets {unknown} are no linear layers of the language model; it has {sorted(set(found.values()))}")
    modules = [name for name, kind in found.items() if kind in lora.targets]
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=modules)
    inject_adapter_in_model(config, model, adapter_name=_NAME)


def is_adapter(parameter_name: str) -> bool:
    """Whether a parameter is an adapter's."""
    return _DOWN in parameter_name or _UP in parameter_name


def merged(state: dict[str, torch.Tensor], lora: Lora) -> dict[str, torch.Tensor]:
    """A state dict with adapters as that of the model without them, each product added to its matrix in float32."""
    plain = {name.replace(_BASE, "."): tensor for name, tensor in state.items() if not is_adapter(name)}
    for name, down in state.items():
        if _DOWN in name:
            target = name.replace(_DOWN, ".")
            product = state[name.replace(_DOWN, _UP)].float() @ down.float()
            plain[target] = (plain[target].float() + product * (lora.alpha / lora.rank)).to(plain[target].dtype)
    return plain
