"""Conversations about several images or none: their loss is the model's own on what its processor makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from actors.processors import generation_end_ids, load_processor
from actors.training.batches import BatchBuilder
from actors.training.checkpoint import load_model
from actors.training.core import run_local
from actors.training.inputs.conversations import messages_of
from actors.training.inputs.encoding import IGNORED, ConversationEncoder
from actors.training.inputs.skips import SkipReason
from actors.training.job import Hyperparameters, TrainingJob
from actors.training.pixels import Augmentation, PixelReader
from loop.sources.shapes.render import render
from loop.sources.shapes.scene import image_id as shape_id
from loop.sources.shapes.scene import scene_of
from policies.records import TrainingSample
from tests.actors.engines.families import FAMILIES

SIZES = {"wide": (96, 64), "square": (64, 64)}
SEVERAL = TrainingSample(
    "wide", (("<image> Is it like <image> ?", "There is a red ring."), ("Where?", "There is 1 circle.")), further_images=("square",)
)
SAME_ANSWERS = TrainingSample("wide", tuple(("What?", answer) for _, answer in SEVERAL.turns))
TEXT_ONLY = TrainingSample("", (("What is 2 + 2?", "There are 4 rings."),))
ONE = TrainingSample("square", (("What is at the center?", "A blue star."),))
TAKE_ONE = ("instructblip", "blip2", "mllama", "paligemma")


class Photos:
    """Implements `ImageSource`."""

    def image_ids(self) -> list[str]:
        return list(SIZES)

    def open(self, image_id: str) -> Image.Image:
        return render(scene_of(shape_id(1, len(image_id), 0.1))).resize(SIZES[image_id])


def builder_of(processor: Any, end_ids: int | Sequence[int] | None = None) -> BatchBuilder:
    augmentation = Augmentation(Hyperparameters(3, 1, 1e-3), processor.image_processor, 0)
    return BatchBuilder(ConversationEncoder(processor, 512, end_ids), PixelReader(processor.image_processor, Photos()), augmentation, 0)


def summed_loss(model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> float:
    with torch.inference_mode():
        logits = model(**inputs).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="sum"))


def own_loss(model: Any, processor: Any, builder: BatchBuilder, sample: TrainingSample) -> float:
    """The loss on the inputs that the processor makes of the whole conversation and its images."""
    messages = messages_of(sample.turns, [Photos().open(name) for name in sample.images])
    inputs = dict(processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt"))
    labels = builder.build([(0, sample)], 0).labels[:1, : inputs["input_ids"].shape[1]]
    assert torch.equal(labels[labels != IGNORED], inputs["input_ids"][labels != IGNORED])
    return summed_loss(model, inputs, labels)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in TAKE_ONE])
def test_a_mixed_batch_has_the_losses_of_the_models_own_inputs(tmp_path: Path, family: str) -> None:
    save, packages = FAMILIES[family]
    if missing := [one for one in packages if find_spec(one) is None]:
        pytest.skip(f"its processor needs {missing}")
    folder = save(tmp_path)
    model, processor = load_model(folder).eval(), load_processor(folder)
    builder = builder_of(processor, generation_end_ids(folder))
    samples = [SEVERAL, TEXT_ONLY, ONE]
    rows = builder.rows(enumerate(samples), 0)
    assert [row.skip for row in rows] == [None] * 3
    assert targets(builder, SEVERAL) == targets(builder, SAME_ANSWERS)
    expected = [own_loss(model, processor, builder, sample) for sample in samples]
    batch = builder.batch(rows)
    assert summed_loss(model, dict(batch.inputs), batch.labels) == pytest.approx(sum(expected), rel=1e-5)
    swapped = TrainingSample("square", SEVERAL.turns, further_images=("wide",))
    assert own_loss(model, processor, builder, swapped) != pytest.approx(expected[0], rel=2e-5), "the model tells the images apart"


def targets(builder: BatchBuilder, sample: TrainingSample) -> list[int]:
    """The tokens with a loss."""
    labels = builder.build([(0, sample)], 0).labels
    return labels[labels != IGNORED].tolist()


@pytest.mark.parametrize("family", TAKE_ONE)
def test_a_model_that_takes_one_image_passes_over_conversations_about_several(tmp_path: Path, family: str) -> None:
    builder = builder_of(load_processor(FAMILIES[family][0](tmp_path)))
    row, text_only = builder.rows(enumerate([SEVERAL, TEXT_ONLY]), 0)
    assert row.skip is not None
    assert (row.skip.reason, row.skip.message.startswith("wide, square: ")) == (SkipReason.SEVERAL_IMAGES, True)
    assert (text_only.skip is None) == (family not in ("mllama", "paligemma"))


@pytest.mark.parametrize("family", ["instructblip", "blip2"])
def test_qformer_models_train_text_beside_images(tmp_path: Path, family: str) -> None:
    folder = FAMILIES[family][0](tmp_path)
    model, builder = load_model(folder).eval(), builder_of(load_processor(folder))

    def loss(*samples: TrainingSample) -> float:
        batch = builder.build(enumerate(samples), 0)
        return summed_loss(model, dict(batch.inputs), batch.labels)

    assert loss(TEXT_ONLY, ONE) == pytest.approx(loss(TEXT_ONLY) + loss(ONE), rel=1e-4)


def test_a_mark_in_the_text_of_one_image_is_still_refused(tmp_path: Path) -> None:
    builder = builder_of(load_processor(FAMILIES["llava"][0](tmp_path)))
    (row,) = builder.rows([(0, TrainingSample("wide", SEVERAL.turns))], 0)
    assert row.skip is not None
    assert row.skip.reason is SkipReason.SPECIAL_TOKEN


def test_a_mixed_training_trains_on_all_and_a_pass_of_text_alone_has_gradients_everywhere(tmp_path: Path) -> None:
    base = FAMILIES["llava"][0](tmp_path)
    hyper = Hyperparameters(2, 4, 1e-3, warmup_share=0.0, gradient_accumulation=2)
    result = run_local(TrainingJob(base, tmp_path / "out", [SEVERAL, TEXT_ONLY, ONE, TEXT_ONLY], 0, hyper), Photos())
    assert (result.num_skipped_samples, result.num_empty_steps) == (0, 0)
    model, builder = load_model(base), builder_of(load_processor(base))
    batch = builder.build([(0, TEXT_ONLY)], 0)
    assert batch.num_target_tokens == builder.build([(0, TEXT_ONLY), (1, ONE)], 0).num_target_tokens - 5
    model(**batch.inputs, labels=batch.labels).loss.backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "projector" in name)
