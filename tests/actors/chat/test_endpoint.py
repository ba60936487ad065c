"""The client of chat endpoints, against a real server that is busy, slow, broken, or gone."""

from __future__ import annotations

import time
from email.utils import formatdate
from itertools import islice
from typing import Any

import pytest

from actors.chat.endpoint import Endpoint, RateLimitedError, RefusedError, SpendingCapError, UnreachableError
from actors.chat.endpoint_options import EndpointOptions
from policies.chat import Ask, ChatMessage, Usage
from tests.actors.chat.chat_server import Answer, ChatServer


def endpoint(server: ChatServer, **options: Any) -> Endpoint:
    return Endpoint(EndpointOptions(**{"url": server.url, "model": "m", "first_backoff_s": 0.01, "max_attempts": 4, **options}))


def asks(num: int, **options: Any) -> list[Ask]:
    return [Ask(str(i), (ChatMessage("system", "Be brief."), ChatMessage("user", f"number {i}")), **options) for i in range(num)]


def echo(body: dict[str, Any], number: int) -> Answer:
    return Answer(body["messages"][-1]["content"])


def test_every_ask_is_answered_with_what_it_took() -> None:
    with ChatServer(echo) as server:
        client = endpoint(server, usd_per_million_input=1.0, usd_per_million_output=2.0)
        replies = {reply.key: reply for reply in client.complete(asks(20, max_tokens=7, temperature=0.5, seed=3))}
    assert {key: reply.text for key, reply in replies.items()} == {str(i): f"number {i}" for i in range(20)}
    assert replies["4"].usage == Usage(1, 10, 5, pytest.approx(20e-6))
    assert client.usage == Usage(20, 200, 100, pytest.approx(400e-6))
    assert server.requests[0] == {
        "path": "/v1/chat/completions", "model": "m", "max_tokens": 7, "temperature": 0.5, "seed": 3,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": server.requests[0]["messages"][1]["content"]}],
    }  # fmt: skip
    assert "Authorization" not in server.headers[0]


def test_no_more_requests_run_at_once_than_allowed_and_asks_are_taken_as_they_are_needed() -> None:
    taken = []
    with ChatServer(lambda body, number: Answer(delay_s=0.02)) as server:
        replies = endpoint(server, max_concurrency=3).complete(taken.append(ask.key) or ask for ask in asks(40))
        assert len(list(islice(replies, 6))) == 6
        assert len(taken) <= 6 + 2 * 3
        assert len(list(replies)) == 34
    assert server.most_at_once == 3


def test_requests_begin_no_faster_than_the_rate() -> None:
    with ChatServer() as server:
        assert len(list(endpoint(server, requests_per_minute=1200, max_concurrency=8).complete(asks(9)))) == 9
    assert server.started_s[-1] - server.started_s[0] >= 0.3


@pytest.mark.parametrize("fault", [
    Answer(status=500), Answer(status=503), Answer(status=429), Answer(body=b"nonsense"), Answer(body=b"[" * 100_000), Answer(body=b"5"),
    Answer(body=b'{"choices": []}'), Answer(body=b'{"choices": [{"message": null}]}'), Answer(cut=True), Answer(body=b"\xff\xfe"),
])  # fmt: skip
def test_what_passes_is_asked_again(fault: Answer) -> None:
    with ChatServer(lambda body, number: fault if number < 2 else Answer("at last")) as server:
        (reply,) = endpoint(server).complete(asks(1))
    assert (reply.text, reply.failure, reply.usage.num_requests) == ("at last", "", 3)


def test_an_answer_that_is_late_is_asked_again() -> None:
    with ChatServer(lambda body, number: Answer(delay_s=1.5 if number == 0 else 0.0)) as server:
        (reply,) = endpoint(server, timeout_s=0.3).complete(asks(1))
    assert (reply.text, reply.usage.num_requests) == ("Fine.", 2)


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_holds_all_requests_back(as_date: bool) -> None:
    def busy_once(body: dict[str, Any], number: int) -> Answer:
        wait = formatdate(time.time() + 2.0, usegmt=True) if as_date else "1"
        return Answer(status=429, headers={"Retry-After": wait}) if number == 0 else Answer()

    with ChatServer(busy_once) as server:
        assert len(list(endpoint(server, max_concurrency=1).complete(asks(3)))) == 3
    assert server.started_s[1] - server.started_s[0] >= 0.95
    assert len(server.requests) == 4


def test_429_for_ever_ends_with_a_named_error_after_its_attempts() -> None:
    with (
        ChatServer(lambda body, number: Answer(status=429, body=b'{"error": "slow down"}')) as server,
        pytest.raises(RateLimitedError, match=r"no answer in 4 attempts.*slow down"),
    ):
        list(endpoint(server, max_concurrency=2).complete(asks(50)))
    assert len(server.requests) <= 8


def test_a_wait_beyond_the_bound_is_not_waited_for() -> None:
    with (
        ChatServer(lambda body, number: Answer(status=429, headers={"Retry-After": "86400"})) as server,
        pytest.raises(RateLimitedError, match="asks to wait 86400 s, more than max_retry_after_s = 300"),
    ):
        list(endpoint(server).complete(asks(50)))
    assert len(server.requests) <= 8


def test_an_endpoint_that_is_gone_ends_with_a_named_error() -> None:
    with ChatServer() as server:
        pass
    with pytest.raises(UnreachableError, match="no answer in 4 attempts"):
        list(endpoint(server).complete(asks(5)))


def test_one_request_without_an_answer_does_not_stop_the_others() -> None:
    def poisoned(body: dict[str, Any], number: int) -> Answer:
        return Answer(status=500, body=b"boom", delay_s=0.1) if body["messages"][-1]["content"] == "number 3" else Answer()

    with ChatServer(poisoned) as server:
        replies = list(endpoint(server, max_concurrency=2).complete(asks(200)))
    assert [reply.key for reply in replies if reply.failure] == ["3"]
    assert next(reply for reply in replies if reply.failure).failure == "status 500: 'boom'"
    assert len(replies) == 200


def test_a_refused_request_is_a_failure_of_its_own_and_many_in_a_row_are_one_of_the_endpoint() -> None:
    def refuses_odd(body: dict[str, Any], number: int) -> Answer:
        return Answer(status=400, body=b"too long") if int(body["messages"][-1]["content"].split()[1]) % 2 else Answer()

    with ChatServer(refuses_odd) as server:
        replies = list(endpoint(server).complete(asks(60)))
    assert sum(reply.failure == "status 400: 'too long'" for reply in replies) == 30
    with (
        ChatServer(lambda body, number: Answer(status=400, body=b"unknown option")) as server,
        pytest.raises(RefusedError, match="refused 20 requests in a row; the last: status 400: 'unknown option'"),
    ):
        list(endpoint(server, max_concurrency=1).complete(asks(60)))
    assert len(server.requests) == 20


@pytest.mark.parametrize("status", [301, 401, 403, 404])
def test_a_wrong_key_address_or_model_ends_at_once(status: int) -> None:
    answer = Answer(status=status, headers={"Location": "http://127.0.0.1:9/elsewhere"})
    with (
        ChatServer(lambda body, number: answer) as server,
        pytest.raises(RefusedError, match=f"status {status}.*check the URL, the model's name and the key"),
    ):
        list(endpoint(server, max_concurrency=1).complete(asks(10)))
    assert len(server.requests) == 1


def test_the_cap_is_never_passed_and_what_was_answered_is_given_out() -> None:
    with ChatServer(lambda body, number: Answer(usage=(1000, 500), delay_s=0.01)) as server:
        client = endpoint(server, usd_per_million_input=1000.0, usd_per_million_output=1000.0, max_usd=20.0, spent_usd=3.0)
        replies = []
        with pytest.raises(SpendingCapError, match=r"spent 19.5000 USD of max_usd = 20"):
            replies.extend(client.complete([Ask(ask.key, (ChatMessage("user", "x" * 984),), max_tokens=500) for ask in asks(50)]))
        collected = list(_until_stopped(endpoint(server, usd_per_million_input=1e3, usd_per_million_output=1e3, max_usd=7.0)))
    assert client.usage.usd == pytest.approx(16.5)
    assert client.usage.num_requests == 11
    assert len(collected) == 4
    assert len(server.requests) == 15


def _until_stopped(client: Endpoint) -> Any:
    try:
        yield from client.complete([Ask(ask.key, (ChatMessage("user", "x" * 984),), max_tokens=500) for ask in asks(50)])
    except SpendingCapError:
        return


def test_work_that_may_have_been_charged_counts_at_its_worst() -> None:
    with ChatServer(lambda body, number: Answer(body=b"{", usage=None) if number == 0 else Answer(usage=None)) as server:
        client = endpoint(server, usd_per_million_output=1000.0, max_usd=1e6)
        list(client.complete([Ask("a", (ChatMessage("user", "x" * 84),), max_tokens=50)]))
    assert client.usage == Usage(2, 200, 100, pytest.approx(0.1))


def test_the_key_comes_from_the_environment_and_is_in_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-very-secret")

    def tells(body: dict[str, Any], number: int) -> Answer:
        return Answer(status=401, body=b"Incorrect API key provided: sk-very-secret")

    with ChatServer(tells) as server:
        client = endpoint(server, api_key_env="TEST_KEY")
        with pytest.raises(RefusedError) as caught:
            list(client.complete(asks(1)))
        assert server.headers[0]["Authorization"] == "Bearer sk-very-secret"
    assert "secret" not in str(caught.value)
    assert "Incorrect API key provided: ***" in str(caught.value)
    assert "secret" not in repr(client.options)


@pytest.mark.parametrize(("options", "expected"), [
    ({"url": "ftp://x"}, "expected one such as http"),
    ({"url": "127.0.0.1:8000"}, "expected one such as http"),
    ({"url": "http://user:secret@h/v1"}, "contains a user or a query"),
    ({"url": "http://h/v1?key=secret"}, "contains a user or a query"),
    ({"model": ""}, "has no name"),
    ({"max_concurrency": 0}, "max_concurrency is 0"),
    ({"timeout_s": float("nan")}, "timeout_s is nan"),
    ({"max_usd": 5.0}, "without prices"),
    ({"api_key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE"),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        Endpoint(EndpointOptions(**{"url": "http://127.0.0.1:1/v1", "model": "m", **options}))
    assert "secret" not in str(caught.value)


def test_further_fields_are_sent_and_none_takes_one_out() -> None:
    with ChatServer() as server:
        list(endpoint(server, extra_body={"max_tokens": None, "max_completion_tokens": 9}).complete(asks(1)))
    assert server.requests[0]["max_completion_tokens"] == 9
    assert "max_tokens" not in server.requests[0]


def test_a_caller_that_stops_gives_up_what_is_in_flight() -> None:
    with ChatServer(lambda body, number: Answer(delay_s=0.0 if number == 0 else 30.0)) as server:
        started = time.monotonic()
        replies = endpoint(server, max_concurrency=4).complete(asks(10))
        assert next(replies).text == "Fine."
        replies.close()
        assert time.monotonic() - started < 15.0


def test_an_error_of_the_asks_reaches_the_caller() -> None:
    def broken() -> Any:
        yield from asks(2)
        raise KeyError("no more")

    with ChatServer() as server, pytest.raises(KeyError, match="no more"):
        list(endpoint(server).complete(broken()))
