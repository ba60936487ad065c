"""Small untrained models of families that cut an image into tiles or rows, built from their real classes as in `family_models`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    MllamaProcessor,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    Ovis2ImageProcessor,
    Ovis2Processor,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from loop.models.seed.model import build_processor, build_tokenizer, chat_template
from tests.actors.engines.family_models import TEXT, VISION, saved

_PINPOINTS = [[28, 56], [56, 28]]


def save_llava_next(folder: Path) -> Path:
    """A LLaVA-NeXT: an overview and tiles, with a feature at the end of each row."""
    torch.manual_seed(0)
    seed_processor = build_processor()
    tokenizer = seed_processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, projection_dim=32,
    )  # fmt: skip
    config: Any = LlavaNextConfig
    model: Any = LlavaNextForConditionalGeneration(
        config(
            vision_config=vision, text_config=LlamaConfig(**{**TEXT, "vocab_size": len(tokenizer)}),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1, image_grid_pinpoints=_PINPOINTS,
        )
    )  # fmt: skip
    images = LlavaNextImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=_PINPOINTS)
    processor = LlavaNextProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default",
        chat_template=seed_processor.chat_template, image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    return saved(model, processor, folder)


def save_llava_onevision(folder: Path) -> Path:
    """A LLaVA-OneVision: tiles as LLaVA-NeXT's, but all of the tower's features; the processor needs torchvision for videos."""
    torch.manual_seed(0)
    tokenizer: Any = build_tokenizer(extra_special_tokens={"image_token": "<image>", "video_token": "<video>"})
    vision = {**VISION, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14}
    config: Any = LlavaOnevisionConfig
    model: Any = LlavaOnevisionForConditionalGeneration(
        config(
            vision_config=vision, text_config=LlamaConfig(**{**TEXT, "vocab_size": len(tokenizer)}),
            image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id, image_grid_pinpoints=_PINPOINTS,
        )
    )  # fmt: skip
    images = LlavaOnevisionImageProcessor(size={"height": 28, "width": 28}, image_grid_pinpoints=_PINPOINTS)
    processor = LlavaOnevisionProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=LlavaOnevisionVideoProcessor(), num_image_tokens=4,
        vision_feature_select_strategy="full", chat_template=chat_template(" <image>"),
    )  # fmt: skip
    return saved(model, processor, folder)


def save_internvl(folder: Path) -> Path:
    """An InternVL: tiles between marks of its own; the processor needs torchvision for videos."""
    torch.manual_seed(0)
    marks = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
    }  # fmt: skip
    tokenizer: Any = build_tokenizer(extra_special_tokens=marks)
    config: Any = InternVLConfig
    model: Any = InternVLForConditionalGeneration(
        config(
            vision_config={**VISION, "image_size": [56, 56], "patch_size": [14, 14]},
            text_config=LlamaConfig(**{**TEXT, "vocab_size": len(tokenizer)}),
            image_token_id=tokenizer.context_image_token_id, image_seq_length=4,
        )
    )  # fmt: skip
    images = GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=3)
    processor = InternVLProcessor(
        images, tokenizer, InternVLVideoProcessor(), image_seq_length=4, chat_template=chat_template(" <IMG_CONTEXT>")
    )
    return saved(model, processor, folder)


def save_idefics3(folder: Path) -> Path:
    """An Idefics3: tiles with a mark of their row and column."""
    return _saved_idefics(folder, Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor)


def save_smolvlm(folder: Path) -> Path:
    """A SmolVLM; the processor needs torchvision and num2words for videos."""
    return _saved_idefics(
        folder, SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessor, SmolVLMProcessor,
        video_processor=SmolVLMVideoProcessor(),
    )  # fmt: skip


def _saved_idefics(folder: Path, config: Any, model_class: Any, image_processor: Any, processor_class: Any, **further: Any) -> Path:
    torch.manual_seed(0)
    marks = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    tokenizer: Any = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": marks + tiles})
    images = image_processor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    processor = processor_class(images, tokenizer, image_seq_len=4, chat_template=chat_template(" <image>"), **further)
    model: Any = model_class(
        config(
            vision_config={**VISION, "image_size": 56, "patch_size": 14}, scale_factor=2, pad_token_id=0,
            text_config=LlamaConfig(**{**TEXT, "vocab_size": len(tokenizer)}), image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        )
    )  # fmt: skip
    return saved(model, processor, folder)


def save_ovis2(folder: Path) -> Path:
    """An Ovis2: the prompt's image placeholder is another token than those of the tiles, and marks of tiles have features too."""
    torch.manual_seed(0)
    indicators = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokenizer: Any = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<IMG_ATOM>", *indicators]})
    text = {**TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer)}
    vision = {**VISION, "image_size": 28, "patch_size": 14, "vocab_size": 64, "num_visual_indicator_tokens": len(indicators)}
    config: Any = Ovis2Config
    model: Any = Ovis2ForConditionalGeneration(
        config(
            vision_config=vision, text_config=text, image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
            visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(indicators), vocab_size=len(tokenizer), hidden_size=64,
        )
    )  # fmt: skip
    images = Ovis2ImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4)
    return saved(model, Ovis2Processor(images, tokenizer, chat_template=chat_template(" <image>"), image_seq_length=4), folder)


def save_lfm2_vl(folder: Path) -> Path:
    """An LFM2-VL: convolutions between the language model's attention layers; the processor needs torchvision."""
    torch.manual_seed(0)
    marks = {
        "image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }  # fmt: skip
    tokenizer: Any = build_tokenizer(extra_special_tokens=marks)
    text = {
        **TEXT, "model_type": "lfm2", "vocab_size": len(tokenizer), "layer_types": ["conv", "full_attention"],
        "block_auto_adjust_ff_dim": False, "conv_dim": 64, "block_dim": 64, "block_ff_dim": 128,
    }  # fmt: skip
    vision = {**VISION, "model_type": "siglip2_vision_model", "patch_size": 16, "num_patches": 16, "vision_use_head": False}
    config: Any = Lfm2VlConfig
    model: Any = Lfm2VlForConditionalGeneration(
        config(vision_config=vision, text_config=text, image_token_id=tokenizer.image_token_id, projector_hidden_size=64)
    )
    image_processor: Any = Lfm2VlImageProcessor
    images = image_processor(tile_size=64, min_image_tokens=2, max_image_tokens=4, encoder_patch_size=16, max_num_patches=16)
    return saved(model, Lfm2VlProcessor(images, tokenizer, chat_template=chat_template(" <image>")), folder)


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
            text_config=LlamaConfig(**{**TEXT, "vocab_size": len(tokenizer)}), image_token_id=tokenizer.convert_tokens_to_ids("[IMG]"),
            vision_feature_layer=-1, vision_feature_select_strategy="full",
        )
    )  # fmt: skip
    images = PixtralImageProcessor(size={"longest_edge": 128}, patch_size={"height": 16, "width": 16})
    template = chat_template(" [IMG]")
    return saved(model, PixtralProcessor(images, tokenizer, patch_size=16, chat_template=template), folder)


def save_mistral3(folder: Path) -> Path:
    """A Mistral 3: Pixtral's tower and processor, with patches merged two by two; the processor needs torchvision."""
    torch.manual_seed(0)
    tokenizer: Any = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]})
    vision = {**VISION, "model_type": "pixtral", "image_size": 128, "patch_size": 8}
    config: Any = Mistral3Config
    model: Any = Mistral3ForConditionalGeneration(
        config(
            vision_config=vision, text_config={**TEXT, "model_type": "mistral", "head_dim": 32, "vocab_size": len(tokenizer)},
            image_token_id=tokenizer.convert_tokens_to_ids("[IMG]"), spatial_merge_size=2,
        )
    )  # fmt: skip
    images = PixtralImageProcessor(size={"longest_edge": 128}, patch_size={"height": 8, "width": 8})
    template = chat_template(" [IMG]")
    return saved(model, PixtralProcessor(images, tokenizer, patch_size=8, spatial_merge_size=2, chat_template=template), folder)


def save_mllama(folder: Path) -> Path:
    """A Llama 3.2 Vision: layers that attend to the image, whose token is outside of the vocabulary of the logits."""
    torch.manual_seed(0)
    tokenizer: Any = build_tokenizer(extra_special_tokens={"image_token": "<|image|>"})
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2,
        "image_size": 28, "patch_size": 14, "max_num_tiles": 4, "vision_output_dim": 64, "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]], "initializer_range": 0.3,
    }  # fmt: skip
    text = {**TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1], "vocab_size": len(tokenizer) - 1}
    config: Any = MllamaConfig
    model: Any = MllamaForConditionalGeneration(config(vision_config=vision, text_config=text, image_token_index=tokenizer.image_token_id))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name and parameter.numel() == 1:
                parameter.fill_(1.0)
    images = MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=4)
    return saved(model, MllamaProcessor(images, tokenizer, chat_template=chat_template(" <|image|>")), folder)
