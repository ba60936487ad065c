from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from actors.images import ImageSource
from actors.training.batches import BatchBuilder, collate
from actors.training.inputs.encoding import IGNORED, BadSampleError, ConversationEncoder, EncodedText
from actors.training.job import Hyperparameters
from actors.training.order import cut_by_tokens, global_batches, rank_share
from actors.training.pixels import Augmentation, PixelReader
from loop.models.seed.model import build_processor
from tests.actors.training.helpers import Shapes, samples_of

SIZE = (48, 48)
TURNS = (("What shape is the red object?", "The red object is a circle."), ("How many objects are there?", "There is 1 object."))
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}USER:{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %} <image>{% else %} {{ item['text'] }}{% endif %}{% endfor %}{% else %}"
    " ASSISTANT: {{ message['content'][0]['text'] }}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_processor()


def spoken(processor: Any, text: EncodedText) -> list[str]:
    """The runs of tokens with a loss, decoded."""
    runs: list[list[int]] = []
    last = -2
    for index in np.flatnonzero(text.labels != IGNORED).tolist():
        if index != last + 1:
            runs.append([])
        runs[-1].append(int(text.labels[index]))
        last = index
    return [processor.tokenizer.decode(run).strip() for run in runs]


@pytest.mark.parametrize("turns", [TURNS[:1], TURNS], ids=["one turn", "two turns"])
def test_loss_is_on_the_answers_and_their_end_tokens(processor: Any, turns: tuple[tuple[str, str], ...]) -> None:
    text = ConversationEncoder(processor, 512).encode(turns, SIZE)
    assert spoken(processor, text) == [f"{answer}</s>" for _, answer in turns]


def test_template_without_generation_tag_gives_the_same_labels() -> None:
    processor = build_processor()
    processor.chat_template = PLAIN_TEMPLATE
    text = ConversationEncoder(processor, 512).encode(TURNS, SIZE)
    assert spoken(processor, text) == [f"{answer}</s>" for _, answer in TURNS]


def test_end_token_outside_the_generation_block_is_learned() -> None:
    processor: Any = build_processor()
    processor.chat_template = processor.chat_template.replace("{{ eos_token }}{% endgeneration %}", "{% endgeneration %}{{ eos_token }}")
    text = ConversationEncoder(processor, 512).encode(TURNS, SIZE)
    assert spoken(processor, text) == [f"{answer}</s>" for _, answer in TURNS]


def test_placeholder_is_expanded_to_the_image_tokens_of_any_image(processor: Any) -> None:
    encoder = ConversationEncoder(processor, 512)
    assert encoder.has_fixed_image_tokens
    ids = encoder.encode(TURNS, (300, 200)).ids
    assert int((ids == processor.image_token_id).sum()) == 9
    whole = processor.apply_chat_template(_messages(TURNS[:1]), tokenize=True, return_dict=True)["input_ids"][0]
    assert encoder.encode(TURNS[:1], SIZE).ids.tolist() == whole


def test_long_conversation_is_cut_and_one_without_an_answer_left_is_bad(processor: Any) -> None:
    assert len(ConversationEncoder(processor, 30).encode(TURNS, SIZE).ids) == 30
    with pytest.raises(BadSampleError, match="first 20 tokens"):
        ConversationEncoder(processor, 20).encode((("What " * 20, "Yes"),), SIZE)


def test_limit_without_room_for_an_image_is_refused(processor: Any) -> None:
    with pytest.raises(ValueError, match="max_tokens 12 is too short"):
        ConversationEncoder(processor, 12)


@pytest.mark.parametrize("turn", [("What is <image>?", "yes"), ("What?", "yes</s>"), ("a<s>USER: b", "no"), ("<pad>", "no")])
def test_a_turn_that_spells_a_special_token_is_a_bad_sample(processor: Any, turn: tuple[str, str]) -> None:
    with pytest.raises(BadSampleError, match="special token '<"):
        ConversationEncoder(processor, 512).encode((turn,), SIZE)


def test_processor_without_a_chat_template_is_refused() -> None:
    processor = build_processor()
    processor.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        ConversationEncoder(processor, 512)


def test_collate_pads_right_and_masks(processor: Any) -> None:
    encoder = ConversationEncoder(processor, 512)
    texts = [encoder.encode(TURNS, SIZE), encoder.encode(TURNS[:1], SIZE)]
    inputs, labels = collate(texts, pad_id=0)
    short = len(texts[1].ids)
    assert inputs["input_ids"].shape == labels.shape == inputs["attention_mask"].shape
    assert inputs["input_ids"].shape[1] % 8 == 0
    assert inputs["attention_mask"].sum(1).tolist() == [len(texts[0].ids), short]
    assert (labels[1, short:] == IGNORED).all()


def test_bad_image_keeps_its_row_without_a_loss(processor: Any) -> None:
    samples = samples_of(3)
    good = builder_of(processor, Shapes()).build(enumerate(samples), 0)
    some = builder_of(processor, Shapes(bad=frozenset({samples[1].image_id}))).build(enumerate(samples), 0)
    assert [bool((labels == IGNORED).all()) for labels in good.labels] == [False] * 3
    assert some.inputs["pixel_values"].shape == (3, 3, 48, 48)
    assert (some.labels[1] == IGNORED).all()
    assert 0 < some.num_target_tokens < good.num_target_tokens


def test_augmentation_depends_on_seed_step_and_position_only(processor: Any) -> None:
    samples = list(enumerate(samples_of(4)))
    builder, again = (builder_of(processor, Shapes(), pixel_noise=0.1, brightness=0.2, color_jitter=0.1) for _ in range(2))
    first = builder.build(samples, 5).inputs["pixel_values"]
    assert torch.equal(first, again.build(samples, 5).inputs["pixel_values"])
    assert torch.equal(first[2:], builder.build(samples[2:], 5).inputs["pixel_values"])
    assert not torch.equal(first, builder.build(samples, 6).inputs["pixel_values"])
    plain = builder_of(processor, Shapes()).build(samples, 5).inputs["pixel_values"]
    assert not torch.equal(first, plain)
    assert float((first - plain).abs().mean()) < 1.0


def test_transforms_of_a_batch_depend_on_seed_step_and_position_only(processor: Any) -> None:
    pytest.importorskip("torchvision", reason="transforms need torchvision: make install")
    samples, mirror = list(enumerate(samples_of(4))), ({"RandomHorizontalFlip": {"p": 1.0}},)
    plain, mirrored = (
        builder_of(processor, Shapes(), transforms=chosen).build(samples, 5).inputs["pixel_values"] for chosen in ((), mirror)
    )
    assert torch.allclose(mirrored, plain.flip(-1), atol=1e-5)
    jitter = ({"ColorJitter": {"brightness": 0.5}}, {"RandomGrayscale": {"p": 0.5}})
    builder, again = (builder_of(processor, Shapes(), transforms=jitter, pixel_noise=0.1) for _ in range(2))
    first = builder.build(samples, 5).inputs["pixel_values"]
    torch.rand(7)
    assert torch.equal(first[2:], again.build(samples[2:], 5).inputs["pixel_values"])
    assert not torch.equal(first, again.build(samples, 6).inputs["pixel_values"])


def test_every_sample_once_per_pass_whatever_the_grouping() -> None:
    lengths = list(range(40))
    for grouping in (False, True):
        batches = list(global_batches(lengths, 8, 10, seed=1, length_grouping=grouping))
        assert [len(batch) for batch in batches] == [8] * 10
        counts = np.bincount([index for batch in batches for index in batch], minlength=40)
        assert counts.tolist() == [2] * 40


def test_length_grouping_makes_batches_of_like_lengths() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 256).tolist()
    spreads = [
        np.mean([np.ptp([lengths[index] for index in batch]) for batch in global_batches(lengths, 16, 16, 0, length_grouping=grouping)])
        for grouping in (True, False)
    ]
    assert spreads[0] < spreads[1] / 5


def test_rows_are_cut_so_that_no_pass_is_too_wide() -> None:
    widths = np.random.default_rng(0).integers(1, 60, 64).tolist()
    parts = cut_by_tokens(widths, 200)
    assert sorted(row for part in parts for row in part) == list(range(64))
    assert all(len(part) * max(widths[row] for row in part) <= 200 for part in parts)
    assert len(parts) < 16
    assert cut_by_tokens([300, 8], 200) == [[1], [0]]


@pytest.mark.parametrize("min_parts", [1, 3, 7, 8, 20])
def test_rows_are_cut_into_as_many_passes_as_another_rank_has(min_parts: int) -> None:
    parts = cut_by_tokens([8] * 8, 64, min_parts)
    assert len(parts) == min(min_parts, 8)
    assert sorted(row for part in parts for row in part) == list(range(8))
    assert all(parts)


def test_ranks_share_a_batch_without_overlap() -> None:
    assert [list(rank_share(range(8), rank, 2)) for rank in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def builder_of(processor: Any, source: ImageSource, **hyper: Any) -> BatchBuilder:
    settings = Hyperparameters(batch_size=4, num_steps=1, learning_rate=1e-3, **hyper)
    augmentation = Augmentation(settings, processor.image_processor, seed=7)
    return BatchBuilder(ConversationEncoder(processor, 512), PixelReader(processor.image_processor, source), augmentation, pad_id=0)


def _messages(turns: tuple[tuple[str, str], ...]) -> list[dict[str, Any]]:
    (question, answer), *_ = turns
    return [
        {"role": "user", "content": [{"type": "image", "image": Image.new("RGB", SIZE)}, {"type": "text", "text": question}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
