"""Every family trains as its own model and processor would, and its checkpoint is served as it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from actors.engines.base import Request, Sampling, WeightUpdate
from actors.engines.prompting import Prompter
from actors.engines.transformers import TransformersEngine
from actors.engines.weights import manifest_of_checkpoint, read_checkpoint
from actors.processors import generation_end_ids, load_processor
from actors.training.batches import Batch, BatchBuilder
from actors.training.checkpoint import group_of, load_model
from actors.training.core import run_local
from actors.training.inputs.encoding import IGNORED, ConversationEncoder
from actors.training.job import Hyperparameters, Lora, TrainingJob
from actors.training.pixels import Augmentation, PixelReader
from loop.sources.shapes import scene as scenes
from loop.sources.shapes.render import render
from loop.sources.shapes.scene import scene_of
from policies.records import TrainingSample
from tests.actors.engines.families import FAMILIES, prefix_and_suffix, save_family

SIZES = {"wide": (96, 60), "tall": (48, 112), "square": (48, 48)}
QUESTION, ANSWER = "What is at the center?", "There is a red ring."
SAMPLES = [
    TrainingSample("wide", ((QUESTION, ANSWER),)),
    TrainingSample("tall", ((QUESTION, ANSWER), ("How many objects are there?", "There is 1 object."))),
    TrainingSample("square", (("Is there a red ring?", "yes"),)),
]


class Photos:
    """Pictures of several shapes."""

    def image_ids(self) -> list[str]:
        return list(SIZES)

    def open(self, image_id: str) -> Image.Image:
        return render(scene_of(scenes.image_id(1, len(image_id), 0.1))).resize(SIZES[image_id])


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(family, tmp_path_factory.mktemp(family) / "base")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return load_model(checkpoint).eval()


@pytest.fixture(scope="module")
def builder(checkpoint: Path) -> BatchBuilder:
    processor = load_processor(checkpoint)
    encoder = ConversationEncoder(processor, 512, generation_end_ids(checkpoint))
    augmentation = Augmentation(Hyperparameters(3, 1, 1e-3), processor.image_processor, 0)
    return BatchBuilder(encoder, PixelReader(processor.image_processor, Photos()), augmentation, processor.tokenizer.pad_token_id)


@torch.inference_mode()
def _loss(model: Any, inputs: Any, labels: torch.Tensor) -> float:
    """Summed over the target tokens."""
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="sum"))


def _by_the_model_itself(checkpoint: Path, sample: TrainingSample, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The processor's own inputs for a conversation, and labels: from the end of every prompt to the next end token."""
    prompter, image = Prompter(checkpoint), Photos().open(sample.image_id)
    processor, end_ids = prompter.processor, prompter.end_ids(generation_end_ids(checkpoint))
    if _model_type(checkpoint) == "paligemma" and len(sample.turns) == 1:
        given = prefix_and_suffix(checkpoint, image, *sample.turns[0])
        return given, given.pop("labels")
    messages: list[dict[str, Any]] = []
    for user, assistant in sample.turns:
        messages += [
            {"role": role, "content": [{"type": "text", "text": said}]} for role, said in (("user", user), ("assistant", assistant))
        ]
    messages[0]["content"].insert(0, {"type": "image"})

    def inputs(num_messages: int) -> dict[str, torch.Tensor]:
        text = processor.apply_chat_template(messages[:num_messages], add_generation_prompt=num_messages % 2 == 1)
        return dict(processor(text=[text], images=[[image]], return_tensors="pt", add_special_tokens=False))

    given = inputs(len(messages))
    labels = torch.full_like(given["input_ids"], IGNORED)
    for turn in range(len(sample.turns)):
        start = inputs(2 * turn + 1)["input_ids"].shape[1]
        end = next(place for place, token in enumerate(given["input_ids"][0]) if place >= start and token in end_ids)
        labels[0, start : end + 1] = given["input_ids"][0, start : end + 1]
    if "labels" in given:  # PaliGemma's conversations of several turns: all after the first question is suffix
        del given["labels"]
        given["token_type_ids"] = (labels != IGNORED).cummax(1).values.long()
    if "qformer_input_ids" in given:  # it must not read the answers
        given |= {name: tensor for name, tensor in batch.inputs.items() if name.startswith("qformer_")}
    return given, labels


def _model_type(checkpoint: Path) -> str:
    return AutoConfig.from_pretrained(checkpoint).model_type


def test_loss_and_mask_are_those_of_the_models_own_inputs(checkpoint: Path, model: Any, builder: BatchBuilder) -> None:
    losses = []
    for sample in SAMPLES:
        batch = builder.build([(0, sample)], 0)
        given, labels = _by_the_model_itself(checkpoint, sample, batch)
        length = labels.shape[1]
        assert torch.equal(batch.inputs["input_ids"][:, :length], given["input_ids"])
        assert torch.equal(batch.labels[:, :length], labels)
        assert (batch.labels[:, length:] == IGNORED).all()
        losses.append(_loss(model, batch.inputs, batch.labels))
        assert losses[-1] == pytest.approx(_loss(model, given, labels), rel=1e-4)
    together = builder.build(enumerate(SAMPLES), 0)
    assert _loss(model, together.inputs, together.labels) == pytest.approx(sum(losses), rel=1e-4)


def test_every_parameter_is_in_the_group_of_its_module(family: str, model: Any) -> None:
    """Of the modules of the model's class, the vision tower's own merger is a projector."""
    towers = [part for name in ("vision_tower", "visual", "vision_model") if (part := getattr(model.base_model, name, None)) is not None]
    texts = [part for name in ("language_model", "text_model") if (part := getattr(model.base_model, name, None)) is not None]
    owners: dict[int, str] = {}
    for module, group in [*((one, "vision_tower") for one in towers), *((one, "language_model") for one in texts)]:
        owners |= {id(parameter): group for parameter in module.parameters()}
    owners |= {id(parameter): "language_model" for parameter in model.get_output_embeddings().parameters()}
    owners |= {id(parameter): "projector" for name, parameter in model.named_parameters() if "merger" in name}
    if family in ("instructblip", "blip2"):
        owners |= {id(parameter): "qformer" for parameter in (model.query_tokens, *model.qformer.parameters())}
    found = {name: group_of(name) for name, _ in model.named_parameters()}
    assert found == {name: owners.get(id(parameter), "projector") for name, parameter in model.named_parameters()}
    assert {"vision_tower", "projector", "language_model"} <= set(found.values())


def _job(checkpoint: Path, output: Path, **hyper: Any) -> TrainingJob:
    return TrainingJob(checkpoint, output, SAMPLES, 3, Hyperparameters(3, 2, 1e-2, warmup_share=0.0, **hyper))


def test_a_trained_checkpoint_reloads_and_is_served_by_a_swap(checkpoint: Path, tmp_path: Path) -> None:
    job = _job(checkpoint, tmp_path / "out")
    result = run_local(job, Photos())
    assert manifest_of_checkpoint(job.output) == manifest_of_checkpoint(checkpoint)
    _, told = AutoModelForImageTextToText.from_pretrained(job.output, output_loading_info=True)
    assert not any(told.values())

    requests = [Request(Photos().open(name), QUESTION, answer_prefix=prefix) for name in SIZES for prefix in ("", "There is")]
    swapped, started = TransformersEngine(checkpoint), TransformersEngine(job.output)
    before = swapped.score(requests, [ANSWER] * len(requests))
    update = WeightUpdate("trained", result.digest, manifest_of_checkpoint(job.output), tensors=read_checkpoint(job.output))
    assert swapped.swap(update).digest == result.digest
    scores, expected = (engine.score(requests, [ANSWER] * len(requests)) for engine in (swapped, started))
    assert [one.logprob for one in scores] == [one.logprob for one in expected]
    assert all(abs(one.logprob - other.logprob) > 0.1 for one, other in zip(scores, before, strict=True))
    written, other = (engine.complete(requests, Sampling(6)) for engine in (swapped, started))
    assert [one.token_ids for one in written] == [one.token_ids for one in other]


def test_adapters_train_and_are_merged_into_a_checkpoint_like_its_base(checkpoint: Path, tmp_path: Path) -> None:
    job = _job(checkpoint, tmp_path / "out", lora=Lora(rank=2), frozen=("vision_tower", "language_model"))
    run_local(job, Photos())
    assert manifest_of_checkpoint(job.output) == manifest_of_checkpoint(checkpoint)
    before, after = read_checkpoint(checkpoint), read_checkpoint(job.output)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    adapted = {name.split(".")[-2] for name in changed if group_of(name) == "language_model"}
    assert adapted in ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_proj", "k_proj", "v_proj", "out_proj"})
    assert {group_of(name) for name in changed} - {"qformer"} == {"language_model", "projector"}


@pytest.mark.slow
def test_zero_3_trains_alike(checkpoint: Path, tmp_path: Path) -> None:
    plain, zero = (run_local(_job(checkpoint, tmp_path / f"stage{stage}", zero_stage=stage), Photos()) for stage in (0, 3))
    assert dict(zero.losses) == pytest.approx(dict(plain.losses), rel=1e-4)
    assert manifest_of_checkpoint(tmp_path / "stage3") == manifest_of_checkpoint(checkpoint)
