"""The small InstructBLIP: its processor, and what its Q-Former does with a question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, InstructBlipForConditionalGeneration, InstructBlipProcessor

from actors.engines.weights import digest_of, read_checkpoint
from actors.processors import load_processor
from actors.training.checkpoint import load_model
from loop.models.seed.model import build_processor
from loop.models.seed.qformer import NUM_QUERY_TOKENS
from tests.world.untrained import save_untrained_instructblip

QUESTION = "What color is the ring?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("instructblip")
    save_untrained_instructblip(made)
    return made


def asked(question: str, answer: str = "") -> list[dict[str, Any]]:
    messages = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (60, 50))}, {"type": "text", "text": question}]}]
    return [*messages, *([{"role": "assistant", "content": [{"type": "text", "text": answer}]}] if answer else [])]


def test_the_auto_classes_load_it_and_saving_again_changes_nothing(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = load_processor(folder)
    assert isinstance(model, InstructBlipForConditionalGeneration)
    assert isinstance(processor, InstructBlipProcessor)
    assert 1.8e6 < sum(parameter.numel() for parameter in model.parameters()) < 2.4e6
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert digest_of(read_checkpoint(tmp_path)) == digest_of(read_checkpoint(folder))
    again, messages = load_processor(tmp_path), asked(QUESTION, "The ring is red.")
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    made: list[Any] = [one.apply_chat_template(messages, **options) for one in (processor, again)]
    first, second = made
    assert set(first) == {"input_ids", "attention_mask", "qformer_input_ids", "qformer_attention_mask", "pixel_values"}
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_prompts_read_as_those_of_the_embedded_llava_with_the_image_in_front(folder: Path) -> None:
    processor, llava = load_processor(folder), build_processor()
    prompt = processor.apply_chat_template(asked(QUESTION), add_generation_prompt=True)
    assert prompt == llava.apply_chat_template(asked(QUESTION), add_generation_prompt=True).replace(" <image>", "")
    begun = processor.apply_chat_template(asked(QUESTION, "The ring"), continue_final_message=True)
    assert begun == f"{prompt} The ring"
    inputs = processor(text=prompt, images=Image.new("RGB", (60, 50)), return_tensors="pt", add_special_tokens=False)
    ids = inputs["input_ids"][0].tolist()
    image_id = load_model(folder).config.image_token_id
    assert ids[: NUM_QUERY_TOKENS + 1] == [image_id] * NUM_QUERY_TOKENS + [processor.tokenizer.bos_token_id]
    assert processor.tokenizer.decode(ids[NUM_QUERY_TOKENS:]) == prompt
    assert image_id not in ids[NUM_QUERY_TOKENS:]
    assert tuple(inputs["pixel_values"].shape) == (1, 3, 48, 48)


def test_query_tokens_start_apart_and_the_question_moves_what_they_see(folder: Path) -> None:
    model, processor = load_model(folder).eval(), load_processor(folder)
    pixels = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = [
            model.get_image_features(pixels, **{f"qformer_{name}": value for name, value in read.items()}).pooler_output
            for read in (processor.qformer_tokenizer(text, return_tensors="pt") for text in (QUESTION, "Describe the image in detail."))
        ]
    assert seen[0].shape == (1, NUM_QUERY_TOKENS, model.config.text_config.hidden_size)
    assert float(torch.pdist(seen[0][0]).min()) > 0.01
    assert float((seen[0] - seen[1]).abs().max()) > 0.01
