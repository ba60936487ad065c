"""The families that the transformers engine is held against, each as a small model, for tests and `benchmarks.speed.families`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from actors.processors import load_processor
from loop.config.run_config import EMBEDDED_MODEL
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
