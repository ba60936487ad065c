"""Build a small MiniGPT-4 of transformers classes: a BLIP-2 with a Llama (arXiv 2304.10592).

Its Q-Former sees the image alone. The processor puts the visual tokens before the text, and the chat template therefore writes none.
"""

from __future__ import annotations

from typing import Any

from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, Blip2QFormerConfig, Blip2VisionConfig

from loop.models.seed.model import build_image_processor, build_tokenizer, chat_template, words
from loop.models.seed.qformer import NUM_QUERY_TOKENS, QFORMER, VISION, Anatomy, model_values, text_config, with_distinct_queries

FROZEN_BY_MINIGPT4 = ("vision_tower", "qformer", "language_model")


def build_minigpt4() -> Blip2ForConditionalGeneration:
    """A freshly initialised MiniGPT-4, about 2M parameters; it draws from torch's global generator, so seed that first."""
    vocabulary = words()
    blip2: Any = Blip2Config  # its declared parameters lack those of its base class
    config = blip2(
        vision_config=Blip2VisionConfig(**VISION), qformer_config=Blip2QFormerConfig(**QFORMER), text_config=text_config(vocabulary),
        **model_values(vocabulary),
    )  # fmt: skip
    return with_distinct_queries(Blip2ForConditionalGeneration(config))


def build_minigpt4_processor() -> Blip2Processor:
    """The embedded world's tokenizer and image processor."""
    processor = Blip2Processor(build_image_processor(), build_tokenizer(), num_query_tokens=NUM_QUERY_TOKENS)
    processor.chat_template = chat_template("")  # its constructor takes none
    return processor


MINIGPT4 = Anatomy(build_minigpt4, build_minigpt4_processor, FROZEN_BY_MINIGPT4)
