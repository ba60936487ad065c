"""Build the seed model: a small LLaVA of transformers classes with a word-level tokenizer and a processor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from loop.sources.shapes.drills import CAPTION_PROMPT, cells, find
from loop.sources.shapes.questions import DETAIL_QUESTIONS, ask, captions, truth
from loop.sources.shapes.render import IMAGE_SIZE
from loop.sources.shapes.scene import COLORS, POSITIONS, SHAPES, SIZES, image_id, scene_of
from policies.generation.instructions import TRAINING_INSTRUCTIONS, QuestionType

PATCH_SIZE = 16

_FURTHER_WORDS = "USER: ASSISTANT: Question: Answer: yes no Yes No none 0 1 2 3 4 5 6 7 8 9 10"
_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>")


def build_model(vocabulary: Sequence[str] | None = None) -> LlavaForConditionalGeneration:
    """A freshly initialised LLaVA, about 2M parameters, over the world's vocabulary or another one; it draws from torch's global generator,
    so seed that first."""
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
        image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, projection_dim=128,
    )  # fmt: skip
    vocabulary = words() if vocabulary is None else vocabulary
    text = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=160, intermediate_size=480, num_hidden_layers=4, num_attention_heads=5,
        num_key_value_heads=5, max_position_embeddings=512, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    llava: Any = LlavaConfig  # its declared parameters lack those of its base class
    config = llava(
        vision_config=vision, text_config=text, image_token_id=vocabulary.index("<image>"), vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        tie_word_embeddings=False, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


def build_processor(vocabulary: Sequence[str] | None = None) -> LlavaProcessor:
    """Word-level tokenizer over the world's language or another vocabulary, CLIP image processor at the world's size, Vicuna-like chat
    template."""
    return LlavaProcessor(
        image_processor=build_image_processor(),
        tokenizer=build_tokenizer(vocabulary, extra_special_tokens={"image_token": "<image>"}),
        patch_size=PATCH_SIZE, vision_feature_select_strategy="default",
        chat_template=chat_template(" <image>"), image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip


def build_image_processor() -> CLIPImageProcessor:
    """CLIP's image processor at the world's size: pixel values [images, 3, 48, 48]."""
    return CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_convert_rgb=True
    )


def build_tokenizer(vocabulary: Sequence[str] | None = None, **options: Any) -> PreTrainedTokenizerFast:
    """The word-level tokenizer, which adds no special tokens by itself; `options` go to transformers' class."""
    numbers = {word: index for index, word in enumerate(words() if vocabulary is None else vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=True),
            pre_tokenizers.Split(Regex(r"[.,?:]|\n"), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="never", split=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        padding_side="left", model_max_length=512, clean_up_tokenization_spaces=False, **options,
    )  # fmt: skip


def chat_template(image: str) -> str:
    """The Vicuna-like template; `image` is what it writes for an image, empty if the processor puts the image first by itself."""
    return (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}"
        "USER:{% for item in message['content'] %}"
        f"{{% if item['type'] == 'image' %}}{image}{{% else %}} {{{{ item['text'] }}}}{{% endif %}}"
        "{% endfor %}"
        "{% else %}"
        " ASSISTANT:{% for item in message['content'] %}"
        "{% generation %} {{ item['text'] }}{{ eos_token }}{% endgeneration %}"
        "{% endfor %}"
        "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )


@cache
def words() -> tuple[str, ...]:
    """The world's vocabulary."""
    texts = [CAPTION_PROMPT, _FURTHER_WORDS, *DETAIL_QUESTIONS]
    texts += [text for options in TRAINING_INSTRUCTIONS.values() for text in options]
    texts += [" ".join(group) for group in (SHAPES, COLORS, SIZES, POSITIONS)]
    for index in range(2000):  # enough for every word of the grammar to appear many times
        scene, rng = scene_of(image_id(0, index, 0.0)), np.random.default_rng([0, index])
        texts += [*captions(scene), *cells(scene), *find(scene, rng)]
        for question_type in QuestionType:
            question = ask(scene, question_type, rng, false_premise=index % 3 == 0)
            texts += [question, truth(scene, question).answer]
    return vocabulary_of(texts)


def vocabulary_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The words of texts, special tokens first. A word that follows a space carries the mark `▁`."""
    found = sorted({piece for text in texts for word in text.split() for piece in re.findall(r"[.,?:]|[^.,?:]+", word)} | {"\n"})
    marked = ["▁"] + [form for piece in found for form in ((piece,) if piece in ".,?:\n" else (piece, f"▁{piece}"))]
    return (*_SPECIAL, *marked)
