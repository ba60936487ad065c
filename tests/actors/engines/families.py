"""The families that the engines are held against, each as a small model, and what they are asked, for tests and benchmarks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from actors.engines.base import Request
from actors.engines.families import placed
from actors.engines.prompting import Prompter
from actors.processors import load_processor
from loop.config.run_config import EMBEDDED_MODEL
from loop.sources.shapes.render import render
from loop.sources.shapes.scene import image_id, scene_of
from tests.actors.engines import family_models, tiled_models

FAMILIES: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "llava": (lambda folder: Path(shutil.copytree(EMBEDDED_MODEL, folder / "llava")), ()),
    "pixtral": (tiled_models.save_pixtral, ("torchvision",)),
    "llava_next": (tiled_models.save_llava_next, ()),
    "llava_onevision": (tiled_models.save_llava_onevision, ("torchvision",)),
    "qwen2_vl": (family_models.save_qwen2, ("torchvision",)),
    "qwen2_5_vl": (family_models.save_qwen, ("torchvision",)),
    "qwen3_vl": (family_models.save_qwen3, ("torchvision",)),
    "qwen3_5": (family_models.save_qwen3_5, ("torchvision",)),
    "glm4v": (family_models.save_glm4v, ("torchvision",)),
    "internvl": (tiled_models.save_internvl, ("torchvision",)),
    "idefics3": (tiled_models.save_idefics3, ()),
    "smolvlm": (tiled_models.save_smolvlm, ("torchvision", "num2words")),
    "gemma3": (family_models.save_gemma3, ()),
    "paligemma": (family_models.save_paligemma, ()),
    "mistral3": (tiled_models.save_mistral3, ("torchvision",)),
    "ovis2": (tiled_models.save_ovis2, ()),
    "lfm2_vl": (tiled_models.save_lfm2_vl, ("torchvision",)),
    "instructblip": (family_models.save_instructblip, ()),
    "blip2": (family_models.save_blip2, ()),
    "mllama": (tiled_models.save_mllama, ()),
}
"""How to save a small model of each family, and the packages that its processor needs."""


PROMPTS = (
    "How many objects are there?",
    "Is the red ring to the left of the orange star?",
    "What is at the center?",
    "Generate a question based on the content of the given image and then answer it.",
)  # fmt: skip


def image_of(index: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    return render(scene_of(image_id(1, index, 0.1))).resize(size)


REQUESTS = [
    replace(Request(image_of(index % 5, size), prompt, image_key=f"{index % 5} {size}"), answer_prefix=prefix)
    for index, (prompt, size, prefix) in enumerate(
        zip(PROMPTS * 2, [(48, 48), (96, 60)] * 4, ["", "", "", "", "There is", "", "", "a red ring."], strict=True)
    )
]


def by_the_model_itself(
    checkpoint: Path, requests: Sequence[Request], max_new_tokens: int, dtype: torch.dtype = torch.float32
) -> list[tuple[int, ...]]:
    """`generate` of the model's own class on the processor's own inputs, one request at a time."""
    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=dtype).eval()
    prompter, processor = Prompter(checkpoint), load_processor(checkpoint)
    banned = [model.config.image_token_id, processor.tokenizer.pad_token_id]
    written = []
    for request in requests:
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": request.prompt}]}
        text = processor.apply_chat_template([user], add_generation_prompt=True)
        if request.answer_prefix:
            said = {"role": "assistant", "content": [{"type": "text", "text": request.answer_prefix}]}
            text = processor.apply_chat_template([user, said], continue_final_message=True)
        inputs = processor(text=[text], images=[request.image], return_tensors="pt", add_special_tokens=False)
        if model.config.model_type == "paligemma":
            inputs = prefix_and_suffix(checkpoint, request.image, request.prompt, request.answer_prefix)
            inputs = {name: value[:, :-1] if name != "pixel_values" else value for name, value in inputs.items() if name != "labels"}
        if "qformer_input_ids" in inputs:  # a Q-Former reads what was said, without the template around it
            spoken = processor.qformer_tokenizer(f"{request.prompt} {request.answer_prefix}".strip(), return_tensors="pt")
            inputs |= {"qformer_input_ids": spoken["input_ids"], "qformer_attention_mask": spoken["attention_mask"]}
        row = model.generate(**placed(model, inputs), max_new_tokens=max_new_tokens, do_sample=False, suppress_tokens=banned)[0]
        tokens = row[inputs["input_ids"].shape[1] :].tolist()
        ends = [place for place, token in enumerate(tokens) if token in prompter.end_ids(model.generation_config.eos_token_id)]
        written.append(tuple(tokens[: ends[0]] if ends else tokens))
    return written


def save_family(family: str, folder: Path) -> Path:
    """Save a family's small model; skips the test if its processor needs a package that is not here."""
    save, packages = FAMILIES[family]
    for package in packages:
        if find_spec(package) is None:
            pytest.skip(f"its processor needs {package}")
    return save(folder)


def prefix_and_suffix(checkpoint: Path, image: Image.Image, question: str, answer: str) -> dict[str, torch.Tensor]:
    """What PaliGemma's own processor makes of a question and an answer, for training: no chat template, the end token last."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    processor.image_processor = load_processor(checkpoint).image_processor  # torchvision resizes otherwise
    return dict(processor(images=[image], text=[question], suffix=[answer], return_tensors="pt", add_special_tokens=False))


def count_pixels(model: Any) -> list[int]:
    """The number of pixel values in every call of the vision tower from now on."""
    seen: list[int] = []
    [tower] = [part for name in ("vision_tower", "visual", "vision_model") if (part := getattr(model.base_model, name, None)) is not None]
    tower.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0] if args else kwargs["pixel_values"]).numel()), with_kwargs=True
    )
    return seen
