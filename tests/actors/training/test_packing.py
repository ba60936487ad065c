"""Packed conversations train as they do row by row, and none sees another."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.processors import load_processor
from actors.training.batches import Batch
from actors.training.checkpoint import load_model
from actors.training.core import run_local
from actors.training.inputs import forward, packing
from actors.training.inputs.forward import target_logits
from actors.training.inputs.packing import Packer, check_packing
from actors.training.job import Hyperparameters, TrainingJob
from actors.training.order import pack_by_tokens
from tests.actors.engines.families import FAMILIES
from tests.actors.training.helpers import Shapes, job_of
from tests.actors.training.test_several_images import ONE, SAME_ANSWERS, SEVERAL, TEXT_ONLY, Photos, builder_of

CPU = torch.device("cpu")
PACKED = (
    "llava", "pixtral", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "internvl", "idefics3", "smolvlm",
)  # fmt: skip
MIXED = ("qwen3_5", "lfm2_vl", "instructblip", "mllama")
"""Families with linear attention, convolutions, a Q-Former, or cross-attention."""


def parts_of(family: str, folder: Path) -> tuple[Any, Any, Packer]:
    save, packages = FAMILIES[family]
    if missing := [one for one in packages if find_spec(one) is None]:
        pytest.skip(f"its processor needs {missing}")
    folder = save(folder)
    model, builder = load_model(folder).eval(), builder_of(load_processor(folder))
    return model, builder, Packer(builder, model)


def gradients(model: Any, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    """The summed loss, and its gradients."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = torch.nn.functional.cross_entropy(*target_logits(model, batch, CPU), reduction="sum")
        loss.backward()
        total += loss.item()
    return total, {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("family", PACKED)
def test_loss_and_gradients_are_those_of_the_rows(tmp_path: Path, family: str) -> None:
    model, builder, packer = parts_of(family, tmp_path)
    check_packing(model, builder, packer, CPU)
    rows = builder.rows(enumerate([ONE, SEVERAL, TEXT_ONLY, SAME_ANSWERS]), 0)
    batch = packer.batch(rows)
    assert batch.inputs["input_ids"].shape[0] == 1
    expected, of_rows = gradients(model, [builder.batch([row]) for row in rows])
    found, of_pack = gradients(model, [batch])
    assert found == pytest.approx(expected, rel=1e-4)
    assert set(of_pack) == set(of_rows)
    for name, one in of_rows.items():
        assert torch.allclose(of_pack[name], one, atol=1e-4 * max(1.0, one.abs().max().item())), name


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "instructblip"])
def test_logits_without_a_loss_are_not_computed_for_large_vocabularies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    model, builder, _ = parts_of(family, tmp_path)
    batches = [builder.build(enumerate([ONE, SAME_ANSWERS]), 0), builder.build([(0, TEXT_ONLY)], 0)]
    widths: list[int] = []
    model.register_forward_hook(lambda _, __, output: widths.append(output.logits.shape[1]))
    expected, of_all = gradients(model, batches)
    monkeypatch.setattr(forward, "_LARGE_VOCABULARY", 1)
    found, of_some = gradients(model, batches)
    assert (widths[2] < widths[0] / 2) == (family != "instructblip")
    assert found == pytest.approx(expected, rel=1e-5)
    assert all(torch.allclose(of_some[name], one, atol=1e-5 * max(1.0, one.abs().max().item())) for name, one in of_all.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", MIXED)
def test_a_model_that_mixes_conversations_is_refused_in_one_line(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    model, builder, packer = parts_of(family, tmp_path)
    model.to(dtype)
    with pytest.raises(ValueError, match=r"^this \w+ model does not keep packed conversations apart: .*; set training.packing to false$"):
        check_packing(model, builder, packer, CPU)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_check_finds_a_conversation_that_sees_its_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    model, builder, packer = parts_of(family, tmp_path)
    batch_of = Packer.batch

    def seeing(self: Packer, rows: Any) -> Batch:
        """Without positions, all of the row is one conversation."""
        batch = batch_of(self, rows)
        return Batch({name: one for name, one in batch.inputs.items() if name != "position_ids"}, batch.labels, batch.num_target_tokens)

    monkeypatch.setattr(packing.Packer, "batch", seeing)
    with pytest.raises(ValueError, match=r"log-probabilities differ by [\d.]+% of their spread"):
        check_packing(model, builder, packer, CPU)


def test_rows_are_packed_first_fit_and_split_for_other_ranks() -> None:
    assert pack_by_tokens([5, 3, 9, 2, 4], 10) == [[2], [0, 4], [1, 3]]
    assert pack_by_tokens([5, 3, 9, 2, 4], 10, 4) == [[2], [0], [4], [1, 3]]
    assert pack_by_tokens([12, 1], 10, 9) == [[0], [1]]


def test_training_ends_with_the_same_loss_and_weights(tmp_path: Path) -> None:
    """At other ZeRO stages: `test_two_ranks_pack_and_stop_as_one_does`."""
    base = FAMILIES["llava"][0](tmp_path)
    settings: dict[str, Any] = {"max_tokens": 100}
    plain = run_local(job_of(base, tmp_path / "plain", **settings), Shapes())
    packed = run_local(job_of(base, tmp_path / "packed", packing=True, max_micro_batch_tokens=160, **settings), Shapes())
    assert dict(packed.losses) == pytest.approx(dict(plain.losses), abs=1e-4)
    assert packed.num_target_tokens == plain.num_target_tokens
    again = run_local(job_of(base, tmp_path / "again", packing=True, max_micro_batch_tokens=160, **settings), Shapes())
    assert again.digest == packed.digest


def test_a_mixed_training_is_packed(tmp_path: Path) -> None:
    base = FAMILIES["llava"][0](tmp_path)
    hyper = Hyperparameters(4, 2, 1e-3, packing=True, max_micro_batch_tokens=200, max_tokens=200)
    result = run_local(TrainingJob(base, tmp_path / "out", [SEVERAL, TEXT_ONLY, ONE, SAME_ANSWERS], 0, hyper), Photos())
    assert (result.num_skipped_samples, result.num_empty_steps) == (0, 0)


def test_packing_needs_the_length_of_a_row() -> None:
    with pytest.raises(ValueError, match=r"^packing fills rows of max_micro_batch_tokens tokens; give that key too"):
        Hyperparameters(4, 2, 1e-3, packing=True)
