"""Small untrained models of several families, built from their real config classes over the world's vocabulary."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from loop.seed.instructblip import build_instructblip, build_instructblip_processor
from loop.seed.model import build_processor

_TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "initializer_range": 0.3,
}  # fmt: skip
_QWEN_TEMPLATE = (
    "{% for message in messages %}{{ message.role }} {% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% if not (loop.last and continue_final_message) %} EOS{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def build_qwen() -> tuple[Any, Any]:
    """A Qwen2.5-VL with rotary positions on three axes and heads wide enough for vLLM's attention on CPUs, and what of its processor
    the transformers engine uses: the whole one needs torchvision."""
    torch.manual_seed(0)
    tokenizer = build_processor().tokenizer
    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    tokenizer.image_token, tokenizer.video_token = marks[2], marks[3]
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(marks))
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    vision = {
        "depth": 2, "hidden_size": 128, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 128, "patch_size": 14,
        "fullatt_block_indexes": [1], "initializer_range": 0.3,
    }  # fmt: skip
    text = {**_TEXT, "hidden_size": 128, "num_key_value_heads": 2, "vocab_size": len(tokenizer), "rope_parameters": rotary}
    config: Any = Qwen2_5_VLConfig
    model: Any = Qwen2_5_VLForConditionalGeneration(
        config(
            text_config=text, vision_config=vision,
            image_token_id=image, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end,
        )
    )  # fmt: skip
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 3, 0
    images = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112)
    return model.eval(), SimpleNamespace(image_processor=images, tokenizer=tokenizer)


def save_qwen(folder: Path) -> Path:
    """The same model with its whole processor, which needs torchvision for videos."""
    model, parts = build_qwen()
    model.save_pretrained(folder)
    template = _QWEN_TEMPLATE.replace("EOS", parts.tokenizer.eos_token)
    Qwen2_5_VLProcessor(**vars(parts), video_processor=Qwen2VLVideoProcessor(), chat_template=template).save_pretrained(folder)
    return folder


def save_llava_next(folder: Path) -> Path:
    """A LLaVA-NeXT, whose tiles the engine leaves to the model itself."""
    torch.manual_seed(0)
    seed_processor = build_processor()
    tokenizer = seed_processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, projection_dim=32,
    )  # fmt: skip
    config: Any = LlavaNextConfig
    model: Any = LlavaNextForConditionalGeneration(
        config(
            vision_config=vision, text_config=LlamaConfig(**{**_TEXT, "vocab_size": len(tokenizer)}),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1, image_grid_pinpoints=[[28, 56], [56, 28]],
        )
    )  # fmt: skip
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=[[28, 56], [56, 28]]
    )
    processor = LlavaNextProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default",
        chat_template=seed_processor.chat_template, image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 3, 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_instructblip(folder: Path) -> Path:
    """An InstructBLIP whose untrained weights are large enough that what it writes depends on image and text."""
    torch.manual_seed(0)
    model: Any = build_instructblip()
    with torch.no_grad():
        for parameter in (model.query_tokens, *model.language_projection.parameters()):
            parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    build_instructblip_processor().save_pretrained(folder)
    return folder
