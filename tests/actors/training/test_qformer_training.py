"""Training of the Q-Former family, and of adapters on any family's language model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from actors.engines.weights import digest_of, manifest_of, read_checkpoint
from actors.processors import load_processor
from actors.trainer import TrainerRank
from actors.training.adapters import add_adapters, merged
from actors.training.batches import BatchBuilder
from actors.training.checkpoint import group_of, load_model
from actors.training.core import run_local
from actors.training.inputs.encoding import IGNORED, ConversationEncoder
from actors.training.job import PARAMETER_GROUPS, Hyperparameters, Lora
from actors.training.pixels import Augmentation, PixelReader
from cluster.training.group import Bounds, RankOptions, TrainerGroup
from loop.models.seed.instructblip import FROZEN_BY_VIGC
from loop.models.seed.qformer import NUM_QUERY_TOKENS
from policies.records import TrainingSample
from tests.actors.training.helpers import Shapes, job_of, samples_of, save_base
from tests.world.untrained import save_untrained_instructblip

TIMEOUT_S = 180.0
TARGETS = ("q_proj", "v_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("instructblip")
    save_untrained_instructblip(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def builder_of(base: Path) -> BatchBuilder:
    processor, hyper = load_processor(base), Hyperparameters(batch_size=4, num_steps=1, learning_rate=1e-3)
    reader = PixelReader(processor.image_processor, Shapes())
    return BatchBuilder(ConversationEncoder(processor, 512), reader, Augmentation(hyper, processor.image_processor, 0), pad_id=0)


def changed_names(before: Path, after: Path) -> set[str]:
    first, second = read_checkpoint(before), read_checkpoint(after)
    assert manifest_of(first) == manifest_of(second)
    return {name for name in first if not torch.equal(first[name], second[name])}


def test_loss_is_on_the_answers_alone_though_the_image_comes_before_the_text(base: Path) -> None:
    encoder, processor = ConversationEncoder(load_processor(base), 512), load_processor(base)
    turns = (("What shape is the red object?", "The red object is a circle."), ("How many objects are there?", "There is 1 object."))
    text = encoder.encode(turns, (48, 48))
    assert encoder.has_fixed_image_tokens
    assert (text.ids[:NUM_QUERY_TOKENS] == processor.tokenizer.convert_tokens_to_ids("<image>")).all()
    assert processor.tokenizer.decode(text.labels[text.labels != IGNORED]) == " " + "</s> ".join(answer for _, answer in turns) + "</s>"


def test_qformer_reads_the_users_words_and_never_an_answer(base: Path) -> None:
    samples = samples_of(4)
    tokenizer = load_processor(base).qformer_tokenizer
    batch = builder_of(base).build(enumerate(samples), 0)
    ids, mask = batch.inputs["qformer_input_ids"], batch.inputs["qformer_attention_mask"]
    assert ids.shape == mask.shape
    assert ids.shape[1] % 8 == 0
    for row, sample in enumerate(samples):
        read = tokenizer.decode(ids[row][mask[row].bool()])
        assert read == f"<s>{' '.join(user for user, _ in sample.turns)}</s>"
        assert mask[row].tolist() == sorted(mask[row].tolist(), reverse=True)
    other = [replace(sample, turns=tuple((user, "Yes.") for user, _ in sample.turns)) for sample in samples]
    assert torch.equal(builder_of(base).build(enumerate(other), 0).inputs["qformer_input_ids"], ids)


def test_long_question_is_cut_to_what_the_qformer_takes(base: Path) -> None:
    long = TrainingSample(samples_of(1)[0].image_id, (("What?", "No."), ("What is red? " * 200, "Yes.")))
    batch = builder_of(base).build([(0, long)], 0)
    assert batch.num_target_tokens > 0
    assert batch.inputs["qformer_input_ids"].shape == (1, 512)


def test_answers_do_not_reach_the_visual_tokens_and_questions_do(base: Path) -> None:
    model = load_model(base).eval()
    (sample,) = samples_of(1)
    (question, answer), *_ = sample.turns
    turns = [((question, answer),), ((question, "Yes."),), (("Describe the image in detail.", answer),)]
    batch = builder_of(base).build([(index, replace(sample, turns=turn)) for index, turn in enumerate(turns)], 0)
    with torch.no_grad():
        visual = model(**batch.inputs).qformer_outputs.last_hidden_state[:, :NUM_QUERY_TOKENS]
    assert torch.allclose(visual[0], visual[1], atol=1e-5)
    assert not torch.allclose(visual[0], visual[2], atol=1e-2)


def test_vigc_trains_the_qformer_and_the_projection_only(base: Path, tmp_path: Path) -> None:
    job = job_of(base, tmp_path / "out", num_steps=6, frozen=FROZEN_BY_VIGC, warmup_share=0.0)
    result = run_local(job, Shapes())
    changed = changed_names(base, job.output)
    assert {group_of(name) for name in changed} == {"qformer", "projector"}
    assert {"query_tokens", "language_projection.weight", "qformer.embeddings.word_embeddings.weight"} <= changed
    assert result.final_loss < result.losses[0][1]
    assert result.digest == digest_of(read_checkpoint(job.output))
    assert load_processor(job.output).chat_template == load_processor(base).chat_template


def test_every_group_can_be_trained(base: Path, tmp_path: Path) -> None:
    job = job_of(base, tmp_path / "out", num_steps=12)
    result = run_local(job, Shapes())
    assert result.final_loss < 0.8 * result.losses[0][1]
    assert {group_of(name) for name in changed_names(base, job.output)} == set(PARAMETER_GROUPS)


@pytest.mark.slow
def test_two_ranks_train_like_one(base: Path, tmp_path: Path, cluster: None) -> None:
    settings: dict[str, Any] = {"frozen": FROZEN_BY_VIGC, "lora": Lora(dropout=0.0)}
    single = run_local(job_of(base, tmp_path / "single", **settings), Shapes())
    group = TrainerGroup(TrainerRank, 2, RankOptions())
    double = group.train(job_of(base, tmp_path / "double", **settings), Shapes(), Bounds(TIMEOUT_S))
    group.shutdown()
    assert dict(double.losses) == pytest.approx(dict(single.losses), abs=1e-4)
    expected, found = read_checkpoint(tmp_path / "single"), read_checkpoint(tmp_path / "double")
    assert all(torch.allclose(expected[name], found[name], atol=1e-3) for name in expected)


@pytest.mark.parametrize("family", ["base", "llava"])
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_adapters_are_merged_into_their_targets_and_change_nothing_else(
    family: str, zero_stage: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    checkpoint: Path = request.getfixturevalue(family)
    frozen = tuple(sorted({group_of(name) for name in read_checkpoint(checkpoint)}))
    job = job_of(checkpoint, tmp_path / "out", num_steps=6, frozen=frozen, lora=Lora(targets=TARGETS), zero_stage=zero_stage)
    assert set(frozen) <= set(PARAMETER_GROUPS)
    run_local(job, Shapes())
    changed = changed_names(checkpoint, job.output)
    assert {name.split(".")[-2] for name in changed} == set(TARGETS)
    assert {group_of(name) for name in changed} == {"language_model"}
    model = load_model(job.output)
    assert len(changed) == 2 * model.config.text_config.num_hidden_layers


def test_merged_weights_say_what_the_adapters_said(base: Path) -> None:
    lora = Lora(rank=4, alpha=10)
    adapted, plain = load_model(base), load_model(base)
    add_adapters(adapted, lora)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    inputs = builder_of(base).build(enumerate(samples_of(2)), 0).inputs
    with torch.no_grad():
        before = plain.eval()(**inputs).logits
        plain.load_state_dict(merged(adapted.state_dict(), lora))
        expected, found = adapted.eval()(**inputs).logits, plain(**inputs).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert float((found - before).abs().max()) > 0.01


def test_adapters_and_further_groups_train_together(base: Path, tmp_path: Path) -> None:
    job = job_of(base, tmp_path / "out", frozen=FROZEN_BY_VIGC, lora=Lora(), warmup_share=0.0)
    run_local(job, Shapes())
    changed = changed_names(base, job.output)
    assert {group_of(name) for name in changed} == {"qformer", "projector", "language_model"}
    assert all("_proj." in name for name in changed if group_of(name) == "language_model")


def test_merged_adapters_are_interpolated_like_any_weights(base: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"frozen": FROZEN_BY_VIGC, "lora": Lora(dropout=0.0), "warmup_share": 0.0}
    for name, share in (("whole", 1.0), ("half", 0.5)):
        run_local(job_of(base, tmp_path / name, interpolation=share, **settings), Shapes())
    first, whole, half = (read_checkpoint(folder) for folder in (base, tmp_path / "whole", tmp_path / "half"))
    assert changed_names(base, tmp_path / "half") == changed_names(base, tmp_path / "whole")
    assert all(torch.allclose(half[name], (first[name] + whole[name]) / 2, atol=1e-6) for name in first)


def test_target_that_is_no_layer_and_group_that_is_not_there_are_refused(base: Path, llava: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lora targets \['fc9'\] are not linear layers"):
        run_local(job_of(base, tmp_path / "out", frozen=("language_model",), lora=Lora(targets=("fc9",))), Shapes())
    with pytest.raises(ValueError, match=r"no parameters of \['qformer'\]"):
        run_local(job_of(llava, tmp_path / "out", frozen=("qformer",)), Shapes())
    with pytest.raises(ValueError, match="nothing to train"):
        run_local(job_of(llava, tmp_path / "out", frozen=("vision_tower", "projector", "language_model")), Shapes())


def test_parameters_belong_to_the_part_that_owns_them(base: Path, llava: Path) -> None:
    groups = {name: group_of(name) for name in (*read_checkpoint(base), *read_checkpoint(llava))}
    assert groups["query_tokens"] == "qformer"
    assert groups["language_projection.weight"] == "projector"
    assert groups["vision_model.encoder.layers.0.self_attn.projection.weight"] == "vision_tower"
    assert all(groups[name] == "language_model" for name in groups if "language_model." in name)
    assert all(groups[name] == "qformer" for name in groups if name.startswith("qformer."))
    assert {groups[name] for name in groups if name.startswith("vision_model.")} == {"vision_tower"}
    assert {group_of(name) for name in read_checkpoint(llava)} == {"vision_tower", "projector", "language_model"}


def test_adapters_on_what_is_trained_anyway_are_refused() -> None:
    with pytest.raises(ValueError, match="name language_model in `frozen`"):
        Hyperparameters(batch_size=8, num_steps=1, learning_rate=1e-3, lora=Lora())


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"targets": ()}])
def test_adapters_without_a_meaning_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="lora"):
        Lora(**options)
