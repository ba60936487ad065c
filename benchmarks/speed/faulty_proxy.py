"""A proxy in front of a real HTTP server on loopback that can be slow, answer 500, cut connections or refuse them."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["", "error", "cut before", "cut after"]
"""Answer 500 instead of forwarding, or close the connection before or after the server has handled the request."""


class FaultyProxy:
    """Listens on its own port from `open` to `close`; connections are refused during `away`."""

    def __init__(self, upstream_port: int) -> None:
        self.delay_s = 0.0
        """Delay before each request is forwarded."""
        self.faults: Iterator[Fault] = iter(())
        """Faults of the next requests; no faults once they are used up."""
        self.num_requests = 0
        self._upstream_port = upstream_port
        self._lock = threading.Lock()
        self._server = _server(self, 0)
        self.port = self._server.server_port

    def open(self) -> None:
        """Start serving."""
        self._server.server_activate()
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Refuse connections for the length of the `with` block."""
        self.close()
        try:
            yield
        finally:
            self.reopen()

    def reopen(self) -> None:
        """Serve again on the same port."""
        self._server = _server(self, self.port)
        self.open()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def next_fault(self) -> Fault:
        with self._lock:
            self.num_requests += 1
            for fault in self.faults:
                return fault
            return ""

    def pass_on(self, request: BaseHTTPRequestHandler, fault: Fault) -> None:
        """Forward one request, or answer it with `fault`."""
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        time.sleep(self.delay_s)
        if fault == "error":
            request.send_error(500, "out of order")
        if fault in ("error", "cut before"):
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self._upstream_port, timeout=60)
        upstream.request(request.command, request.path, body, dict(request.headers))
        answer = upstream.getresponse()
        content = answer.read()
        if fault == "cut after":
            return
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


def _server(proxy: FaultyProxy, port: int) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", port), _handler(proxy), bind_and_activate=False)
    server.daemon_threads = True
    server.server_bind()
    return server


def _handler(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            with suppress(ConnectionError):  # the client did not wait
                proxy.pass_on(self, proxy.next_fault())

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        def log_message(self, format: str, *args: object) -> None:
            """Silenced, to keep the test output clean."""

    return Handler
