"""Both protocols of chat endpoints against a real server: what is sent, what counts as an answer, and what a model refuses."""

from __future__ import annotations

import base64
import json
import logging
from typing import Any

import pytest

from actors.chat.apis import ApiName
from actors.chat.endpoint import Endpoint, RefusedError, UnreachableError
from actors.chat.endpoint_options import EndpointOptions
from policies.chat import Ask, ChatImage, ChatMessage, Reply, Usage
from tests.actors.chat.chat_server import Answer, ChatServer

SEEN = ChatImage(b"\xff\xd8jpeg")
MESSAGES = (ChatMessage("system", "Be brief."), ChatMessage("user", "What is it?", (SEEN,)))
BASE64 = base64.b64encode(SEEN.data).decode()


def ask(server: ChatServer, api: ApiName, messages: tuple[ChatMessage, ...] = MESSAGES, **options: Any) -> Reply:
    given = {"url": server.url, "model": "m", "api": api, "first_backoff_s": 0.01, "max_attempts": 3, **options}
    [reply] = Endpoint(EndpointOptions(**given)).complete([Ask("a", messages, 7, 0.5, 3)])
    return reply


def test_anthropics_protocol_is_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    turns = (*MESSAGES, ChatMessage("assistant", "A cat."), ChatMessage("user", "Where?"))
    with ChatServer(lambda body, number: Answer("On the mat.", usage=(1500, 4))) as server:
        reply = ask(server, "anthropic", turns, api_key_env="TEST_KEY", usd_per_million_input=2.0, usd_per_million_output=10.0)
    assert reply == Reply("a", "On the mat.", Usage(1, 1500, 4, pytest.approx(0.00304)))
    assert server.requests == [{
        "path": "/v1/messages", "model": "m", "system": "Be brief.", "max_tokens": 7, "temperature": 0.5,
        "messages": [
            {"role": "user", "content": [
                {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": BASE64}},
                {"type": "text", "text": "What is it?"},
            ]},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": "Where?"},
        ],
    }]  # fmt: skip
    headers = {name.lower(): value for name, value in server.headers[0].items()}
    assert (headers["x-api-key"], headers["anthropic-version"]) == ("sk-secret", "2023-06-01")
    assert "authorization" not in headers


def test_openais_protocol_shows_images_as_data_urls() -> None:
    with ChatServer() as server:
        assert ask(server, "openai").text == "Fine."
    assert server.requests[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{BASE64}"}}, {"type": "text", "text": "What is it?"},
        ]},
    ]  # fmt: skip


def test_reported_cache_tokens_count_as_read() -> None:
    usage = {"input_tokens": 10, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 100, "output_tokens": 2}
    body = json.dumps({"content": [{"type": "text", "text": "Yes."}], "stop_reason": "end_turn", "usage": usage}).encode()
    with ChatServer(lambda _, number: Answer(body=body)) as server:
        assert ask(server, "anthropic").usage == Usage(1, 115, 2)


@pytest.mark.parametrize(("api", "finished", "cut_off"), [("openai", "stop", "length"), ("anthropic", "end_turn", "max_tokens")])
def test_reasoning_is_no_answer(api: ApiName, finished: str, cut_off: str) -> None:
    thought = "Is it a dog?"
    answers = [
        Answer("A cat.", reasoning=thought, finish_reason=finished), Answer("A c", reasoning=thought, finish_reason=cut_off),
        Answer(None, reasoning=thought, finish_reason=cut_off), Answer("<think>Is it", finish_reason=cut_off),
        Answer("A cat.", finish_reason=finished),
    ]  # fmt: skip
    with ChatServer(lambda body, number: answers[number]) as server:
        replies = [ask(server, api) for _ in answers]
    assert [(one.text, one.finish_reason, bool(one.shortfall)) for one in replies] == [
        ("A cat.", "stop", False), ("A c", "length", False), ("", "reasoning", True), ("<think>Is it", "length", True),
        ("A cat.", "stop", False),
    ]  # fmt: skip
    assert "within its reasoning" in replies[2].shortfall


def test_reasoning_that_is_only_counted_is_recognised() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "completion_tokens_details": {"reasoning_tokens": 7}}
    content = {"choices": [{"message": {"content": ""}, "finish_reason": "length"}], "usage": usage}
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "A cat."}]
    in_parts = {"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]}
    with ChatServer(lambda body, number: Answer(body=json.dumps([content, in_parts][number]).encode())) as server:
        assert ask(server, "openai").finish_reason == "reasoning"
        assert ask(server, "openai").text == "A cat."


def test_refusals_are_told_apart_from_answers() -> None:
    refused = {"choices": [{"message": {"content": None, "refusal": "I will not."}, "finish_reason": "stop"}]}
    with ChatServer(lambda body, number: Answer(body=json.dumps(refused).encode())) as server:
        reply = ask(server, "openai")
    assert (reply.text, reply.finish_reason, reply.shortfall) == ("I will not.", "refusal", "the model refused to answer")
    for api, reason in (("openai", "content_filter"), ("anthropic", "refusal")):
        with ChatServer(lambda body, number, reason=reason: Answer("", finish_reason=reason)) as server:
            assert ask(server, api).finish_reason == "refusal"


def error(message: str, **more: Any) -> bytes:
    return json.dumps({"type": "error", "error": {"type": "invalid_request_error", "message": message, **more}}).encode()


def test_fields_that_a_model_refuses_are_replaced_once_for_all_requests(caplog: pytest.LogCaptureFixture) -> None:
    def reasoner(body: dict[str, Any], number: int) -> Answer:
        if "max_tokens" in body:
            text = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            return Answer(status=400, body=error(text, param="max_tokens", code="unsupported_parameter"))
        if "temperature" in body:
            text = "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default (1) value is supported."
            return Answer(status=400, body=error(text, param="temperature", code="unsupported_value"))
        return Answer(str(body["max_completion_tokens"]))

    with ChatServer(reasoner) as server, caplog.at_level(logging.WARNING):
        client = Endpoint(EndpointOptions(server.url, "m", max_concurrency=1))
        replies = list(client.complete([Ask(str(i), MESSAGES, 7, 0.5, 3) for i in range(4)]))
    assert [reply.text for reply in replies] == ["7"] * 4
    assert len(server.requests) == 6
    assert [record.getMessage().partition(" refuses ")[2] for record in caplog.records] == [
        "max_tokens; max_completion_tokens is sent in its place", "temperature; nothing is sent in its place",
    ]  # fmt: skip


def test_anthropic_models_that_take_no_temperature_are_asked_without() -> None:
    def reasoner(body: dict[str, Any], number: int) -> Answer:
        return Answer(status=400, body=error("`temperature` is deprecated for this model.")) if "temperature" in body else Answer()

    with ChatServer(reasoner) as server:
        assert ask(server, "anthropic").text == "Fine."
        own = Endpoint(EndpointOptions(server.url, "m", "anthropic", max_concurrency=1, extra_body={"temperature": 1.0}))
        with pytest.raises(RefusedError, match="refused 20 requests in a row"):
            list(own.complete([Ask(str(i), MESSAGES) for i in range(30)]))


@pytest.mark.parametrize("status", [429, 500, 529])
def test_an_overloaded_server_is_asked_again(status: int) -> None:
    overloaded = Answer(status=status, body=b'{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}')
    with ChatServer(lambda body, number: overloaded if number < 2 else Answer("At last.")) as server:
        assert ask(server, "anthropic").text == "At last."


def test_faults_of_an_anthropic_endpoint_are_named() -> None:
    with (
        ChatServer(lambda body, number: Answer(status=401, body=error("invalid x-api-key"))) as server,
        pytest.raises(RefusedError, match=r"status 401.*invalid x-api-key.*check the URL, the model's name and the key"),
    ):
        ask(server, "anthropic")
    with (
        ChatServer(lambda body, number: Answer(body=b'{"choices": []}')) as server,
        pytest.raises(UnreachableError, match="no list of content blocks"),
    ):
        ask(server, "anthropic")
    with ChatServer(lambda body, number: Answer(status=400, body=error("max_tokens: 9 > 8, which is the maximum"))) as server:
        assert "which is the maximum" in ask(server, "anthropic").failure
    with pytest.raises(ValueError, match="the endpoint's api is 'gemini'; expected one of openai, anthropic"):
        EndpointOptions("http://h/v1", "m", "gemini")  # pyright: ignore[reportArgumentType]
