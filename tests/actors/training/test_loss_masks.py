"""The loss mask of three families, each under the chat template that its checkpoints come with: the answers and their end tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLProcessor

from actors.training.batches import BatchBuilder, collate
from actors.training.inputs.encoding import IGNORED, ConversationEncoder, EncodedText
from actors.training.job import Hyperparameters
from actors.training.pixels import Augmentation, PixelReader
from loop.models.seed.instructblip import build_instructblip_processor
from loop.models.seed.model import build_processor
from tests.actors.engines.family_models import build_qwen
from tests.actors.training.helpers import Shapes, samples_of

SIZE = (48, 48)
TURNS = (
    ("What shape is the red object?", "The red object is a circle."),
    ("How many objects are there?", "There is 1 object."),
    ("Where is the circle?", "The circle is at the top left."),
)
LLAVA_1_5 = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% else %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}{% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""As in LLaVA-1.5's checkpoints for transformers: no end token stands behind an answer."""
QWEN_VL = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant."
    "<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As in Qwen2-VL's and Qwen2.5-VL's checkpoints: a system message, no `generation` tag."""


class QwenOfImages(Qwen2_5_VLProcessor):
    """The processor without its part for videos, which alone needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def llava() -> Any:
    processor = build_processor()
    processor.chat_template = LLAVA_1_5
    return processor


def qwen() -> Any:
    _, parts = build_qwen()
    parts.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    return QwenOfImages(parts.image_processor, parts.tokenizer, chat_template=QWEN_VL)


FAMILIES: dict[str, Callable[[], Any]] = {"llava-1.5": llava, "qwen-vl": qwen, "instructblip": build_instructblip_processor}


def spoken(processor: Any, text: EncodedText) -> list[str]:
    """The runs of tokens with a loss, each without the end token that it must close with."""
    targets = np.flatnonzero(text.labels != IGNORED)
    runs = np.split(targets, np.flatnonzero(np.diff(targets) > 1) + 1)
    assert all(text.labels[run[-1]] == processor.tokenizer.eos_token_id for run in runs)
    assert np.array_equal(text.labels[targets], text.ids[targets])
    return [processor.tokenizer.decode(text.ids[run[:-1]]).strip() for run in runs]


@pytest.mark.parametrize("num_turns", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_on_every_answer_and_its_end_token(family: str, num_turns: int) -> None:
    processor = FAMILIES[family]()
    text = ConversationEncoder(processor, 512).encode(TURNS[:num_turns], SIZE)
    assert spoken(processor, text) == [answer for _, answer in TURNS[:num_turns]]


@pytest.mark.parametrize("family", FAMILIES)
def test_caption_behind_the_image_alone_has_the_loss(family: str) -> None:
    processor = FAMILIES[family]()
    text = ConversationEncoder(processor, 512).encode((("", "A red circle."),), SIZE)
    assert spoken(processor, text) == ["A red circle."]


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_says_what_its_conversations_say(family: str) -> None:
    processor = FAMILIES[family]()
    encoder = ConversationEncoder(processor, 512)
    texts = [encoder.encode(TURNS[:count], SIZE) for count in (3, 1)]
    inputs, labels = collate(texts, pad_id=0)
    for row, text in enumerate(texts):
        assert np.array_equal(inputs["input_ids"][row, : len(text.ids)].numpy(), text.ids)
        assert np.array_equal(labels[row, : len(text.ids)].numpy(), text.labels)
        assert (labels[row, len(text.ids) :] == IGNORED).all()


@pytest.mark.parametrize("make", [build_processor, build_instructblip_processor, llava])
def test_tokenizer_alone_gives_what_the_processor_gives(make: Callable[[], Any]) -> None:
    processor = make()
    fast, slow = ConversationEncoder(processor, 512), ConversationEncoder(processor, 512)
    assert fast._expansion is not None
    slow._expansion = None
    for turns in (TURNS, TURNS[1:], (("", "A red circle."),), (("Is it red?\nOr blue?", "It is red."),)):
        first, second = fast.encode(turns, SIZE), slow.encode(turns, SIZE)
        assert np.array_equal(first.ids, second.ids)
        assert np.array_equal(first.labels, second.labels)


def test_qwen_reads_a_batch_with_the_positions_that_its_processor_gives() -> None:
    model, _ = build_qwen()
    processor = qwen()
    model.resize_token_embeddings(len(processor.tokenizer))
    hyper = Hyperparameters(batch_size=2, num_steps=1, learning_rate=1e-3)
    reader, augmentation = PixelReader(processor.image_processor, Shapes()), Augmentation(hyper, processor.image_processor, 0)
    sample = samples_of(2)[1]
    batch = BatchBuilder(ConversationEncoder(processor, 512), reader, augmentation, pad_id=0).build([(0, sample)], 0)
    messages = [part for turn in sample.turns for part in spoken_turn(turn)]
    messages[0]["content"].insert(0, {"type": "image", "image": Shapes().open(sample.image_id)})
    wanted = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    length = wanted["input_ids"].shape[1]
    assert torch.equal(batch.inputs["input_ids"][:, :length], wanted["input_ids"])
    with torch.no_grad():
        found, expected = model(**batch.inputs).logits[:, :length], model(**wanted).logits
        flat = model(**{name: value for name, value in batch.inputs.items() if name != "mm_token_type_ids"}).logits[:, :length]
    assert torch.allclose(found, expected, atol=1e-4)
    assert float((flat - expected).abs().max()) > 0.01


def spoken_turn(turn: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in zip(("user", "assistant"), turn, strict=True)]


def test_end_token_is_put_where_the_template_has_none_and_nowhere_else() -> None:
    bare = llava()
    text = ConversationEncoder(bare, 512).encode(TURNS[:2], SIZE)
    assert int((text.ids == bare.tokenizer.eos_token_id).sum()) == 2
    whole = build_processor()
    ended = ConversationEncoder(whole, 512).encode(TURNS[:2], SIZE)
    assert int((ended.ids == whole.tokenizer.eos_token_id).sum()) == 2
    messages = [part for turn in TURNS[:2] for part in spoken_turn(turn)]
    messages[0]["content"].insert(0, {"type": "image", "image": Image.new("RGB", SIZE)})
    assert ended.ids.tolist() == whole.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"][0]
