"""A model that the engine would run in another way than it runs by itself is refused when the engine starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from actors.engines import decoding, families
from actors.engines.errors import UnfitModelError
from actors.engines.probe import difference_from_probe, make_probe
from actors.engines.transformers import TransformersEngine, served_tensors
from actors.engines.weights import digest_of, read_checkpoint
from loop.config.run_config import EMBEDDED_MODEL
from tests.actors.engines.family_models import (
    save_blip2,
    save_gemma3,
    save_instructblip,
    save_paligemma,
    save_qwen,
    save_qwen3,
)
from tests.actors.engines.tiled_models import save_llava_next, save_mllama, save_pixtral

NEEDS_TORCHVISION = pytest.mark.skipif(find_spec("torchvision") is None, reason="its processor needs torchvision: make install")
DIFFERENT = "about an image of 160x80, at the end of the prompt, log-probabilities differ by"


@pytest.mark.parametrize(
    "save",
    [
        lambda _: EMBEDDED_MODEL, save_llava_next, save_instructblip, save_blip2, save_gemma3, save_mllama,
        save_paligemma, *(pytest.param(save, marks=NEEDS_TORCHVISION) for save in (save_qwen, save_qwen3, save_pixtral)),
    ],
    ids=["llava", "llava_next", "instructblip", "blip2", "gemma3", "mllama", "paligemma", "qwen2_5_vl", "qwen3_vl", "pixtral"],
)  # fmt: skip
def test_a_family_that_is_run_as_it_runs_by_itself_passes_in_half_precision(save: Callable[[Path], Path], tmp_path: Path) -> None:
    TransformersEngine(save(tmp_path), dtype="bfloat16")


def _assert_refused(folder: Path, model_type: str, what: str, dtype: str) -> None:
    with pytest.raises(UnfitModelError) as refused:
        TransformersEngine(folder, dtype=dtype)
    text = str(refused.value)
    assert text.startswith(f"the transformers engine cannot run this {model_type} model as it runs by itself: {what}")
    assert text.endswith("; set engine.kind to vllm, if vLLM supports the model, or use another model")
    assert "\n" not in text


def test_a_family_that_is_not_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(families._OTHERS, "paligemma")
    _assert_refused(save_paligemma(tmp_path), "paligemma", DIFFERENT, "float32")


def test_a_family_that_fails_on_two_images_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise ValueError("Received inconsistently sized batches\nof images")

    monkeypatch.setattr(families.PlaceholderFamily, "prefill", fail)
    what = "prompts about two images fail with ValueError: Received inconsistently sized batches of images"
    _assert_refused(save_gemma3(tmp_path), "gemma3", what, "float32")


@NEEDS_TORCHVISION
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_positions_on_a_single_axis_are_found(monkeypatch: pytest.MonkeyPatch, dtype: str, tmp_path: Path) -> None:
    monkeypatch.setattr(families.PlaceholderFamily, "_positions", lambda _, ids, mask, *__: families._positions(mask))
    _assert_refused(save_qwen3(tmp_path), "qwen3_vl", DIFFERENT, dtype)


def test_a_fault_of_the_second_step_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = decoding.Decoder._advance

    def forgetful(self: decoding.Decoder, batch: Any, chosen: torch.Tensor) -> None:
        advance(self, batch, chosen)
        batch.positions = batch.positions - 1

    monkeypatch.setattr(decoding.Decoder, "_advance", forgetful)
    with pytest.raises(UnfitModelError, match="about an image of 160x80, 2 tokens after the prompt, log-probabilities differ by"):
        TransformersEngine(EMBEDDED_MODEL)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "model"))
    tensors = read_checkpoint(model)
    tensors["language_model.lm_head.weight"][5] = torch.nan
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnfitModelError, match=r"^this llava model returns non-finite logits"):
        TransformersEngine(model)


def test_a_model_that_finds_all_tokens_equally_likely_passes(tmp_path: Path) -> None:
    model = Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "model"))
    tensors = read_checkpoint(model)
    tensors["language_model.lm_head.weight"].zero_()
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    TransformersEngine(model)


def test_a_lack_of_memory_says_nothing_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(decoding.Decoder, "follow", fail)
    with pytest.raises(torch.OutOfMemoryError):
        TransformersEngine(EMBEDDED_MODEL)


def test_the_comparison_leaves_weights_and_random_numbers_as_they_were() -> None:
    before = torch.get_rng_state()
    engine = TransformersEngine(EMBEDDED_MODEL)
    assert torch.equal(torch.get_rng_state(), before)
    assert digest_of(served_tensors(engine.model)) == digest_of(read_checkpoint(EMBEDDED_MODEL))


@pytest.mark.parametrize(
    "save", [lambda _: EMBEDDED_MODEL, save_instructblip, save_paligemma, pytest.param(save_qwen, marks=NEEDS_TORCHVISION)],
    ids=["llava", "instructblip", "paligemma", "qwen2_5_vl"],
)  # fmt: skip
def test_a_probe_holds_what_an_engine_scores(save: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = save(tmp_path)
    probe = make_probe(folder, "float32", 1)
    assert difference_from_probe(TransformersEngine(folder), probe) == ""
    assert all(probe.continuations)
