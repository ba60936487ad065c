"""A MiniGPT-4 is put together from a vision tower with Q-Former and a language model, and trains its linear layer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, Blip2ForConditionalGeneration, LlamaConfig, LlamaForCausalLM, T5Config
from typer.testing import CliRunner

from actors.engines.base import Request, Sampling
from actors.engines.prompting import Prompter
from actors.engines.transformers import TransformersEngine
from actors.engines.weights import read_checkpoint
from actors.processors import load_processor
from actors.training.checkpoint import group_of
from actors.training.core import run_local
from actors.training.inputs.encoding import IGNORED, ConversationEncoder
from loop.cli import app
from loop.config.run_config import load_config
from loop.config.train_config import load_train_config
from loop.errors import UserError
from loop.models.assemble import assemble
from loop.models.seed.model import build_tokenizer, words
from loop.sources.shapes.render import render
from loop.sources.shapes.scene import image_id, scene_of
from tests.actors.engines.family_models import TEXT, save_blip2, save_instructblip
from tests.actors.training.helpers import Shapes, job_of, save_base
from tests.paths import RECIPES

RECIPE = RECIPES / "vigc-minigpt4-7b.yaml"


def save_language_model(folder: Path, **config: Any) -> Path:
    """A Llama without padding and image tokens, as Vicuna is published."""
    torch.manual_seed(1)
    tokenizer = build_tokenizer([word for word in words() if word not in ("<image>", "<pad>")])
    tokenizer.pad_token = None
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    LlamaForCausalLM(LlamaConfig(**{**TEXT, **ends, "vocab_size": len(tokenizer), **config})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    makers = {"blip-2": save_blip2, "instructblip": save_instructblip, "llama": save_language_model}
    return {name: make(folder / name) for name, make in makers.items()}


@pytest.fixture(scope="module", params=["blip-2", "instructblip"])
def vision(request: pytest.FixtureRequest, parts: dict[str, Path]) -> Path:
    return parts[request.param]


@pytest.fixture(scope="module")
def assembled(vision: Path, parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("assembled") / "minigpt4"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loop.models.assemble._SHARD_BYTES", 1 << 17)
        assemble(str(vision), str(parts["llama"]), out, "float32", "minigpt4", seed=3)
    return out


def test_every_part_is_taken_over_and_the_linear_layer_is_new(vision: Path, assembled: Path, parts: dict[str, Path]) -> None:
    seen, said, whole = read_checkpoint(vision), read_checkpoint(parts["llama"]), read_checkpoint(assembled)
    assert len(list(assembled.glob("model-*.safetensors"))) > 1
    for name, tensor in said.items():
        assert torch.equal(whole[f"language_model.{name}"][: len(tensor)], tensor)
    rows = whole["language_model.model.embed_tokens.weight"]
    assert len(rows) == len(said["model.embed_tokens.weight"]) + 1
    assert torch.allclose(rows[-1], rows[:-1].mean(0))
    assert torch.equal(whole["query_tokens"], seen["query_tokens"])
    towers = [name for name in whole if group_of(name) == "vision_tower"]
    assert all(torch.equal(whole[name], seen[name]) for name in towers)
    assert {group_of(name) for name in whole} == {"vision_tower", "qformer", "projector", "language_model"}
    layer = torch.nn.Linear(seen["query_tokens"].shape[-1], TEXT["hidden_size"])
    assert whole["language_projection.weight"].shape == layer.weight.shape
    assert 0 < float(whole["language_projection.weight"].std()) < 1


def test_the_qformer_sees_what_its_source_sees_without_a_text(vision: Path, assembled: Path) -> None:
    pixels = torch.rand(1, 3, *[AutoModelForImageTextToText.from_pretrained(vision).config.vision_config.image_size] * 2)
    source: Any = AutoModelForImageTextToText.from_pretrained(vision)
    whole: Any = AutoModelForImageTextToText.from_pretrained(assembled)
    text = {"qformer_input_ids": torch.ones(1, 1, dtype=torch.long), "qformer_attention_mask": torch.zeros(1, 1, dtype=torch.long)}
    is_instructed = source.config.model_type == "instructblip"
    with torch.no_grad():
        queries = source.eval().get_image_features(pixels, **text if is_instructed else {}).qformer_outputs.last_hidden_state
        found = whole.eval().get_image_features(pixels).qformer_outputs.last_hidden_state
    assert torch.allclose(found, queries[:, : found.shape[1]], atol=1e-5)


def test_the_engine_decodes_as_its_own_generate(assembled: Path) -> None:
    model: Any = AutoModelForImageTextToText.from_pretrained(assembled).eval()
    assert isinstance(model, Blip2ForConditionalGeneration)
    processor, image = load_processor(assembled), render(scene_of(image_id(1, 0, 0.1)))
    request = Request(image, "What is at the center?")
    prompt = Prompter(assembled).render(request)
    assert prompt == "<s>###Human: What is at the center? ###Assistant:"
    inputs = processor(text=[prompt], images=[image], return_tensors="pt", add_special_tokens=False)
    banned = [model.config.image_token_id, processor.tokenizer.pad_token_id]
    [expected] = model.generate(**inputs, max_new_tokens=8, do_sample=False, suppress_tokens=banned)[:, inputs["input_ids"].shape[1] :]
    [found] = TransformersEngine(assembled).complete([request], Sampling(8))
    assert len(found.token_ids) > 1
    assert list(found.token_ids) == expected.tolist()[: len(found.token_ids)]


def test_the_loss_is_on_the_answers_between_the_turns_of_minigpt4(assembled: Path) -> None:
    encoder = ConversationEncoder(load_processor(assembled), 512)
    encoded = encoder.encode((("What is it?", "A red ring."), ("Where is it?", "There is a red ring.")), (48, 48))
    tokenizer = load_processor(assembled).tokenizer
    assert " ".join(tokenizer.decode(encoded.ids[encoded.labels != IGNORED]).split()) == "A red ring.</s> There is a red ring.</s>"
    prompter = Prompter(assembled)
    request = Request(render(scene_of(image_id(1, 0, 0.1))), "What is it?", "A red")
    assert prompter.render(request) == "<s>###Human: What is it? ###Assistant: A red"
    assert prompter.render_answered(request, "ring.") == "<s>###Human: What is it? ###Assistant: A red ring.</s>"


def test_the_recipe_trains_the_linear_layer_only(assembled: Path, tmp_path: Path) -> None:
    frozen = load_config(RECIPE).training.frozen
    job = job_of(assembled, tmp_path / "out", num_steps=6, frozen=frozen)
    result = run_local(job, Shapes())
    before, after = read_checkpoint(assembled), read_checkpoint(job.output)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"language_projection.weight", "language_projection.bias"}
    assert result.final_loss < result.losses[0][1]


def test_the_stages_before_the_recipe_have_the_published_values() -> None:
    config = load_train_config(RECIPES / "minigpt4-stages.yaml")
    align, vigc = (stage.training for stage in config.stages)
    assert align.frozen == vigc.frozen == ("vision_tower", "qformer", "language_model")
    assert (align.num_steps, round(align.warmup_share * align.steps_for(0))) == (20_000, 5_000)
    assert round(vigc.warmup_share * vigc.steps_for(157_712), -1) == 1_000
    assert load_config(RECIPE).model == f"runs/{config.name}/checkpoints/2-{config.stages[1].name}"


def test_a_model_with_tied_weights_is_written_once(parts: dict[str, Path], tmp_path: Path) -> None:
    tied = save_language_model(tmp_path / "tied", tie_word_embeddings=True)
    told = ["--vision", str(parts["blip-2"]), "--language-model", str(tied), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["assemble", *told, "--chat-template", "instructblip"])
    assert done.exit_code == 0, done.output
    assert "parameters in bfloat16 in" in done.output
    whole = read_checkpoint(tmp_path / "out")
    assert "language_model.lm_head.weight" not in whole
    assert {tensor.dtype for tensor in whole.values()} == {torch.bfloat16}


def _without(folder: Path, out: Path, *names: str) -> Path:
    shutil.copytree(folder, out)
    for name in names:
        (out / name).unlink()
    return out


def test_parts_that_do_not_fit_are_refused_in_one_line_and_leave_nothing(parts: dict[str, Path], tmp_path: Path) -> None:
    llava, blip2, llama = save_base(tmp_path / "llava"), parts["blip-2"], parts["llama"]
    mute = _without(llama, tmp_path / "mute", "tokenizer.json", "tokenizer_config.json")
    blind = _without(blip2, tmp_path / "blind", "processor_config.json")
    hollow = _without(llama, tmp_path / "hollow", "model.safetensors")
    shutil.copytree(llama, tmp_path / "other")
    shutil.copyfile(llava / "model.safetensors", tmp_path / "other" / "model.safetensors")
    T5Config().save_pretrained(tmp_path / "t5")
    shutil.copyfile(llama / "model.safetensors", tmp_path / "t5" / "model.safetensors")
    for vision, speaker, template, expected in (
        (llava, llama, "minigpt4", "is a llava model, which has no Q-Former; give a BLIP-2 or an InstructBLIP"),
        (blip2, tmp_path / "t5", "minigpt4", "is an encoder-decoder t5 model; give a decoder-only text model"),
        (blip2, llava, "minigpt4", "is a llava model; give a decoder-only text model"),
        (blip2, mute, "minigpt4", "has no tokenizer"),
        (blind, llama, "minigpt4", "has no image processor"),
        (blip2, hollow, "minigpt4", "cannot be read as safetensors"),
        (blip2, tmp_path / "other", "minigpt4", "lacks it: "),
        (blip2, llama, "mini", "give a Jinja file, or one of instructblip, llava, minigpt4"),
        (tmp_path / "none", llama, "minigpt4", "cannot be read"),
    ):
        with pytest.raises(UserError, match=expected) as refused:
            assemble(str(vision), str(speaker), tmp_path / "out", "float32", template, seed=0)
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="exists; choose another folder"):
        assemble(str(blip2), str(llama), tmp_path, "float32", "minigpt4", seed=0)
