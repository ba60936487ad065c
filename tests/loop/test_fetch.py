"""A published model becomes a folder that a run takes: one dtype, names of today, a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from actors.engines.base import Request, WeightUpdate
from actors.engines.prompting import Prompter
from actors.engines.transformers import TransformersEngine
from actors.engines.weights import digest_of, manifest_of, read_checkpoint
from actors.processors import load_processor
from actors.training.inputs.encoding import IGNORED, ConversationEncoder
from loop.config.engine_config import TransformersEngineConfig
from loop.errors import UserError
from loop.models.checks import check_model
from loop.models.fetch import fetch
from loop.sources.shapes.render import render
from loop.sources.shapes.scene import image_id, scene_of
from tests.actors.engines.family_models import save_instructblip
from tests.actors.training.helpers import save_base

TEMPLATE = "instructblip"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA in float16, as it is published."""
    folder = tmp_path_factory.mktemp("published")
    model: Any = AutoModelForImageTextToText.from_pretrained(save_base(folder / "float32"), dtype=torch.float16)
    model.save_pretrained(folder / "float16")
    load_processor(folder / "float32").save_pretrained(folder / "float16")
    return folder / "float16"


@pytest.fixture(scope="module")
def without_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An InstructBLIP as it is published."""
    folder = save_instructblip(tmp_path_factory.mktemp("instructblip"))
    (folder / "chat_template.jinja").unlink()
    return folder


def test_what_is_fetched_is_served_and_what_is_published_is_not(published: Path, tmp_path: Path) -> None:
    engine = TransformersEngineConfig(dtype="bfloat16")
    with pytest.raises(UserError, match=r"are float16, but engine\.dtype is bfloat16"):
        check_model(str(published), engine)

    num_parameters = fetch(str(published), tmp_path / "models" / "llava", "bfloat16")

    tensors = read_checkpoint(tmp_path / "models" / "llava")
    assert num_parameters == sum(tensor.numel() for tensor in tensors.values())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    given = read_checkpoint(published)
    assert all(torch.equal(tensor, given[name].bfloat16()) for name, tensor in tensors.items())
    served = TransformersEngine(tmp_path / "models" / "llava", dtype="bfloat16")
    served.swap(WeightUpdate("r0", digest_of(tensors), manifest_of(tensors), tensors=tensors))
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["llava"], "nothing half-written is left"


def test_a_model_without_a_template_is_refused_and_leaves_nothing(without_template: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no chat template; write a copy with one: `vigc fetch .* --chat-template instructblip`"):
        fetch(str(without_template), tmp_path / "out", "float32")
    assert list(tmp_path.iterdir()) == []


def test_the_template_of_instructblip_says_what_is_said_and_trains_the_answer(without_template: Path, tmp_path: Path) -> None:
    fetch(str(without_template), tmp_path / "out", "float32", TEMPLATE)

    prompter = Prompter(tmp_path / "out")
    request = Request(render(scene_of(image_id(1, 0, 0.1))), "What is it?", "A red ring.")
    assert prompter.render(Request(request.image, "What is it?")) == "<s>What is it?"
    assert prompter.render(request) == "<s>What is it? A red ring."
    assert prompter.render_answered(request, "So yes.") == "<s>What is it? A red ring. So yes.</s>"
    encoder = ConversationEncoder(load_processor(tmp_path / "out"), 512)
    encoded = encoder.encode((("What is it?", "A red ring."), ("Where is it?", "There is a red ring.")), (48, 48))
    said = prompter.tokenizer.decode(encoded.ids[encoded.labels != IGNORED])
    assert " ".join(said.split()) == "A red ring.</s> There is a red ring.</s>"
    whole = prompter.tokenizer.decode([token for token in encoded.ids if token != encoder._image_id])
    assert " ".join(whole.split()) == "<s>What is it? A red ring.</s> Where is it? There is a red ring.</s>"


def test_the_template_of_llava_has_vicunas_turns(published: Path, tmp_path: Path) -> None:
    fetch(str(published), tmp_path / "out", "float32", "llava")
    prompter, image = Prompter(tmp_path / "out"), render(scene_of(image_id(1, 0, 0.1)))
    assert prompter.render(Request(image, "What is it?")) == "<s>USER: <image>\nWhat is it? ASSISTANT:"
    assert prompter.render(Request(image, "What is it?", "A red")) == "<s>USER: <image>\nWhat is it? ASSISTANT: A red"
    answered = prompter.render_answered(Request(image, "What is it?", "A red"), "ring.")
    assert answered == "<s>USER: <image>\nWhat is it? ASSISTANT: A red ring.</s>"


def test_what_cannot_be_fetched_is_one_clear_line(published: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists; choose another folder"):
        fetch(str(published), tmp_path, "bfloat16")
    with pytest.raises(UserError, match="cannot read the chat template"):
        fetch(str(published), tmp_path / "out", "bfloat16", str(tmp_path / "none.jinja"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch(str(tmp_path / "empty"), tmp_path / "out", "bfloat16")
