"""A real HTTP server on loopback that speaks the chat protocols, and answers as a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Answer:
    """What one request gets. `body` stands in for the whole JSON where it is given."""

    text: str | None = "Fine."
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    delay_s: float = 0.0
    usage: tuple[int, int] | None = (10, 5)
    cut: bool = False
    """Close the connection without an answer."""
    reasoning: str = ""
    """What the model thought, as the protocol tells it beside the answer."""
    finish_reason: str | None = None
    """In the protocol's words; None for a whole answer."""

    def content(self, path: str = "/v1/chat/completions") -> bytes:
        if self.body is not None:
            return self.body
        speaks_openai = path.endswith("/chat/completions")
        content = self._openai() if speaks_openai else self._anthropic()
        if self.usage is not None:
            names = ("prompt_tokens", "completion_tokens") if speaks_openai else ("input_tokens", "output_tokens")
            content["usage"] = dict(zip(names, self.usage, strict=True))
        return json.dumps(content).encode()

    def _openai(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.text} | ({"reasoning_content": self.reasoning} if self.reasoning else {})
        return {"choices": [{"message": message, "finish_reason": self.finish_reason or "stop"}]}

    def _anthropic(self) -> dict[str, Any]:
        blocks = [{"type": "thinking", "thinking": self.reasoning, "signature": "s"}] if self.reasoning else []
        blocks += [{"type": "text", "text": self.text}] if self.text is not None else []
        return {"type": "message", "role": "assistant", "content": blocks, "stop_reason": self.finish_reason or "end_turn"}


class ChatServer:
    """Serves for the length of a `with`. `answer` gets the request's JSON and its number, from 0."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Answer] = lambda body, number: Answer()) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.started_s: list[float] = []
        self.most_at_once = 0
        self._at_once = 0
        self._answer = answer
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, body: dict[str, Any], headers: dict[str, str]) -> Answer:
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
            self.headers.append(headers)
            self.started_s.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        return self._answer(body, number)

    def leave(self) -> None:
        with self._lock:
            self._at_once -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # with the usual 5, more clients at once wait a second for their second try


def _handler(server: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                answer = server.take({**body, "path": self.path}, dict(self.headers))
                time.sleep(answer.delay_s)
            finally:
                server.leave()
            if answer.cut:
                self.close_connection = True
                return
            content = answer.content(self.path)
            with suppress(ConnectionError):  # a client that has not waited
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet: what a server prints has no place among the dots of the tests."""

    return Handler
