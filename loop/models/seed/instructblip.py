"""Build a small InstructBLIP of transformers classes: the embedded world's Q-Former model, as VIGC trains it.

Its Q-Former reads the user's text beside the image, so that the visual tokens depend on the question and, in VIC, on the
sentences that stand. The processor puts the visual tokens before the text, and the chat template therefore writes none.
"""

from __future__ import annotations

from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    PreTrainedTokenizerFast,
)

from loop.models.seed.model import build_image_processor, build_tokenizer, chat_template, words
from loop.models.seed.qformer import NUM_QUERY_TOKENS, QFORMER, VISION, Anatomy, model_values, text_config, with_distinct_queries

FROZEN_BY_VIGC = ("vision_tower", "language_model")


def build_instructblip() -> InstructBlipForConditionalGeneration:
    """A freshly initialised InstructBLIP, about 2M parameters; it draws from torch's global generator, so seed that first."""
    vocabulary = words()
    instructblip: Any = InstructBlipConfig  # its declared parameters lack those of its base class
    config = instructblip(
        vision_config=InstructBlipVisionConfig(**VISION),
        qformer_config=InstructBlipQFormerConfig(vocab_size=len(vocabulary), **QFORMER),
        text_config=text_config(vocabulary),
        **model_values(vocabulary),
    )
    return with_distinct_queries(InstructBlipForConditionalGeneration(config))


def build_instructblip_processor() -> InstructBlipProcessor:
    """The embedded world's tokenizer and image processor, and a Q-Former tokenizer that frames its text as BERT's does."""
    processor = InstructBlipProcessor(build_image_processor(), build_tokenizer(), _qformer_tokenizer(), num_query_tokens=NUM_QUERY_TOKENS)
    processor.chat_template = chat_template("")  # its constructor takes none
    return processor


def _qformer_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    tokenizer.padding_side = "right"
    ids = [(token, words().index(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ids)
    return tokenizer


INSTRUCTBLIP = Anatomy(build_instructblip, build_instructblip_processor, FROZEN_BY_VIGC)
