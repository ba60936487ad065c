"""Adapters find the attention matrices of a language model by the names that families give them."""

from __future__ import annotations

import pytest
import torch

from actors.training.adapters import add_adapters, is_adapter
from actors.training.job import Lora


def language_model(*names: str) -> torch.nn.Module:
    layer = torch.nn.ModuleDict({name: torch.nn.Linear(4, 4) for name in names})
    return torch.nn.ModuleDict({"language_model": torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer])})})


@pytest.mark.parametrize("last", ["o_proj", "out_proj"])
def test_the_default_targets_fit_llama_and_opt(last: str) -> None:
    model = language_model("q_proj", "k_proj", "v_proj", last, "fc1")
    add_adapters(model, Lora(rank=2))
    adapted = {name.split(".")[3] for name, _ in model.named_parameters() if is_adapter(name)}
    assert adapted == {"q_proj", "k_proj", "v_proj", last}


def test_names_that_do_not_exist_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"lora targets \['gate'\] are not linear layers of the language model; it has \['fc1', 'q_proj'\]"
    ):
        add_adapters(language_model("q_proj", "fc1"), Lora(rank=2, targets=("q_proj", "gate")))
