"""DPO: the loss is that of the paper, it moves the model towards the chosen answers, and pairs change nothing else."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.processors import load_processor
from actors.training.batches import BatchBuilder
from actors.training.checkpoint import load_model
from actors.training.core import run_local
from actors.training.dpo import PairBatch
from actors.training.inputs.conversations import messages_of
from actors.training.inputs.encoding import IGNORED, ConversationEncoder
from actors.training.inputs.forward import answer_logprobs
from actors.training.job import EarlyStop, Hyperparameters, Lora, TrainingResult
from actors.training.pixels import Augmentation, PixelReader
from policies.records import TrainingSample
from policies.training.objectives import Dpo
from tests.actors.training.helpers import Shapes, job_of, pairs_of, samples_of, save_base

BETA = 0.7


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def builder_of(processor: Any) -> BatchBuilder:
    augmentation = Augmentation(Hyperparameters(3, 1, 1e-3), processor.image_processor, 0)
    return BatchBuilder(ConversationEncoder(processor, 512), PixelReader(processor.image_processor, Shapes()), augmentation, 0)


@torch.no_grad()
def moved(model: Any) -> Any:
    """A copy with other weights."""
    found = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for parameter in found.parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return found


@torch.no_grad()
def exact_logprobs(model: Any, processor: Any, builder: BatchBuilder, samples: Sequence[TrainingSample]) -> torch.Tensor:
    """Of each answer, token by token in float64, on the inputs that the processor makes of the whole conversation: [samples]."""
    model, found = copy.deepcopy(model).double().eval(), []
    for sample in samples:
        messages = messages_of(sample.turns, [Shapes().open(sample.image_id)])
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        ids = inputs["input_ids"][0]
        labels = builder.build([(0, sample)], 0).labels[0, : len(ids)]
        logits = model(**{**inputs, "pixel_values": inputs["pixel_values"].double()}).logits[0]
        places = (labels != IGNORED).nonzero()[:, 0].tolist()
        found.append(sum(logits[place - 1].log_softmax(-1)[ids[place]] for place in places))
    return torch.stack(found)


def test_the_loss_is_equation_7_and_its_gradient_raises_the_chosen_answers_over_the_rejected_ones(base: Path) -> None:
    processor = load_processor(base)
    builder, pairs = builder_of(processor), pairs_of(3)
    reference = load_model(base).eval()
    model = moved(reference)
    exact, exact_reference = (exact_logprobs(one, processor, builder, pairs).view(-1, 2) for one in (model, reference))
    ratios = exact - exact_reference
    margins = BETA * (ratios[:, 0] - ratios[:, 1])
    assert margins.abs().max() > 0.01

    batch = builder.batch(builder.plain_rows(enumerate(pairs)))
    with torch.no_grad():
        measured = answer_logprobs(reference, batch, reference.device).double().view(-1, 2)
    assert measured.numpy() == pytest.approx(exact_reference.numpy(), abs=1e-4)
    passed = PairBatch(batch, measured, torch.tensor([1.0, 0.0, 1.0]), BETA, scale=0.25)
    loss, sums = passed.loss(model)
    losses, used = torch.log1p(torch.exp(-margins)), torch.tensor([0, 2])
    assert loss.item() == pytest.approx(0.25 * losses[used].sum().item(), abs=1e-4)
    counted = [losses[used].sum().item(), (margins[used] > 0).sum().item(), margins[used].sum().item(), 2.0]
    assert sums.tolist() == pytest.approx(counted, abs=1e-4)

    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
        chosen, rejected = answer_logprobs(model, batch, model.device).view(-1, 2)[used].unbind(1)
    assert (chosen - rejected).sum() > (exact[used, 0] - exact[used, 1]).sum()


def margins_of(result: TrainingResult) -> list[float]:
    return [margin for *_, margin in result.pair_points]


def test_a_job_with_pairs_learns_to_prefer_and_says_what_it_learned_from(base: Path, tmp_path: Path) -> None:
    pairs = pairs_of(6)
    job = job_of(base, tmp_path / "out", num_steps=8, pairs=pairs, dpo=Dpo(pairs_per_step=4), pixel_noise=0.1)
    result = run_local(job, Shapes(bad=frozenset({pairs[4].image_id})))
    assert (result.num_pairs, result.num_skipped_pairs) == (5, 1)
    steps, losses, accuracies, margins = np.array(result.pair_points).T
    assert steps.tolist() == list(range(1, 9))
    assert margins[0] == pytest.approx(0.0, abs=1e-4), "the model is the reference before the first step, augmentation or not"
    assert losses[0] == pytest.approx(np.log(2), abs=1e-4)
    assert margins[-1] > 0.05
    assert losses[-1] < losses[0]
    assert accuracies[-1] == 1.0
    assert run_local(job, Shapes()) == result, "the stored result says the same"


def test_without_pairs_dpo_trains_as_sft(base: Path, tmp_path: Path) -> None:
    plain = run_local(job_of(base, tmp_path / "plain", num_steps=2), Shapes())
    without = run_local(job_of(base, tmp_path / "without", num_steps=2, dpo=Dpo()), Shapes())
    pairs = [replace(one, image_id=f"{one.image_id} gone") for one in pairs_of(2)]
    job = job_of(base, tmp_path / "unreadable", num_steps=2, dpo=Dpo(), pairs=pairs)
    lost = run_local(job, Shapes(bad=frozenset(one.image_id for one in pairs)))
    assert (without.digest, without.pair_points) == (plain.digest, ())
    assert (lost.digest, lost.num_pairs, lost.num_skipped_pairs) == (plain.digest, 0, 2)


@pytest.mark.parametrize(
    "hyper",
    [
        {"zero_stage": 2, "max_micro_batch_tokens": 200, "max_tokens": 100},
        pytest.param({"zero_stage": 3, "gradient_accumulation": 4}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_passes_and_shards_of_pairs_train_alike(base: Path, tmp_path: Path, hyper: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"pairs": pairs_of(5), "dpo": Dpo(pairs_per_step=5)}
    one = run_local(job_of(base, tmp_path / "one", **settings), Shapes())
    other = run_local(job_of(base, tmp_path / "other", **settings, **hyper), Shapes())
    assert dict(other.losses) == pytest.approx(dict(one.losses), abs=1e-4)
    assert margins_of(other) == pytest.approx(margins_of(one), abs=1e-3)


def test_dropout_is_off_for_pairs(base: Path, tmp_path: Path) -> None:
    lora = {"frozen": ("vision_tower", "projector", "language_model"), "lora": Lora(rank=2, dropout=0.5), "learning_rate": 1e-2}
    result = run_local(job_of(base, tmp_path / "out", num_steps=2, pairs=pairs_of(4), dpo=Dpo(pairs_per_step=4), **lora), Shapes())
    assert margins_of(result)[0] == pytest.approx(0.0, abs=1e-4)
    assert margins_of(result)[1] != pytest.approx(0.0, abs=1e-4)


def test_pairs_about_images_that_are_held_out_are_left_out(base: Path, tmp_path: Path) -> None:
    job = job_of(base, tmp_path / "out", pairs=pairs_of(24), dpo=Dpo(pairs_per_step=4), early_stop=EarlyStop(4, num_samples=6))
    result = run_local(job, Shapes())
    assert (result.num_pairs, result.num_skipped_pairs) == (18, 6)


def test_pairs_and_what_is_needed_for_them_come_together(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pairs are for the hyperparameter dpo, which is not set"):
        job_of(base, tmp_path / "out", pairs=pairs_of(1))
    with pytest.raises(ValueError, match="pairs are two conversations each, but there are 3"):
        job_of(base, tmp_path / "out", pairs=[*pairs_of(1), *samples_of(1)], dpo=Dpo())
    with pytest.raises(ValueError, match="max_micro_batch_tokens 600 has no room for a pair for dpo, two conversations of max_tokens 512"):
        job_of(base, tmp_path / "out", max_micro_batch_tokens=600, dpo=Dpo())
    job = job_of(base, tmp_path / "out", dpo=Dpo())
    assert job.fingerprint() != replace(job, pairs=pairs_of(1)).fingerprint()
