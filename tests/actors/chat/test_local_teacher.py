"""A teacher that runs here: a tiny text model, its prompts, its limits, and which models are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from actors.chat.local import LocalChat, render_chat
from actors.chat.teacher import ChatTeacher
from loop.config.run_config import EMBEDDED_MODEL
from loop.errors import UserError
from loop.models.checks import check_text_model
from loop.models.seed.model import build_processor
from loop.sources.shapes.source import ShapesImages
from loop.sources.worlds.teaching import text_view
from loop.teaching.teach import TeachOptions, teach
from policies.chat import ChatMessage
from policies.generation.instructions import QuestionType
from policies.teaching.prompts import TextView, teaching_task

TEMPLATE = (
    "{% for message in messages %}{{ message.role }} {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama over the vocabulary of the embedded world."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    tokenizer: Any = build_processor().tokenizer
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=2048, pad_token_id=0, bos_token_id=2, eos_token_id=3, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tasks(num: int) -> list[Any]:
    source = ShapesImages(1, 0.0, 0.1, num)
    return [teaching_task(text_view(source, one), QuestionType.DETAIL, 0) for one in source.image_ids()]


def test_a_model_writes_about_every_image_the_same_again_and_batches_do_not_matter(model: Path) -> None:
    check_text_model(str(model))
    one, three = ({reply.key: reply for reply in ChatTeacher("x", LocalChat(model, size), 12, 0.0).write(tasks(4))} for size in (1, 3))
    assert set(one) == {task.key for task in tasks(4)}
    assert {key: reply.text for key, reply in one.items()} == {key: reply.text for key, reply in three.items()}
    assert all(reply.usage.num_input_tokens > 50 and 0 < reply.usage.num_output_tokens <= 12 for reply in one.values())
    assert len({reply.text for reply in one.values()}) > 1
    sampled = [[reply.text for reply in ChatTeacher("x", LocalChat(model, 2), 12, 1.0).write(tasks(4))] for _ in range(2)]
    assert sampled[0] == sampled[1] != [reply.text for reply in one.values()]


def test_a_prompt_beyond_the_window_is_a_failure_of_its_own(model: Path) -> None:
    long = teaching_task(TextView("long", "x.png", ("red ring " * 110,) * 20), QuestionType.COMPLEX, 0)
    replies = list(ChatTeacher("x", LocalChat(model, 2), 8, 0.0).write([long, *tasks(1)]))
    assert [bool(reply.failure) for reply in replies] == [True, False]
    assert "do not fit into the model's 2048" in replies[0].failure


def test_marks_in_captions_end_no_turn_and_a_template_without_system_role_gets_its_text_all_the_same() -> None:
    tokenizer: Any = build_processor().tokenizer
    chat = [ChatMessage("system", "Look."), ChatMessage("user", "a </s> b")]
    tokenizer.chat_template = TEMPLATE
    assert render_chat(tokenizer, chat) == "system Look.</s>user a < /s> b</s>assistant "
    tokenizer.chat_template = NO_SYSTEM
    assert render_chat(tokenizer, chat) == "user Look.\n\na < /s> b</s>assistant "


def test_it_goes_through_the_whole_command(model: Path, tmp_path: Path) -> None:
    asked = TeachOptions(tmp_path / "out", world=ShapesImages(1, 0.0, 0.1, 2), teacher=str(model), max_tokens=8)
    summary = teach(asked, Console(quiet=True))
    assert summary["num_finished"] == 6
    assert sum(summary["rejected"].values()) + summary["num_records"] == 6


def test_models_that_cannot_teach_are_refused_in_one_line(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a llava model; expected a text model"):
        check_text_model(str(EMBEDDED_MODEL))
    bare = Path(shutil.copytree(model, tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"the chat template of model .* cannot be used"):
        check_text_model(str(bare))
    coded = Path(shutil.copytree(model, tmp_path / "coded"))
    config = json.loads((coded / "config.json").read_text())
    (coded / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(UserError, match="needs its own code"):
        check_text_model(str(coded))
    torn = Path(shutil.copytree(model, tmp_path / "torn"))
    weights = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        check_text_model(str(torn))
