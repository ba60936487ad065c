from pathlib import Path

import pytest
import torch

from actors.engines.base import WeightMismatchError, WeightUpdate
from actors.engines.weights import digest_of, load_update, manifest_of, verify
from cluster.weights import TRANSPORTS, prepare
from tests.cluster.workers import save, update_of, weights


@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
def test_a_prepared_update_loads_to_what_was_digested(tmp_path: Path, transport: str) -> None:
    update = prepare(save(tmp_path / "checkpoint", weights(3.0)), "r1-abc", transport)
    tensors = load_update(update)
    verify(update, tensors, manifest_of(weights(0.0)))
    assert update.digest == digest_of(tensors) == digest_of(weights(3.0))
    assert update.manifest == manifest_of(tensors)
    assert (update.tensors is None) == (transport == "checkpoint")


def test_unknown_transports_and_unreadable_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pigeon.*checkpoint"):
        prepare(tmp_path, "r1", "pigeon")
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(WeightMismatchError, match=r"model\.safetensors"):
        prepare(tmp_path, "r1", "checkpoint")


def test_a_checkpoint_changed_after_preparation_is_refused(tmp_path: Path) -> None:
    update = prepare(save(tmp_path, weights(3.0)), "r1", "checkpoint")
    save(tmp_path, weights(4.0))
    with pytest.raises(WeightMismatchError, match="digest"):
        verify(update, load_update(update), manifest_of(weights(0.0)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"head.weight": torch.zeros(4, 4)}, r"head\.weight: float32\[4, 4\] given, float32\[4, 3\] served"),
        ({"norm.bias": torch.zeros(3)}, r"norm\.bias: float32\[3\] given, bfloat16\[3\] served"),
        ({"extra": torch.zeros(1)}, r"extra: float32\[1\] given, nothing served"),
        ({"norm.bias": None}, r"norm\.bias: nothing given"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, torch.Tensor | None], expected: str) -> None:
    merged = {**weights(1.0), **change}
    tensors = {name: tensor for name, tensor in merged.items() if tensor is not None}
    with pytest.raises(WeightMismatchError, match=expected):
        verify(update_of(tensors, "r1"), tensors, manifest_of(weights(0.0)))


def test_an_update_carries_exactly_one_source(tmp_path: Path) -> None:
    tensors = weights(1.0)
    for update in (
        WeightUpdate("r1", digest_of(tensors), manifest_of(tensors)),
        WeightUpdate("r1", digest_of(tensors), manifest_of(tensors), checkpoint=tmp_path, tensors=tensors),
    ):
        with pytest.raises(ValueError, match="exactly one"):
            load_update(update)
