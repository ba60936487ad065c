"""The average of two checkpoints: its values, its dtypes, and its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from actors.engines.errors import WeightMismatchError
from actors.engines.weights import digest_of, read_checkpoint
from actors.training import checkpoint as averaging
from actors.training.checkpoint import write_average

Tensors = dict[str, torch.Tensor]


def checkpoint(folder: Path, *files: Tensors) -> Path:
    """A checkpoint of a few tensors, in one file or several."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"from": folder.name}))
    if len(files) == 1:
        save_file(files[0], folder / "model.safetensors", {"format": "pt"})
        return folder
    names = [f"model-{number}.safetensors" for number in range(len(files))]
    for name, tensors in zip(names, files, strict=True):
        save_file(tensors, folder / name, {"format": "pt"})
    index = {tensor: name for name, tensors in zip(names, files, strict=True) for tensor in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert digest_of(found) == digest_of(expected), (found, expected)


def test_an_average_has_the_values_by_hand_and_the_files_that_safetensors_would_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(averaging, "_PIECE", 4)
    older = {
        "b.weight": torch.tensor([[1.0, 2.0, -4.0], [0.0, 8.0, 0.5]]), "a.bias": torch.tensor(1.0), "steps": torch.tensor([7]),
        "none": torch.empty(0),
    }  # fmt: skip
    newer = {
        "b.weight": torch.tensor([[5.0, 2.0, 0.0], [1.0, 4.0, -0.5]]), "a.bias": torch.tensor(3.0), "steps": torch.tensor([9]),
        "none": torch.empty(0),
    }  # fmt: skip
    expected = {
        "b.weight": torch.tensor([[2.0, 2.0, -3.0], [0.25, 7.0, 0.25]]), "a.bias": torch.tensor(1.5), "steps": torch.tensor([9]),
        "none": torch.empty(0),
    }  # fmt: skip
    folders = checkpoint(tmp_path / "older", older), checkpoint(tmp_path / "newer", newer)
    digest = write_average(*folders, 0.75, tmp_path / "out")
    assert_same(read_checkpoint(tmp_path / "out"), expected)
    assert digest == digest_of(expected)
    plain = checkpoint(tmp_path / "plain", expected)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "out/config.json").read_text()) == {"from": "newer"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(("decay", "expected"), [(0.7, 1.0), (0.5, 1.0), (0.4, 1.0078125)])
def test_an_average_is_rounded_to_the_dtype_of_the_weights(tmp_path: Path, decay: float, expected: float) -> None:
    """bfloat16 has nothing between 1 and 1.0078125; halfway it rounds to even."""
    older, newer = ({"w": torch.tensor([value], dtype=torch.bfloat16)} for value in (1.0, 1.0078125))
    write_average(checkpoint(tmp_path / "older", older), checkpoint(tmp_path / "newer", newer), decay, tmp_path / "out")
    assert_same(read_checkpoint(tmp_path / "out"), {"w": torch.tensor([expected], dtype=torch.bfloat16)})


def test_an_average_is_cut_into_files_as_the_newer_checkpoint_and_written_again_after_a_lost_task(tmp_path: Path) -> None:
    one, two, three = ({name: torch.full((2, 2), value)} for name, value in (("one", 0.0), ("two", 4.0), ("three", 2.0)))
    older = checkpoint(tmp_path / "older", {**one, **two}, three)
    newer = checkpoint(tmp_path / "newer", two, {**three, "one": torch.ones(2, 2)})
    written = [write_average(older, newer, 0.5, tmp_path / "out") for _ in range(2)]
    expected = {**two, **three, "one": torch.full((2, 2), 0.5)}
    assert written == [digest_of(expected)] * 2
    assert_same(read_checkpoint(tmp_path / "out"), expected)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in newer.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["newer", "older", "out"], "something unfinished is left"


@pytest.mark.parametrize(
    "other", [{"w": torch.zeros(2), "x": torch.zeros(1)}, {"w": torch.zeros(3)}, {"w": torch.zeros(2).half()}], ids=["x", "shape", "dtype"]
)
def test_checkpoints_of_different_models_have_no_average(tmp_path: Path, other: Tensors) -> None:
    older, newer = checkpoint(tmp_path / "older", {"w": torch.zeros(2)}), checkpoint(tmp_path / "newer", other)
    with pytest.raises(WeightMismatchError, match=r"have no average: they differ in name, shape or dtype of [wx]$"):
        write_average(older, newer, 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()
