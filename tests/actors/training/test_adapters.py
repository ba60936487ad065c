"""Adapters find the attention matrices of a language model by the names that families give them."""

from __future__ import annotations

import pytest
import torch

from actors.training.adapters import add_adapters, is_adapter
from actors.training.checkpoint import group_of
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


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.image_newline", "projector"),
        ("model.visual_embeddings_table.weight", "projector"),
        ("model.multi_modal_projector.linear_1.weight", "projector"),
        ("model.visual.pos_embed.weight", "vision_tower"),
        ("model.vision_tower.encoder.layers.0.attention.projection_layer.weight", "vision_tower"),
        ("model.language_model.embed_tokens.weight", "language_model"),
        ("qformer.embeddings.layernorm.weight", "qformer"),
    ],
)
def test_a_parameter_belongs_to_the_part_that_owns_it(name: str, group: str) -> None:
    assert group_of(name) == group
