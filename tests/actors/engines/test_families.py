"""Every family decodes as its own model does, and looks at an image once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from actors.engines.base import FinishReason, Request, Sampling, WeightUpdate
from actors.engines.decoding import Decoder
from actors.engines.families import PlaceholderFamily, Prompt, family_of
from actors.engines.transformers import TransformersEngine
from actors.engines.weights import digest_of, manifest_of, read_checkpoint
from actors.processors import load_processor
from loop.sources.shapes.render import render
from loop.sources.shapes.scene import image_id, scene_of
from tests.actors.engines.family_models import build_qwen, save_instructblip, save_llava_next
from tests.paths import ROOT

PROMPTS = (
    "How many objects are there?",
    "Is the red ring to the left of the orange star?",
    "What is at the center?",
    "Generate a question based on the content of the given image and then answer it.",
)  # fmt: skip
SEED = ROOT / "loop" / "models" / "seed" / "checkpoint"


def _image(index: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    return render(scene_of(image_id(1, index, 0.1))).resize(size)


REQUESTS = [
    replace(Request(_image(index, size), prompt, image_key=f"{index} {size}"), answer_prefix=prefix)
    for index, (prompt, size, prefix) in enumerate(
        zip(PROMPTS * 2, [(48, 48), (96, 60)] * 4, ["", "", "", "", "There is", "", "", "a red ring."], strict=True)
    )
]


@pytest.fixture(scope="module", params=["llava", "llava_next", "instructblip"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    makers = {"llava": lambda _: SEED, "llava_next": save_llava_next, "instructblip": save_instructblip}
    return makers[request.param](folder)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> TransformersEngine:
    return TransformersEngine(checkpoint, batch_size=3)


def _by_the_model_itself(checkpoint: Path, requests: list[Request], max_new_tokens: int) -> list[tuple[int, ...]]:
    """`generate` of the model's own class on the processor's own inputs, one request at a time."""
    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = load_processor(checkpoint)
    banned = [model.config.image_token_id, processor.tokenizer.pad_token_id]
    written = []
    for request in requests:
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": request.prompt}]}
        text = processor.apply_chat_template([user], add_generation_prompt=True)
        if request.answer_prefix:
            said = {"role": "assistant", "content": [{"type": "text", "text": request.answer_prefix}]}
            text = processor.apply_chat_template([user, said], continue_final_message=True)
        inputs = processor(text=[text], images=[request.image], return_tensors="pt", add_special_tokens=False)
        if "qformer_input_ids" in inputs:  # a Q-Former reads what was said, without the template around it
            spoken = processor.qformer_tokenizer(f"{request.prompt} {request.answer_prefix}".strip(), return_tensors="pt")
            inputs |= {"qformer_input_ids": spoken["input_ids"], "qformer_attention_mask": spoken["attention_mask"]}
        row = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, suppress_tokens=banned)[0]
        tokens = row[inputs["input_ids"].shape[1] :].tolist()
        written.append(tuple(tokens[: tokens.index(3)] if 3 in tokens else tokens))
    return written


def test_greedy_decoding_equals_the_models_own_token_for_token(checkpoint: Path, engine: TransformersEngine) -> None:
    expected = _by_the_model_itself(checkpoint, REQUESTS, 16)
    assert len(set(expected)) > 3
    assert [completion.token_ids for completion in engine.complete(REQUESTS, Sampling(16))] == expected


def test_a_qwen_decodes_with_positions_on_three_axes() -> None:
    model, processor = build_qwen()
    family = family_of(model, processor)
    assert isinstance(family, PlaceholderFamily)
    marks = "<|vision_start|><|image_pad|><|vision_end|>"
    texts = [f"<s>USER: {marks} {prompt} ASSISTANT:" for prompt in PROMPTS]
    images = [_image(index, size) for index, size in enumerate([(60, 60), (90, 60), (60, 120), (56, 56)])]
    banned = [model.config.image_token_id, 0]
    prefill = family.prefill([Prompt(text, "") for text in texts], family.encode(images))
    decoder = Decoder(family.language_model, processor.tokenizer, [3], banned)
    written = decoder.decode(prefill, range(len(texts)), Sampling(12), None)
    for text, image, row in zip(texts, images, written, strict=True):
        pixels = processor.image_processor(images=[image], return_tensors="pt")
        num_features = int(pixels["image_grid_thw"].prod()) // 4
        ids = processor.tokenizer(
            text.replace("<|image_pad|>", "<|image_pad|>" * num_features), return_tensors="pt", add_special_tokens=False
        )
        inputs = {**pixels, **ids, "mm_token_type_ids": (ids["input_ids"] == model.config.image_token_id).int()}
        expected = model.generate(**inputs, max_new_tokens=12, do_sample=False, suppress_tokens=banned)[
            0, ids["input_ids"].shape[1] :
        ].tolist()
        assert row.token_ids == (expected[: expected.index(3)] if 3 in expected else expected)
    assert len({tuple(row.token_ids) for row in written}) > 2


def test_a_score_is_the_log_probability_that_decoding_gave(engine: TransformersEngine) -> None:
    plain = [replace(request, answer_prefix="") for request in REQUESTS]
    completions = engine.complete(plain, Sampling(12))
    ended = [(request, one) for request, one in zip(plain, completions, strict=True) if one.finish_reason is FinishReason.STOP]
    scores = engine.score([request for request, _ in ended], [one.text for _, one in ended])
    for (_, completion), score in zip(ended, scores, strict=True):
        assert score.num_tokens == completion.num_logprob_tokens
        assert score.logprob == pytest.approx(completion.logprob, abs=1e-3)


def test_a_blank_image_scores_otherwise(engine: TransformersEngine) -> None:
    words = ["There is a red ring."] * len(REQUESTS)
    seen, blank = engine.score(REQUESTS, words), engine.score(REQUESTS, words, blank_image=True)
    assert all(abs(one.logprob - two.logprob) > 1e-4 for one, two in zip(seen, blank, strict=True))


def test_a_sampled_row_does_not_depend_on_its_batch(checkpoint: Path, engine: TransformersEngine) -> None:
    sampling = Sampling(12, temperature=1.0, top_p=0.9, seed=5)
    wide = TransformersEngine(checkpoint, batch_size=16)
    assert [one.token_ids for one in wide.complete(REQUESTS, sampling)] == [one.token_ids for one in engine.complete(REQUESTS, sampling)]


def test_equal_prompts_are_sampled_independently(engine: TransformersEngine) -> None:
    together = engine.complete([REQUESTS[0]] * 8, Sampling(12, temperature=8.0, seed=5))
    assert len({completion.token_ids for completion in together}) > 1


# ---- one look at an image


@pytest.fixture
def seed_engine() -> TransformersEngine:
    return TransformersEngine(SEED, batch_size=3)


def _tower(engine: TransformersEngine) -> torch.nn.Module:
    return engine.model.model.vision_tower


def _patched_tower(tower: torch.nn.Module, seen: list[int]) -> None:
    forward = tower.forward

    def counting(pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(pixel_values))
        return forward(pixel_values, *args, **kwargs)

    tower.forward = counting  # type: ignore[method-assign]


def test_an_image_with_a_key_is_encoded_once_until_the_weights_change(seed_engine: TransformersEngine) -> None:
    seen: list[int] = []
    _patched_tower(_tower(seed_engine), seen)
    first = seed_engine.complete(REQUESTS, Sampling(6))
    assert seed_engine.complete(REQUESTS, Sampling(6)) == first
    seed_engine.score(REQUESTS, ["yes"] * len(REQUESTS))
    assert sum(seen) == len(REQUESTS)

    tensors = {name: tensor * 1.5 if "vision_tower" in name else tensor for name, tensor in read_checkpoint(SEED).items()}
    digest = digest_of(tensors)
    seed_engine.swap(WeightUpdate("other", digest, manifest_of(tensors), tensors=tensors))
    after = seed_engine.complete(REQUESTS, Sampling(6))
    assert sum(seen) == 2 * len(REQUESTS)
    assert [one.logprob for one in after] != [one.logprob for one in first]


def test_an_image_without_a_key_is_encoded_once_per_call(seed_engine: TransformersEngine) -> None:
    seen: list[int] = []
    _patched_tower(_tower(seed_engine), seen)
    image = _image(0)
    requests = [Request(image, prompt) for prompt in PROMPTS[:3]]
    seed_engine.complete(requests, Sampling(2))
    assert sum(seen) == 1
    seed_engine.complete(requests, Sampling(2))
    assert sum(seen) == 2
