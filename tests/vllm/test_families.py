"""Which families vLLM serves and swaps as their own classes run them. `benchmarks.speed.vllm_families` has the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.engines.errors import SwapError, UnfitModelError
from actors.engines.probe import make_probe
from actors.engines.vllm.engine import VllmEngine
from actors.engines.vllm.options import VllmOptions
from benchmarks.speed.vllm_families import serve_alone
from loop.config.engine_config import VllmEngineConfig
from loop.config.run_config import EMBEDDED_MODEL
from loop.errors import UserError
from loop.models.checks import check_model
from tests.actors.engines.family_models import save_gemma3, save_instructblip
from tests.vllm.worlds import changed, checkpoint_update, seed_weights, update_of

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl", "blip2", "lfm2_vl"])
def test_a_family_is_attested_and_answers_as_its_own_class_does_before_and_after_a_swap(family: str) -> None:
    pytest.importorskip("vllm", reason="needs vLLM: make install-vllm")
    row = serve_alone(family)
    assert row.refused == ""
    assert row.attested_by == "bytes"
    assert row.num_equal == (row.num_answers, row.num_answers)
    assert row.num_changed > row.num_answers // 2


def test_an_architecture_that_vllm_does_not_have_is_refused_before_anything_is_loaded(built: VllmEngine, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        check_model(str(save_instructblip(tmp_path)), VllmEngineConfig.model_validate({"kind": "vllm"}))
    assert str(refused.value).endswith(
        "has the architecture InstructBlipForConditionalGeneration, which the installed vLLM does not have; set engine.kind to transformers"
    )


def test_image_tokens_that_attend_to_each_other_are_refused_on_a_cpu(built: VllmEngine, tmp_path: Path) -> None:
    with pytest.raises(UnfitModelError) as refused:
        VllmEngine(save_gemma3(tmp_path), VllmOptions())
    assert str(refused.value) == (
        "the vllm engine cannot run this gemma3 model as it runs by itself: its image tokens attend to each other, which on a CPU vLLM "
        "cannot do; set engine.kind to transformers, or use another model"
    )


def _lose_the_image(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have vLLM's model lay half of an image's features in, as if its code did not fit the family."""
    model = engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()
    embed = model.embed_multimodal
    monkeypatch.setattr(model, "embed_multimodal", lambda **given: [one * 0.5 for one in embed(**given)])


def test_an_engine_that_computes_otherwise_than_the_model_is_refused_though_its_bytes_are_right(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = checkpoint_update(EMBEDDED_MODEL, "probed", make_probe(EMBEDDED_MODEL, "float32", 1))
    engine.swap(update)
    _lose_the_image(engine, monkeypatch)
    with pytest.raises(UnfitModelError) as refused:
        engine.swap(update)
    assert str(refused.value).startswith(
        "the vllm engine cannot run this llava model as it runs by itself: about an image of 160x80, at the end of the prompt, "
        "log-probabilities differ by"
    )
    assert str(refused.value).endswith("; set engine.kind to transformers, or use another model")
    assert engine.weight_version == ""
    monkeypatch.undo()
    engine.swap(update)


def test_where_bytes_cannot_be_read_a_difference_is_the_weights_fault_once_the_engine_has_fitted(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, wrong = make_probe(EMBEDDED_MODEL, "float32", 1), changed(seed_weights(), 3)
    engine.swap(update_of(seed_weights(), "right", probe=probe))
    monkeypatch.setattr(engine, "_compare", lambda *_: None)
    monkeypatch.setattr(engine, "_places", None)
    for fits, error in ((True, SwapError), (False, UnfitModelError)):
        monkeypatch.setattr(engine, "_fits", fits)
        with pytest.raises(error, match="log-probabilities differ by"):
            engine.swap(update_of(wrong, "wrong", probe=probe))
