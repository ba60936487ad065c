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
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
    T5Config,
)

from loop.models.seed.instructblip import build_instructblip, build_instructblip_processor
from loop.models.seed.model import build_processor, build_tokenizer, chat_template

TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "initializer_range": 0.3,
}  # fmt: skip
"""Heads are 32 wide, the least that vLLM's attention on CPUs takes."""
VISION = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
_QWEN_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}{% for part in message.content %}"
    "{% if part.type == 'image' %} <|vision_start|><|image_pad|><|vision_end|>{% else %} {{ part.text }}{% endif %}{% endfor %}"
    "{% if not (loop.last and continue_final_message) %} EOS{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)

_PALIGEMMA_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{{ bos_token }}{% else %}{{ part.text }}{% endif %}{% endfor %}{{ '\n' }}"
    "{% else %}{% generation %}{{ message.content[0].text }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
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
    text = {**TEXT, "hidden_size": 128, "num_attention_heads": 4, "vocab_size": len(tokenizer), "rope_parameters": rotary}
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


def save_qwen2(folder: Path) -> Path:
    """A Qwen2-VL; the processor needs torchvision for videos."""
    torch.manual_seed(0)
    tokenizer: Any = build_tokenizer(extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"})
    marks = ["<|vision_start|>", "<|vision_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    start, end = tokenizer.convert_tokens_to_ids(marks)
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    vision = {"depth": 2, "embed_dim": 64, "mlp_ratio": 1, "num_heads": 4, "hidden_size": 64, "patch_size": 14, "initializer_range": 0.3}
    text = {**TEXT, "num_key_value_heads": 1, "vocab_size": len(tokenizer), "rope_parameters": rotary}
    config: Any = Qwen2VLConfig
    model: Any = Qwen2VLForConditionalGeneration(
        config(
            text_config=text, vision_config=vision, image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id,
            vision_start_token_id=start, vision_end_token_id=end,
        )
    )  # fmt: skip
    images = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112)
    template = _QWEN_TEMPLATE.replace("EOS", tokenizer.eos_token)
    processor: Any = Qwen2VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=template)
    return saved(model, processor, folder)


def save_qwen3(folder: Path) -> Path:
    """A Qwen3-VL: interleaved rotary positions on three axes, features that go into several layers; the processor needs torchvision."""
    return _saved_qwen3(folder, Qwen3VLConfig, Qwen3VLForConditionalGeneration, {}, {"deepstack_visual_indexes": [0]})


def save_qwen3_5(folder: Path) -> Path:
    """A Qwen3.5: layers of linear attention, whose cache is a state; the processor is Qwen3-VL's."""
    text = {
        "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 32, "linear_value_head_dim": 32,
        "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    }  # fmt: skip
    return _saved_qwen3(folder, Qwen3_5Config, Qwen3_5ForConditionalGeneration, text, {})


def _saved_qwen3(folder: Path, config: Any, model_class: Any, further_text: dict[str, Any], further_vision: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    marks = {
        "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>", "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
    }  # fmt: skip
    tokenizer: Any = build_tokenizer(extra_special_tokens=marks)
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(marks.values()))
    rotary = {
        "rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6], "mrope_interleaved": True, "partial_rotary_factor": 1.0,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 64, "patch_size": 16,
        "num_position_embeddings": 256, "initializer_range": 0.3, **further_vision,
    }  # fmt: skip
    text = {**TEXT, "head_dim": 32, "num_key_value_heads": 1, "vocab_size": len(tokenizer), "rope_parameters": rotary, **further_text}
    model: Any = model_class(
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
    return saved(model, processor, folder)


def save_glm4v(folder: Path) -> Path:
    """A GLM-4V: rotary positions on three axes, rotated in pairs; the processor needs torchvision."""
    torch.manual_seed(0)
    tokenizer: Any = build_tokenizer(extra_special_tokens={"image_token": "<|image|>", "video_token": "<|video|>"})
    marks = ["<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    names = ("image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id")
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "partial_rotary_factor": 0.5}
    text = {**TEXT, "num_key_value_heads": 1, "vocab_size": len(tokenizer), "rope_parameters": rotary}
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 64, "patch_size": 14, "image_size": 112,
        "initializer_range": 0.3,
    }  # fmt: skip
    config: Any = Glm4vConfig
    model: Any = Glm4vForConditionalGeneration(
        config(
            text_config=text, vision_config=vision, image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id,
            **dict(zip(names, tokenizer.convert_tokens_to_ids(marks), strict=True)),
        )
    )  # fmt: skip
    images = Glm4vImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 224 * 112})
    template = chat_template(" <|begin_of_image|><|image|><|end_of_image|>")
    return saved(model, Glm4vProcessor(images, tokenizer, Glm4vVideoProcessor(), chat_template=template), folder)


def save_gemma3(folder: Path) -> Path:
    """A Gemma 3, whose processor takes one list of images for each text, and whose turns do not end with the tokenizer's end token."""
    torch.manual_seed(0)
    marks = {
        "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
        "end_of_turn_token": "<end_of_turn>",
    }  # fmt: skip
    tokenizer: Any = build_tokenizer(extra_special_tokens=marks)
    begin, end, image, end_of_turn = tokenizer.convert_tokens_to_ids(list(marks.values()))
    tokenizer.add_tokens(["\n" * number for number in range(1, 5)])  # vLLM looks them up
    vision = {**VISION, "image_size": 56, "patch_size": 14}
    text = {**TEXT, "head_dim": 32, "vocab_size": len(tokenizer), "sliding_window": 64}
    config: Any = Gemma3Config
    model: Any = Gemma3ForConditionalGeneration(
        config(
            text_config=text, vision_config=vision, mm_tokens_per_image=4, boi_token_index=begin, eoi_token_index=end,
            image_token_index=image, tie_word_embeddings=False,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.3)
    images = Gemma3ImageProcessor(size={"height": 56, "width": 56})
    template = chat_template(" <start_of_image>").replace("{{ eos_token }}", "<end_of_turn>\n")
    processor = Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4)
    return saved(model, processor, folder, end_ids=[3, end_of_turn])


def save_paligemma(folder: Path) -> Path:
    """A PaliGemma, which attends in both directions up to the answer. It comes without a chat template; this one writes what its processor
    writes around a text without one: the beginning token after the image and a line end, which is a token."""
    torch.manual_seed(0)
    tokenizer: Any = build_tokenizer(extra_special_tokens={"image_token": "<image>"})
    tokenizer.add_tokens(["\n"])
    images: Any = SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    processor = PaliGemmaProcessor(images, tokenizer, chat_template=_PALIGEMMA_TEMPLATE)
    vision = {**VISION, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14}
    text = {**TEXT, "model_type": "gemma", "head_dim": 32, "vocab_size": len(tokenizer)}
    config: Any = PaliGemmaConfig
    model: Any = PaliGemmaForConditionalGeneration(
        config(vision_config=vision, text_config=text, image_token_index=tokenizer.image_token_id, projection_dim=64)
    )
    return saved(model, processor, folder)


def save_blip2(folder: Path) -> Path:
    """A BLIP-2 with a Llama, MiniGPT-4's anatomy: after the first pass it is to be called without its image."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    vision: Any = Blip2VisionConfig
    config: Any = Blip2Config
    model: Any = Blip2ForConditionalGeneration(
        config(
            vision_config=vision(
                hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
                initializer_range=0.3,
            ),
            qformer_config={
                "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "encoder_hidden_size": 32,
                "initializer_range": 0.3,
            },
            text_config=LlamaConfig(**{**TEXT, "vocab_size": len(tokenizer)}), num_query_tokens=4,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        )
    )  # fmt: skip
    with torch.no_grad():
        model.query_tokens.normal_(std=0.5)  # at 0, as they are initialized, the gradient of their norm is 1e6
    images = BlipImageProcessor(size={"height": 28, "width": 28})
    processor = Blip2Processor(images, tokenizer, num_query_tokens=4)
    processor.chat_template = chat_template("")
    return saved(model, processor, folder)


def saved(model: Any, processor: Any, folder: Path, end_ids: int | list[int] = 3) -> Path:
    """Save a model and its processor to `folder`."""
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = end_ids, 0
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


def save_instructblip_t5(folder: Path) -> Path:
    """An InstructBLIP with an encoder-decoder language model, as its published Flan-T5 variants."""
    config: Any = build_instructblip().config
    text: Any = T5Config
    text = text(vocab_size=config.text_config.vocab_size, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    as_t5: Any = InstructBlipConfig
    as_t5 = as_t5(
        vision_config=config.vision_config, qformer_config=config.qformer_config, text_config=text,
        num_query_tokens=config.num_query_tokens, image_token_index=config.image_token_index,
    )  # fmt: skip
    model: Any = InstructBlipForConditionalGeneration(as_t5)
    return saved(model, build_instructblip_processor(), folder)
