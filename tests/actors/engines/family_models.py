"""Small untrained models of several families, built from their real config classes over the world's vocabulary."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2VisionConfig,
    BlipImageProcessor,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from loop.models.seed.instructblip import build_instructblip, build_instructblip_processor
from loop.models.seed.model import build_processor, build_tokenizer, chat_template

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


def save_qwen3(folder: Path) -> Path:
    """A Qwen3-VL: interleaved rotary positions on three axes, features that go into several layers; the processor needs torchvision."""
    torch.manual_seed(0)
    marks = {
        "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>", "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
    }  # fmt: skip
    tokenizer: Any = build_tokenizer(extra_special_tokens=marks)
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(marks.values()))
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 64, "patch_size": 16,
        "num_position_embeddings": 256, "deepstack_visual_indexes": [0], "initializer_range": 0.3,
    }  # fmt: skip
    text = {**_TEXT, "head_dim": 16, "num_key_value_heads": 2, "vocab_size": len(tokenizer), "rope_parameters": rotary}
    config: Any = Qwen3VLConfig
    model: Any = Qwen3VLForConditionalGeneration(
        config(
            text_config=text, vision_config=vision,
            image_token_id=image, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end,
        )
    )  # fmt: skip
    images = Qwen2VLImageProcessor(min_pixels=64 * 64, max_pixels=128 * 128, patch_size=16)
    template = _QWEN_TEMPLATE.replace("EOS", tokenizer.eos_token)
    processor: Any = Qwen3VLProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=Qwen3VLVideoProcessor(), chat_template=template
    )
    return _saved(model, processor, folder)


def save_pixtral(folder: Path) -> Path:
    """A Pixtral: its model type is LLaVA's, and its processor marks the ends of an image's rows; that processor needs torchvision."""
    torch.manual_seed(0)
    tokenizer = build_processor().tokenizer
    marks = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    vision: Any = PixtralVisionConfig
    config: Any = LlavaConfig
    model: Any = LlavaForConditionalGeneration(
        config(
            vision_config=vision(
                hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=128, patch_size=16,
                initializer_range=0.3,
            ),
            text_config=LlamaConfig(**{**_TEXT, "vocab_size": len(tokenizer)}), image_token_id=tokenizer.convert_tokens_to_ids("[IMG]"),
            vision_feature_layer=-1, vision_feature_select_strategy="full",
        )
    )  # fmt: skip
    images = PixtralImageProcessor(size={"longest_edge": 128}, patch_size={"height": 16, "width": 16})
    template = build_processor().chat_template.replace("<image>", "[IMG]")
    return _saved(model, PixtralProcessor(images, tokenizer, patch_size=16, chat_template=template), folder)


def save_gemma3(folder: Path) -> Path:
    """A Gemma 3, whose processor takes one list of images for each text."""
    torch.manual_seed(0)
    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer: Any = build_tokenizer(extra_special_tokens=marks)
    begin, end, image = tokenizer.convert_tokens_to_ids(list(marks.values()))
    vision = {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56, "patch_size": 14,
    }  # fmt: skip
    text = {**_TEXT, "head_dim": 16, "vocab_size": len(tokenizer), "sliding_window": 64}
    config: Any = Gemma3Config
    model: Any = Gemma3ForConditionalGeneration(
        config(
            text_config=text, vision_config=vision, mm_tokens_per_image=4, boi_token_index=begin, eoi_token_index=end,
            image_token_index=image,
        )
    )  # fmt: skip
    images = Gemma3ImageProcessor(size={"height": 56, "width": 56})
    template = chat_template(" <start_of_image>")
    return _saved(model, Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4), folder)


def save_blip2(folder: Path) -> Path:
    """A BLIP-2 with a Llama, MiniGPT-4's anatomy: after the first pass it is to be called without its image."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    vision: Any = Blip2VisionConfig
    config: Any = Blip2Config
    model: Any = Blip2ForConditionalGeneration(
        config(
            vision_config=vision(
                hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
            ),
            qformer_config={
                "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "encoder_hidden_size": 32,
            },
            text_config=LlamaConfig(**{**_TEXT, "vocab_size": len(tokenizer)}), num_query_tokens=4,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        )
    )  # fmt: skip
    images = BlipImageProcessor(size={"height": 28, "width": 28})
    processor = Blip2Processor(images, tokenizer, num_query_tokens=4)
    processor.chat_template = chat_template("")
    return _saved(model, processor, folder)


def _saved(model: Any, processor: Any, folder: Path) -> Path:
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 3, 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
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
    return _saved(model, processor, folder)


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
