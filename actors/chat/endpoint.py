"""A client of chat endpoints, for teachers and judges: answers many chats and reports their cost. `actors.chat.apis` has the protocols.

Limits the concurrent requests and the requests per minute. Transient errors (429, 5xx, no connection, timeout, an answer that is
not JSON) are retried after exponential backoff with full jitter. A `Retry-After` delays all requests, because limits apply to an
account. The spending cap is strict: a request is made only if its worst case still fits.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from actors.chat.apis import APIS, REPLACEMENTS, Completion, MalformedReplyError, refused_field
from actors.chat.endpoint_options import EndpointOptions
from policies.chat import Ask, Reply, Usage

log = logging.getLogger(__name__)

_MAX_REPLY_BYTES = 8 << 20
_MAX_QUOTED = 200
"""Characters quoted from a server in an error."""
_MAX_BACKOFF_S = 60.0
_MAX_TEMPLATE_TOKENS_PER_MESSAGE = 16
"""Most tokens that a chat template adds to a message; with one token per byte of text, this bounds the input of a request."""
_MAX_IMAGE_TOKENS = 40_000
"""Most input tokens of an image: the largest charge that is published, for six tiles at 5,667 tokens each and one overview at 2,833."""
_MAX_REFUSED_IN_A_ROW = 20
"""Refusals in a row, without an answer, after which the fault is not in the requests."""
_TRANSIENT = (408, 409, 425, 429)
_PERMANENT = (401, 402, 403, 404, 405, 410)
"""Statuses that every request would get: the key, account, address or model is wrong."""


class EndpointError(RuntimeError):
    """The endpoint answers no more requests. Earlier answers have been yielded."""


class RateLimitedError(EndpointError):
    """The endpoint kept returning 429, or asks for a wait beyond the bound."""


class UnreachableError(EndpointError):
    """No attempt gave a usable answer: no connection, timeouts, server errors, or malformed answers."""


class RefusedError(EndpointError):
    """The endpoint refuses the requests: a wrong key, address, model or option."""


class SpendingCapError(EndpointError):
    """The spending cap leaves no room for another request."""


class _TransientError(Exception):
    """An attempt failed but the next may succeed. `billed`: the attempt may have been charged all the same."""

    def __init__(self, text: str, *, limited: bool = False, billed: bool = False) -> None:
        super().__init__(text)
        self.limited, self.billed = limited, billed


class _RequestError(Exception):
    """The endpoint refuses this request; others may be answered."""


class Endpoint:
    """One endpoint. Every `complete` is a separate session; `usage` sums over all of them."""

    def __init__(self, options: EndpointOptions) -> None:
        """
        Raises:
            ValueError: the key's environment variable is not set, or its value cannot be a key.
        """
        self.options = options
        self.api = APIS[options.api]
        self.usage = Usage()
        self._replaced: dict[str, str | None] = {}
        """Fields that the model refuses, and those in their place."""
        self._api_key = _key_of(options.api_key_env)

    def complete(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """Yield the reply to every ask, each as soon as it is ready; asks are consumed as requests become free.

        Requests run while the caller waits for the next reply. Closing the iterator cancels requests in flight.

        Raises:
            RateLimitedError, UnreachableError, RefusedError: a request used up its attempts, and no other was answered meanwhile.
            SpendingCapError: the cap leaves no room. As with the others, replies to requests in flight are yielded first.
        """
        with asyncio.Runner() as runner:
            session = _Session(self, iter(asks))
            try:
                while replies := runner.run(session.next_replies()):
                    yield from replies
            finally:
                try:
                    runner.run(session.close())
                except RuntimeError:  # a Ctrl-C in the event loop's own code leaves a stop request behind, for one run
                    runner.run(session.close())
            if session.ended_by is not None:
                raise session.ended_by

    def headers(self) -> dict[str, str]:
        return self.api.headers(self._api_key)

    def body(self, ask: Ask) -> dict[str, Any]:
        """The JSON of a request."""
        body = self.api.body(self.options.model, ask)
        for name, other in self._replaced.items():
            value = body.pop(name, None)
            if other is not None:
                body[other] = value
        return {name: value for name, value in (body | self.options.extra_body).items() if value is not None}

    def adapt(self, error: str, body: dict[str, Any]) -> bool:
        """Whether later requests will lack a field that the model refuses, as an error says of a request with this body."""
        name = refused_field(error, body)
        if name is None or name in self.options.extra_body:
            return False
        if name not in self._replaced:
            self._replaced[name] = REPLACEMENTS[name]
            instead = REPLACEMENTS[name] or "nothing"
            log.warning("the model %r refuses %s; %s is sent in its place", self.options.model, name, instead)
        return True

    def quoted(self, text: str) -> str:
        """Text of the server on one line, without the key, which some servers repeat."""
        text = " ".join(text.split())
        return (text.replace(self._api_key, "***") if self._api_key else text)[:_MAX_QUOTED]


class _Session:
    """The requests of one `complete`: workers that share the asks, the rate limit and the budget."""

    def __init__(self, endpoint: Endpoint, asks: Iterator[Ask]) -> None:
        self.ended_by: Exception | None = None
        self._endpoint = endpoint
        self._options = endpoint.options
        self._asks = asks
        self._http: aiohttp.ClientSession | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._replies: list[Reply] = []
        self._wake = asyncio.Event()
        self._num_answered = self._num_refused_in_a_row = 0
        self._next_start_s = 0.0
        self._reserved_usd = 0.0
        self._budget_freed = asyncio.Condition()
        self._ended = asyncio.Event()

    async def next_replies(self) -> list[Reply]:
        """New replies, at least one; empty at the end."""
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._options.max_concurrency),
                timeout=aiohttp.ClientTimeout(total=self._options.timeout_s),
                headers=self._endpoint.headers(),
            )
            self._workers = [asyncio.create_task(self._work()) for _ in range(self._options.max_concurrency)]
        while not self._replies and not all(worker.done() for worker in self._workers):
            self._wake.clear()
            await self._wake.wait()
        replies, self._replies = self._replies, []
        return replies

    async def close(self) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)  # cancelled; workers store their own errors
        if self._http is not None:
            await self._http.close()

    async def _work(self) -> None:
        try:
            while self.ended_by is None:
                ask = next(self._asks, None)
                if ask is None:
                    return
                reply = await self._answer(ask)  # not inside append: `next_replies` may replace the list meanwhile
                self._replies.append(reply)
                self._wake.set()
        except Exception as error:  # raised to the caller once the other workers are done
            self.ended_by = self.ended_by or error
            self._ended.set()
            async with self._budget_freed:
                self._budget_freed.notify_all()
        finally:
            # Set once this task is done, which it is only after its last line.
            asyncio.get_running_loop().call_soon(self._wake.set)

    async def _answer(self, ask: Ask) -> Reply:
        num_answered_before = self._num_answered
        bill: list[Usage] = []
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_TransientError),
            stop=stop_after_attempt(self._options.max_attempts),
            wait=wait_random_exponential(multiplier=self._options.first_backoff_s, max=_MAX_BACKOFF_S),
            sleep=self._pause,
            reraise=True,
        )
        try:
            completion = await retrying(self._attempt, ask, bill)
        except _TransientError as error:
            if self._num_answered == num_answered_before:
                kind = RateLimitedError if error.limited else UnreachableError
                raise kind(f"{self._where} gave no answer in {len(bill)} attempts; the last: {error}") from error
            return Reply(ask.key, "", _total(bill), failure=str(error))
        except _RequestError as error:
            self._num_refused_in_a_row += 1
            if self._num_refused_in_a_row >= _MAX_REFUSED_IN_A_ROW:
                raise RefusedError(f"{self._where} refused {self._num_refused_in_a_row} requests in a row; the last: {error}") from error
            return Reply(ask.key, "", _total(bill), failure=str(error))
        self._num_answered += 1
        self._num_refused_in_a_row = 0
        return Reply(ask.key, completion.text, _total(bill), completion.finish_reason)

    @property
    def _where(self) -> str:
        return f"the endpoint {self._options.url} (model {self._options.model!r})"

    async def _attempt(self, ask: Ask, bill: list[Usage]) -> Completion:
        """The answer to one request; adds its usage to `bill`."""
        worst = self._usage_of(_most_input_tokens(ask), ask.max_tokens)
        used = Usage(num_requests=1)
        async with self._reserved(worst.usd):
            try:
                content = await self._post(ask)
                used = self._reported(content) or worst
                return self._endpoint.api.completion(content)
            except MalformedReplyError as error:
                raise _TransientError(str(error)) from error
            except _TransientError as error:
                used = worst if error.billed else used
                raise
            finally:
                bill.append(used)
                self._endpoint.usage += used

    async def _post(self, ask: Ask) -> dict[str, Any]:
        assert self._http is not None
        await self._turn()
        body = self._endpoint.body(ask)
        try:
            async with self._http.post(self._options.request_url, json=body, allow_redirects=False) as response:
                data = await _read(response)
                must_adapt = response.status == 400 and self._endpoint.adapt(data.decode(errors="replace"), body)
                if response.status != 200 and not must_adapt:
                    self._raise_for(response, data.decode(errors="replace"))
        except TimeoutError as error:
            raise _TransientError(f"no answer in {self._options.timeout_s:g} s", billed=True) from error
        except aiohttp.ClientError as error:
            billed = not isinstance(error, aiohttp.ClientConnectorError)
            raise _TransientError(f"{type(error).__name__}: {self._endpoint.quoted(str(error))}", billed=billed) from error
        if must_adapt:  # once a field at most: the next body lacks it
            return await self._post(ask)
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            said = self._endpoint.quoted(data.decode(errors="replace"))
            raise _TransientError(f"the answer is not JSON: {said!r}", billed=True) from error
        if not isinstance(content, dict):
            raise _TransientError("the answer is not a JSON object", billed=True)
        return content

    def _raise_for(self, response: aiohttp.ClientResponse, text: str) -> None:
        said = f"status {response.status}: {self._endpoint.quoted(text)!r}"
        if response.status in _TRANSIENT or response.status >= 500:
            wait_s = _retry_after_s(response.headers.get("Retry-After", ""))
            if wait_s > self._options.max_retry_after_s:
                kind = RateLimitedError if response.status == 429 else UnreachableError
                raise kind(
                    f"{self._where} asks to wait {wait_s:.0f} s, more than max_retry_after_s = {self._options.max_retry_after_s:g} ({said})"
                )
            self._next_start_s = max(self._next_start_s, time.monotonic() + wait_s)
            raise _TransientError(said, limited=response.status == 429)
        if response.status in _PERMANENT or 300 <= response.status < 400:
            key = f"from {self._options.api_key_env}" if self._options.api_key_env else "none given"
            raise RefusedError(f"{self._where} refuses: {said}; check the URL, the model's name and the key ({key})")
        raise _RequestError(said)

    async def _turn(self) -> None:
        """Wait until another request may start."""
        interval_s = 60.0 / self._options.requests_per_minute if self._options.requests_per_minute else 0.0
        while (wait_s := self._next_start_s - time.monotonic()) > 0:
            await self._pause(wait_s)
        self._next_start_s = time.monotonic() + interval_s

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless the session ends meanwhile."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)
        if self.ended_by is not None:
            raise self.ended_by

    @asynccontextmanager
    async def _reserved(self, usd: float) -> AsyncIterator[None]:
        """Reserve the worst case of a request while it runs; if it does not fit, wait for other requests to end."""
        cap = self._options.max_usd
        async with self._budget_freed:
            while cap is not None and self._spent_usd + self._reserved_usd + usd > cap:
                if self._reserved_usd == 0.0 or self.ended_by is not None:
                    raise SpendingCapError(
                        f"spent {self._spent_usd:.4f} USD of max_usd = {cap:g}; another request could take up to {usd:.4f}"
                    )
                await self._budget_freed.wait()
            self._reserved_usd += usd
        try:
            yield
        finally:
            async with self._budget_freed:
                left_usd = self._reserved_usd - usd
                self._reserved_usd = left_usd if left_usd > 1e-12 else 0.0
                self._budget_freed.notify_all()

    @property
    def _spent_usd(self) -> float:
        return self._options.spent_usd + self._endpoint.usage.usd

    def _usage_of(self, num_input_tokens: int, num_output_tokens: int) -> Usage:
        return Usage(1, num_input_tokens, num_output_tokens, self._options.usd(num_input_tokens, num_output_tokens))

    def _reported(self, content: dict[str, Any]) -> Usage | None:
        counts = self._endpoint.api.num_tokens(content)
        return None if counts is None else self._usage_of(*counts)


def _most_input_tokens(ask: Ask) -> int:
    texts = sum(len(message.text.encode(errors="replace")) + _MAX_TEMPLATE_TOKENS_PER_MESSAGE for message in ask.messages)
    return texts + _MAX_IMAGE_TOKENS * sum(len(message.images) for message in ask.messages)


def _total(bill: list[Usage]) -> Usage:
    return sum(bill, Usage())


async def _read(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        data += chunk
        if len(data) > _MAX_REPLY_BYTES:
            raise _TransientError(f"the answer is longer than {_MAX_REPLY_BYTES} bytes", billed=True)
    return bytes(data)


def _retry_after_s(header: str) -> float:
    """Seconds of a `Retry-After`, which is a number or a date; 0 if it is neither."""
    header = header.strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", header):
        return float(header)
    try:
        until = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return max(0.0, (until.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _key_of(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"the environment variable {variable}, which is to hold the endpoint's key, is not set; export it first")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(f"the environment variable {variable} holds no key: it has spaces or unprintable characters in it")
    return key
