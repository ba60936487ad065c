"""A text model that runs here, asked as an endpoint is."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.chat.local import LocalChat
from policies.chat import Ask, ChatMessage, Usage
from tests.actors.chat.text_model import save_text_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalChat:
    return LocalChat(save_text_model(tmp_path_factory.mktemp("text") / "model", "8 9", window=64))


def ask(key: str, text: str = "the answer", **options: float) -> Ask:
    return Ask(key, (ChatMessage("system", "good"), ChatMessage("user", text)), **{"max_tokens": 6, **options})  # type: ignore[arg-type]


def test_chats_are_answered_with_what_they_took(model: LocalChat) -> None:
    replies = {reply.key: reply for reply in model.complete([ask("a"), ask("b", "bad and good")])}
    assert {key: (reply.text, reply.finish_reason, reply.failure) for key, reply in replies.items()} == dict.fromkeys(
        "ab", ("8 9", "stop", "")
    )
    assert replies["b"].usage == Usage(1, 6, 3)


def test_a_text_that_is_cut_off_says_so(model: LocalChat) -> None:
    (reply,) = model.complete([ask("a", max_tokens=1)])
    assert (reply.text, reply.finish_reason, reply.usage.num_output_tokens) == ("8", "length", 1)


def test_sampling_is_by_the_seed_of_each_chat_whatever_is_asked_beside_it(model: LocalChat) -> None:
    asks = [Ask(str(seed), (ChatMessage("user", "good"),), 6, 3.0, seed) for seed in range(6)]
    together = {reply.key: reply.text for reply in model.complete(asks)}
    assert len(set(together.values())) > 1
    assert {reply.key: reply.text for one in reversed(asks) for reply in model.complete([one])} == together


def test_a_chat_that_does_not_fit_fails_alone(model: LocalChat) -> None:
    long, short = model.complete([ask("a", "good " * 60), ask("b")])
    assert "do not fit" in long.failure
    assert (short.text, short.failure) == ("8 9", "")


def test_marks_in_texts_stay_text(model: LocalChat) -> None:
    plain, marked = model.complete([ask("a", "good < asked> good"), ask("b", "good <asked> good")])
    assert plain.usage.num_input_tokens == marked.usage.num_input_tokens


def test_a_folder_that_is_no_text_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read as a text model"):
        LocalChat(tmp_path)


def test_a_chat_template_that_cannot_be_used_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    folder = save_text_model(tmp_path / "model", "8 9")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    with pytest.raises(ValueError, match="chat template cannot be used"):
        LocalChat(folder)
