"""Adapters find the attention matrices of a language model by the names that families give them, and are written beside checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.engines.adapters.files import ADAPTER_FOLDER, read_adapter
from actors.engines.weights import digest_of, read_checkpoint
from actors.training.adapters import add_adapters, is_adapter
from actors.training.checkpoint import group_of, load_model
from actors.training.core import run_local
from actors.training.job import Lora, TrainingJob
from tests.actors.training.helpers import Shapes, job_of, save_base


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


# ---- adapters beside the checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


FROZEN = ("vision_tower", "projector", "language_model")
LORA = Lora(rank=2, alpha=6, dropout=0.0, targets=("q_proj", "down_proj"))


def adapter_job(base: Path, output: Path, start: Path | None = None, **hyper: Any) -> TrainingJob:
    job = job_of(base, output, **{"frozen": FROZEN, "lora": LORA, "warmup_share": 0.0, "learning_rate": 0.01, **hyper})
    return replace(job, adapter_base=digest_of(read_checkpoint(base)), adapter=None if start is None else start / ADAPTER_FOLDER)


@pytest.fixture(scope="module")
def first(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "first"
    run_local(adapter_job(base, folder), Shapes())
    return folder


def assert_contains_its_adapter(checkpoint: Path, base: Path) -> None:
    """The checkpoint's weights are those of the base with the products of its adapter."""
    adapter, plain, found = read_adapter(checkpoint / ADAPTER_FOLDER), load_model(base).state_dict(), load_model(checkpoint).state_dict()
    assert adapter.base_digest == digest_of(read_checkpoint(base))
    assert {name.rpartition(".")[2] for name in adapter.matrices} == set(LORA.targets)
    for name, (down, up) in adapter.matrices.items():
        plain[f"{name}.weight"] += up @ down * adapter.scale
    assert all(torch.allclose(found[name], plain[name], atol=1e-6) for name in plain)


@pytest.mark.parametrize("zero_stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_training_continues_an_adapter_on_its_base(base: Path, first: Path, tmp_path: Path, zero_stage: int) -> None:
    run_local(adapter_job(base, tmp_path / "second", first, zero_stage=zero_stage), Shapes())
    for checkpoint in (first, tmp_path / "second"):
        assert_contains_its_adapter(checkpoint, base)
    run_local(adapter_job(base, tmp_path / "still", first, learning_rate=1e-12, weight_decay=0.0, zero_stage=zero_stage), Shapes())
    started, kept, second = (read_adapter(folder / ADAPTER_FOLDER) for folder in (first, tmp_path / "still", tmp_path / "second"))
    assert all(torch.allclose(started.tensors[name], tensor, atol=1e-9) for name, tensor in kept.tensors.items())
    assert second.matrices.keys() == started.matrices.keys()
    assert all(not torch.equal(started.tensors[name], tensor) for name, tensor in second.tensors.items())


def test_an_adapter_part_of_the_way_lies_between_the_one_it_started_from_and_the_trained_one(
    base: Path, first: Path, tmp_path: Path
) -> None:
    for name, share in (("whole", 1.0), ("half", 0.5)):
        run_local(adapter_job(base, tmp_path / name, first, interpolation=share), Shapes())
    assert_contains_its_adapter(tmp_path / "half", base)
    started, whole, half = (read_adapter(folder / ADAPTER_FOLDER).tensors for folder in (first, tmp_path / "whole", tmp_path / "half"))
    assert all(torch.allclose(half[name], (started[name] + whole[name]) / 2, atol=1e-7) for name in half)


def test_what_no_adapter_holds_or_fits_is_refused(base: Path, first: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"an adapter leaves out the trained weights of \['projector'\]; name them in `frozen`"):
        run_local(adapter_job(base, tmp_path / "out", frozen=("vision_tower", "language_model")), Shapes())
    with pytest.raises(ValueError, match=r"lora has rank 4, alpha 16 and .* and the adapter to continue has rank 2, alpha 6"):
        run_local(adapter_job(base, tmp_path / "out", first, lora=Lora(rank=4)), Shapes())
    with pytest.raises(ValueError, match="only training with lora writes an adapter"):
        adapter_job(base, tmp_path / "out", lora=None, frozen=())
    with pytest.raises(ValueError, match="needs the digest of its base"):
        replace(adapter_job(base, tmp_path / "out", first), adapter_base="")
