"""Build the seed models: small LLaVAs of transformers classes with a word-level tokenizer and a processor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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

from loop.sources.drawings.houses import SHIPPED, read_things
from loop.sources.drawings.render import IMAGE_SIZE as DRAWINGS_IMAGE_SIZE
from loop.sources.drawings.source import DrawingsImages
from loop.sources.shapes.render import IMAGE_SIZE
from loop.sources.shapes.scene import COLORS, POSITIONS, SHAPES, SIZES
from loop.sources.shapes.source import ShapesImages
from loop.sources.worlds.drills import CAPTION_PROMPT
from loop.sources.worlds.kinds import DETAIL_QUESTIONS, captions
from loop.sources.worlds.source import WorldImages
from policies.generation.instructions import TRAINING_INSTRUCTIONS, QuestionType

PATCH_SIZE = 16

_FURTHER_WORDS = "USER: ASSISTANT: Question: Answer: yes no Yes No none 0 1 2 3 4 5 6 7 8 9 10"
_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
_NUM_SCENES = 2000
"""Enough for every word of a grammar to appear many times."""


@dataclass(frozen=True)
class Anatomy:
    """What the seed models of the worlds differ in."""

    image_size: int
    """Edge in pixels; a patch is `PATCH_SIZE` pixels wide."""
    vision_width: int
    vision_layers: int
    words: Callable[[], tuple[str, ...]]
    """The vocabulary, special tokens first."""

    @property
    def num_patches(self) -> int:
        return (self.image_size // PATCH_SIZE) ** 2


def build_model(vocabulary: Sequence[str] | None = None, anatomy: Anatomy | None = None) -> LlavaForConditionalGeneration:
    """A freshly initialised LLaVA, 2M to 3M parameters, over the world's vocabulary or another one; it draws from torch's global
    generator, so seed that first."""
    anatomy = anatomy or SHAPES_ANATOMY
    vision = CLIPVisionConfig(
        hidden_size=anatomy.vision_width, intermediate_size=4 * anatomy.vision_width, num_hidden_layers=anatomy.vision_layers,
        num_attention_heads=4, image_size=anatomy.image_size, patch_size=PATCH_SIZE, projection_dim=anatomy.vision_width,
    )  # fmt: skip
    vocabulary = anatomy.words() if vocabulary is None else vocabulary
    text = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=160, intermediate_size=480, num_hidden_layers=4, num_attention_heads=5,
        num_key_value_heads=5, max_position_embeddings=512, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    llava: Any = LlavaConfig  # its declared parameters lack those of its base class
    config = llava(
        vision_config=vision, text_config=text, image_token_id=vocabulary.index("<image>"), vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_seq_length=anatomy.num_patches,
        tie_word_embeddings=False, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


def build_processor(vocabulary: Sequence[str] | None = None, anatomy: Anatomy | None = None) -> LlavaProcessor:
    """Word-level tokenizer over the world's language or another vocabulary, CLIP image processor at the world's size, Vicuna-like chat
    template."""
    anatomy = anatomy or SHAPES_ANATOMY
    vocabulary = anatomy.words() if vocabulary is None else vocabulary
    return LlavaProcessor(
        image_processor=build_image_processor(anatomy.image_size),
        tokenizer=build_tokenizer(vocabulary, extra_special_tokens={"image_token": "<image>"}),
        patch_size=PATCH_SIZE, vision_feature_select_strategy="default",
        chat_template=chat_template(" <image>"), image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip


def build_image_processor(image_size: int = IMAGE_SIZE) -> CLIPImageProcessor:
    """CLIP's image processor at a world's size: pixel values [images, 3, image_size, image_size]."""
    return CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}, do_convert_rgb=True
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
    """The vocabulary of `shapes`."""
    source = ShapesImages(0, 0.0, 0.0, _NUM_SCENES)
    return vocabulary_of([*_common_texts(), *(" ".join(group) for group in (SHAPES, COLORS, SIZES, POSITIONS)), *_texts(source)])


@cache
def drawings_words() -> tuple[str, ...]:
    """The vocabulary of `drawings`, with the things of the shipped houses."""
    things = read_things(SHIPPED)
    source = DrawingsImages(0, ("noto",), _NUM_SCENES)
    return vocabulary_of([*_common_texts(), *(" ".join(group) for group in (things.names, things.all_kinds, POSITIONS)), *_texts(source)])


def _common_texts() -> list[str]:
    instructions = [text for options in TRAINING_INSTRUCTIONS.values() for text in options]
    return [CAPTION_PROMPT, _FURTHER_WORDS, *DETAIL_QUESTIONS, *instructions]


def _texts(source: WorldImages[Any]) -> list[str]:
    """What is asked and said about scenes of a world."""
    world, texts = source.world, list[str]()
    for index, identifier in enumerate(source.image_ids()):
        scene, rng = source.scene(identifier), np.random.default_rng([0, index])
        texts += [*captions(scene), *world.cells(scene), *world.find(scene, rng)]
        for question_type in QuestionType:
            question = world.grammar.ask(scene, question_type, rng, false_premise=index % 3 == 0)
            texts += [question, world.grammar.truth(scene, question).answer]
    return texts


def vocabulary_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The words of texts, special tokens first. A word that follows a space carries the mark `▁`."""
    found = sorted({piece for text in texts for word in text.split() for piece in re.findall(r"[.,?:]|[^.,?:]+", word)} | {"\n"})
    marked = ["▁"] + [form for piece in found for form in ((piece,) if piece in ".,?:\n" else (piece, f"▁{piece}"))]
    return (*_SPECIAL, *marked)


SHAPES_ANATOMY = Anatomy(IMAGE_SIZE, vision_width=128, vision_layers=3, words=words)
DRAWINGS_ANATOMY = Anatomy(DRAWINGS_IMAGE_SIZE, vision_width=160, vision_layers=4, words=drawings_words)
