"""The small Q-Former models are trained from nothing, in stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, Blip2ForConditionalGeneration

from actors.engines.weights import digest_of, read_checkpoint
from actors.processors import load_processor
from loop.errors import UserError
from loop.models.seed.instructblip import INSTRUCTBLIP
from loop.models.seed.model import build_processor
from loop.models.seed.qformer import NUM_QUERY_TOKENS, make_qformer_model
from tests.world.untrained import save_untrained_minigpt4

STEPS: dict[str, Any] = {
    "num_images": 64,
    "vision_steps": 25,
    "qformer_steps": 21,
    "looking_steps": 2,
    "instruction_steps": 2,
    "vigc_steps": 2,
}


def test_training_from_nothing_goes_through_its_stages_and_is_repeatable(tmp_path: Path) -> None:
    done: list[str] = []
    one, two = tmp_path / "one", tmp_path / "two"
    reached = make_qformer_model(INSTRUCTBLIP, one, 3, **STEPS, on_progress=lambda stage, progress: done.append(f"{stage} {progress.step}"))
    assert list(reached) == ["vision", "qformer", "looking", "instructions", "vigc"]
    assert done == [f"{stage} {step}" for stage in ("looking", "instructions", "vigc") for step in (1, 2)]
    assert make_qformer_model(INSTRUCTBLIP, two, 3, **STEPS) == reached
    assert digest_of(read_checkpoint(one)) == digest_of(read_checkpoint(two))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    load_processor(one)
    with pytest.raises(UserError, match="exists"):
        make_qformer_model(INSTRUCTBLIP, one, 3)


def test_the_small_minigpt4_reads_as_the_embedded_llava_with_the_image_in_front(tmp_path: Path) -> None:
    save_untrained_minigpt4(tmp_path)
    model: Any = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(model, Blip2ForConditionalGeneration)
    assert 1.8e6 < model.num_parameters() < 2.4e6
    processor, image = load_processor(tmp_path), Image.new("RGB", (60, 50))
    asked = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What color is the ring?"}]}]
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True)
    assert prompt == build_processor().apply_chat_template(asked, add_generation_prompt=True).replace(" <image>", "")
    ids = processor(text=prompt, images=image, return_tensors="pt", add_special_tokens=False)["input_ids"][0].tolist()
    assert ids[: NUM_QUERY_TOKENS + 1] == [model.config.image_token_id] * NUM_QUERY_TOKENS + [processor.tokenizer.bos_token_id]
