from __future__ import annotations

import dataclasses
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.ops.op_builder.builder import OpBuilder
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig, LlamaForCausalLM

from actors.engines.base import WeightUpdate
from actors.engines.transformers import TransformersEngine
from actors.engines.weights import digest_of, manifest_of, read_checkpoint
from actors.training.checkpoint import group_of, load_model
from actors.training.core import checkpoint_activations, learning_rate_factor, run_local
from actors.training.inputs.skips import SkipReason
from actors.training.job import PARAMETER_GROUPS, Hyperparameters, TrainerError, TrainingResult
from actors.training.order import global_batches
from tests.actors.training.helpers import Shapes, job_of, save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def test_training_lowers_the_loss_and_writes_what_it_says(base: Path, tmp_path: Path) -> None:
    seen = []
    job = job_of(base, tmp_path / "out", num_steps=12, pixel_noise=0.05)
    result = run_local(job, Shapes(), on_progress=seen.append)
    assert result.final_loss < 0.8 * result.losses[0][1]
    assert result.num_target_tokens > 0
    assert [progress.step for progress in seen] == list(range(1, 13))
    steps = seen[-1].steps
    assert steps == result.steps
    assert [(one.step, one.loss) for one in steps] == [(step, pytest.approx(loss)) for step, loss in result.losses]
    assert [one.learning_rate for one in steps] == pytest.approx([1e-3 * learning_rate_factor(step, job.hyper) for step in range(12)])
    assert all(one.gradient_norm is not None and one.gradient_norm > 0 for one in steps)
    assert sum(1 for one in steps if one.tokens_per_s) == 11
    assert digest_of(read_checkpoint(job.output)) == result.digest
    AutoProcessor.from_pretrained(job.output)
    model = AutoModelForImageTextToText.from_pretrained(job.output)
    assert model.dtype == torch.float32
    assert run_local(job, Shapes()) == result


def test_same_seed_gives_the_same_weights_and_another_seed_others(base: Path, tmp_path: Path) -> None:
    job = job_of(base, tmp_path / "first", pixel_noise=0.1)
    first = run_local(job, Shapes())
    second = run_local(dataclasses.replace(job, output=tmp_path / "second"), Shapes())
    other = run_local(dataclasses.replace(job, output=tmp_path / "other", seed=4), Shapes())
    assert first.digest == second.digest
    assert first.losses == second.losses
    assert other.digest != first.digest


def test_frozen_groups_stay_bit_for_bit(base: Path, tmp_path: Path) -> None:
    job = job_of(base, tmp_path / "out", num_steps=2, frozen=("vision_tower", "projector"), warmup_share=0.0)
    run_local(job, Shapes())
    before, after = read_checkpoint(base), read_checkpoint(job.output)
    changed = {group_of(name) for name in before if not torch.equal(before[name], after[name])}
    assert set(before) == set(after)
    assert changed == {"language_model"}


def test_group_learning_rate_moves_its_group_only_a_little(base: Path, tmp_path: Path) -> None:
    job = job_of(base, tmp_path / "out", num_steps=2, learning_rate_groups={"vision_tower": 1e-9}, warmup_share=0.0)
    run_local(job, Shapes())
    before, after = read_checkpoint(base), read_checkpoint(job.output)
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    assert max(moved[name] for name in moved if group_of(name) == "vision_tower") < 1e-7
    assert max(moved[name] for name in moved if group_of(name) == "projector") > 1e-4


PASSES = {"max_micro_batch_tokens": 100, "max_tokens": 100}
ALIKE: list[dict[str, Any]] = [
    {"zero_stage": 2},
    {"zero_stage": 3},
    {"gradient_accumulation": 4},
    {"zero_stage": 2, "offload": ("optimizer",)},
    {"zero_stage": 3, "offload": ("optimizer", "parameters")},
    {"activation_checkpointing": True},
    {"attention": "eager"},
    {"zero_stage": 3, "activation_checkpointing": True},
    PASSES,
    {**PASSES, "zero_stage": 2, "offload": ("optimizer",)},
    {**PASSES, "zero_stage": 3},
]
"""What saves memory or time, and changes nothing but the order of additions."""


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingResult, dict[str, torch.Tensor]]:
    job = job_of(base, tmp_path_factory.mktemp("plain") / "out")
    return run_local(job, Shapes()), read_checkpoint(job.output)


@pytest.mark.parametrize("hyper", ALIKE, ids=str)
def test_what_saves_memory_or_time_trains_alike(
    base: Path, plain: tuple[TrainingResult, dict[str, torch.Tensor]], tmp_path: Path, hyper: dict[str, Any]
) -> None:
    result, expected = plain
    other = run_local(job_of(base, tmp_path / "other", **hyper), Shapes())
    assert dict(other.losses) == pytest.approx(dict(result.losses), abs=1e-4)
    assert other.num_target_tokens == result.num_target_tokens
    found = read_checkpoint(tmp_path / "other")
    assert set(expected) == set(found)
    assert all(torch.allclose(expected[name], found[name], atol=1e-3) for name in expected)
    assert not OpBuilder._loaded_ops, "DeepSpeed compiled an operator, which takes minutes and needs a compiler"


def test_activation_checkpointing_keeps_less(base: Path) -> None:
    """Tensors that autograd keeps between forward and backward pass, in bytes."""
    kept = []
    for is_on in (False, True):
        model = load_model(base)
        if is_on:
            checkpoint_activations(model)
        sizes: list[int] = []
        inputs = {"input_ids": torch.randint(5, 200, (4, 64)), "attention_mask": torch.ones(4, 64, dtype=torch.int64)}

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(**inputs, use_cache=False)
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


def test_bf16_writes_a_bf16_checkpoint(base: Path, tmp_path: Path) -> None:
    job = job_of(base, tmp_path / "out", precision="bf16", zero_stage=1, interpolation=0.5)
    result = run_local(job, Shapes())
    assert result.final_loss < result.losses[0][1]
    assert {tensor.dtype for tensor in read_checkpoint(job.output).values()} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_trains_and_is_swapped_into_engines_and_the_optimizer_keeps_float32(base: Path, tmp_path: Path, stage: int) -> None:
    started = shutil.copytree(base, tmp_path / "started")
    save_file({name: one.bfloat16() for name, one in read_checkpoint(base).items()}, started / "model.safetensors", {"format": "pt"})
    job = job_of(started, tmp_path / "out", precision="bf16", zero_stage=stage)
    result = run_local(dataclasses.replace(job, steps_folder=tmp_path / "steps", steps_between=2), Shapes())
    tensors = read_checkpoint(job.output)
    assert {one.dtype for one in tensors.values()} == {torch.bfloat16}
    (kept,) = (tmp_path / "steps").rglob("*optim_states.pt")
    optimizer = torch.load(kept, weights_only=False)["optimizer_state_dict"]
    assert {one.dtype for one in _tensors(optimizer) if one.is_floating_point() and one.numel() > 10_000} == {torch.float32}
    engine = TransformersEngine(started, dtype="bfloat16")
    attested = engine.swap(WeightUpdate("r1", result.digest, manifest_of(tensors), checkpoint=job.output))
    assert (attested.digest, engine.weight_version) == (result.digest, "r1")


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    """All tensors of a nested state."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for one in state.values() if isinstance(state, dict) else state:
            yield from _tensors(one)


def test_interpolated_checkpoint_lies_between_the_base_and_the_trained_weights(base: Path, tmp_path: Path) -> None:
    part = job_of(base, tmp_path / "part", interpolation=0.25, frozen=("vision_tower",))
    run_local(job_of(base, tmp_path / "frozen", frozen=("vision_tower",)), Shapes())
    run_local(part, Shapes())
    started, trained, between = (read_checkpoint(folder) for folder in (base, tmp_path / "frozen", part.output))
    assert any(not torch.equal(started[name], trained[name]) for name in started)
    assert all(torch.allclose(between[name], 0.75 * started[name] + 0.25 * trained[name], atol=1e-6) for name in started)
    assert all(torch.equal(between[name], started[name]) for name in started if "vision_tower" in name)
    assert part.fingerprint() != job_of(base, part.output, frozen=("vision_tower",)).fingerprint()


def test_samples_that_are_passed_over_are_counted_once_by_reason_with_the_first_as_an_example(base: Path, tmp_path: Path) -> None:
    job = job_of(base, tmp_path / "out", count=16, num_steps=6)
    spelling = dataclasses.replace(job.samples[3], turns=(("<image> What?", "A ring."),))
    samples = [*job.samples[:3], spelling, *job.samples[4:]]
    bad = [sample.image_id for sample in (samples[5], samples[9])]
    job = dataclasses.replace(job, samples=samples)
    result = run_local(job, Shapes(bad=frozenset(bad)))
    assert result.num_skipped_samples == 3
    assert [(one.reason, one.num_samples) for one in result.skipped] == [(SkipReason.BAD_IMAGE, 2), (SkipReason.SPECIAL_TOKEN, 1)]
    assert result.skipped[0].example == f"{bad[0]} is corrupt"
    assert "special token '<image>', in '<image> What? / A ring.'" in result.skipped[1].example
    assert result.num_empty_steps == 0
    assert run_local(job, Shapes()) == result, "the stored result says the same"


def test_too_many_unreadable_images_end_a_training_and_a_resume_goes_on_once_they_are_back(base: Path, tmp_path: Path) -> None:
    job = job_of(base, tmp_path / "out", count=40, num_steps=5, max_unreadable_images=0.25, length_grouping=False)
    job = dataclasses.replace(job, steps_folder=tmp_path / "steps", steps_between=1)
    first, second, third, *_ = global_batches([1] * 40, 8, 5, job.seed, length_grouping=False)
    moved = [*first[:4], *second[:6], *third]
    source = Shapes(bad=frozenset(job.samples[index].image_id for index in moved))
    for done in ([1, 2], []):
        seen: list[int] = []
        with pytest.raises(TrainerError) as caught:
            run_local(job, source, on_progress=lambda progress, seen=seen: seen.append(progress.step))
        assert seen == done
        assert str(caught.value).startswith(
            "the images of 18 of 40 training samples cannot be read after 3 steps, and training.max_unreadable_images 0.25 allows 10; "
            f"the first: {job.samples[min(moved)].image_id} is corrupt; make the images readable"
        )
    result = run_local(job, Shapes())
    assert (result.resumed_from_step, result.num_skipped_samples) == (2, 10)


def test_the_limit_of_unreadable_images_is_no_part_of_a_job(base: Path, tmp_path: Path) -> None:
    strict, lax = (job_of(base, tmp_path / "out", max_unreadable_images=share) for share in (0.0, 1.0))
    assert strict.fingerprint() == lax.fingerprint(), "step checkpoints stay usable"


def test_a_step_without_a_target_token_has_no_loss_and_changes_nothing(base: Path, tmp_path: Path) -> None:
    job = job_of(base, tmp_path / "out", count=8, num_steps=8, batch_size=1, warmup_share=0.0)
    ((first,), *_) = global_batches([len(str(sample.turns)) for sample in job.samples], 1, 8, job.seed, length_grouping=False)
    job = dataclasses.replace(job, hyper=dataclasses.replace(job.hyper, length_grouping=False))
    bad = frozenset(sample.image_id for index, sample in enumerate(job.samples) if index != first)
    result = run_local(job, Shapes(bad=bad))
    alone = dataclasses.replace(
        job, output=tmp_path / "alone", samples=[job.samples[first]], hyper=dataclasses.replace(job.hyper, num_steps=1)
    )
    expected = run_local(alone, Shapes())
    assert (result.num_empty_steps, result.losses, result.mean_loss) == (7, expected.losses, expected.mean_loss)
    assert result.digest == expected.digest


@pytest.mark.parametrize(
    ("hyper", "turns", "message"),
    [
        ({}, None, r"24 of 24 samples: the image cannot be read; .*; for example .* is corrupt"),
        ({}, (("What <image> is?", "A ring."),), r"24 of 24 samples: the text contains a special token .*'<image>'"),
        ({"max_tokens": 40}, (("Which one? " * 30, "A ring."),), r"24 of 24 samples: image and question fill max_tokens.*first 40 tokens"),
    ],
)
def test_a_training_without_a_target_token_is_an_error_with_reason_and_example(
    base: Path, tmp_path: Path, hyper: dict[str, Any], turns: Any, message: str
) -> None:
    job = job_of(base, tmp_path / "out", num_steps=1000, **hyper)
    bad = frozenset(sample.image_id for sample in job.samples) if turns is None else frozenset[str]()
    if turns is not None:
        job = dataclasses.replace(job, samples=[dataclasses.replace(sample, turns=turns) for sample in job.samples])
    seen: list[int] = []
    job = dataclasses.replace(job, steps_folder=tmp_path / "steps", steps_between=1)
    with pytest.raises(TrainerError, match=message):
        run_local(job, Shapes(bad=bad), on_progress=lambda progress: seen.append(progress.step))
    assert len(seen) < 30, "it went on after every sample had been seen"
    assert list(tmp_path.iterdir()) == [], "the next attempt would go on after steps that learned nothing"


def test_text_only_checkpoint_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="not an image-text-to-text checkpoint"):
        run_local(job_of(tmp_path / "text", tmp_path / "out"), Shapes())
    assert not (tmp_path / "out").exists()


def test_output_of_another_job_is_not_overwritten(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not this job's checkpoint"):
        run_local(job_of(base, tmp_path / "out"), Shapes())


def test_loss_that_is_no_number_is_a_named_error(base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="the loss is"):
        run_local(job_of(base, tmp_path / "out", learning_rate=1e25, warmup_share=0.0, max_grad_norm=0.0), Shapes())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frozen": PARAMETER_GROUPS}, "nothing would be trained"),
        ({"frozen": ("head",)}, "unknown parameter groups"),
        ({"precision": "bf16"}, "bf16 needs zero_stage"),
        ({"betas": (0.9, 1.0)}, "betas must be at least 0 and below 1"),
        ({"offload": ("optimizer",)}, "needs zero_stage 2 or 3"),
        ({"offload": ("optimizer",), "zero_stage": 1}, "needs zero_stage 2 or 3"),
        ({"offload": ("parameters",), "zero_stage": 3}, "the optimizer's beside it"),
        ({"offload": ("optimizer", "parameters"), "zero_stage": 2}, "offload of parameters needs zero_stage 3"),
        ({"offload": ("gradients",), "zero_stage": 2}, "offload names"),
        ({"max_micro_batch_tokens": 100}, "no room for a conversation of max_tokens 512"),
        ({"max_micro_batch_tokens": 600, "gradient_accumulation": 2}, "gradient_accumulation 2 would do nothing"),
        ({"interpolation": 0.0}, "interpolation must be above 0"),
        ({"frozen": ("projector",), "learning_rate_groups": {"projector": 1.0}}, "frozen and have a learning rate"),
    ],
)
def test_combinations_without_a_meaning_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hyperparameters(**{"batch_size": 8, "num_steps": 1, "learning_rate": 1e-3, **change})


def test_batch_that_cannot_be_split_is_refused() -> None:
    hyper = Hyperparameters(batch_size=8, num_steps=1, learning_rate=1e-3, gradient_accumulation=2)
    assert hyper.micro_batch_size(2) == 2
    with pytest.raises(ValueError, match="cannot be split"):
        hyper.micro_batch_size(3)


def test_schedule_warms_up_and_ends_at_the_floor() -> None:
    hyper = Hyperparameters(batch_size=8, num_steps=100, learning_rate=1.0, warmup_share=0.1, min_learning_rate_ratio=0.05)
    factors = [learning_rate_factor(step, hyper) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == 1.0
    assert factors[-1] == pytest.approx(0.05, abs=1e-3)


def test_trainer_error_survives_pickling() -> None:
    assert str(pickle.loads(pickle.dumps(TrainerError("rank 1 died")))) == "rank 1 died"
