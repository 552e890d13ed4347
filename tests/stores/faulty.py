"""An HTTP proxy before an object service, which does to requests what a test says."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

from .objects import Service


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    """In lower case."""


class Refuse(NamedTuple):
    """Answer this, and pass nothing on."""

    status: int
    code: str


class Change(NamedTuple):
    """Pass it on with other headers."""

    headers: dict[str, str]


class LoseAnswer(NamedTuple):
    """Pass it on, and close the connection before the answer."""


class HoldAnswer(NamedTuple):
    """Pass it on, and keep the answer back until the event."""

    until: threading.Event


Fault = Refuse | Change | LoseAnswer | HoldAnswer | None


def without(request: Request, *names: str) -> Change:
    """What an endpoint does that knows nothing of these headers."""
    kept = {name: value for name, value in request.headers.items() if name not in names}
    return Change(kept)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """The client sees a closed connection, which says enough."""


class Proxy:
    """`fault` says what befalls each request; None lets it pass."""

    def __init__(self, service: Service) -> None:
        self.fault: Callable[[Request], Fault] = lambda request: None
        self.seen: list[Request] = []
        self.passed_on = threading.Event()
        """Set when a request whose answer is kept back has been done."""
        upstream = urlsplit(service.endpoint).netloc
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers)
                proxy.seen.append(request)
                fault = proxy.fault(request)
                if isinstance(fault, Refuse):
                    text = f"<Error><Code>{fault.code}</Code><Message>no</Message></Error>"
                    self._answer(fault.status, {}, text.encode())
                    return
                headers = fault.headers if isinstance(fault, Change) else request.headers
                answer, data = self._upstream(request, headers, body)
                if isinstance(fault, LoseAnswer):
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if isinstance(fault, HoldAnswer):
                    proxy.passed_on.set()
                    fault.until.wait(20)
                self._answer(answer.status, dict(answer.headers.items()), data)

            def _upstream(
                self, request: Request, headers: dict[str, str], body: bytes
            ) -> tuple[http.client.HTTPResponse, bytes]:
                headers = {n: v for n, v in headers.items() if n != "expect"}
                for again in (True, True, False):
                    connection = http.client.HTTPConnection(upstream, timeout=60)
                    with closing(connection):
                        try:
                            connection.request(request.method, request.path, body, headers)
                            answer = connection.getresponse()
                        except http.client.RemoteDisconnected:  # which Ceph does, now and then
                            if again and not {"if-match", "if-none-match"} & headers.keys():
                                continue
                            raise
                        return answer, answer.read()
                raise AssertionError

            def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any

        self.server = _Server(("127.0.0.1", 0), Handler)
        port = self.server.server_address[1]
        self.service = service._replace(endpoint=f"http://127.0.0.1:{port}")


@contextmanager
def proxied(service: Service) -> Iterator[Proxy]:
    proxy = Proxy(service)
    thread = threading.Thread(target=proxy.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.server.shutdown()
        proxy.server.server_close()
        thread.join()
