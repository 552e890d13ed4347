"""An HTTP proxy before an object service, which does to requests what a test says."""

from __future__ import annotations

import http.client
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
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
    """Answer this, and pass nothing on; with `done`, pass it on first."""

    status: int
    code: str
    done: bool = False


class Change(NamedTuple):
    """Pass it on with other headers."""

    headers: dict[str, str]


class LoseAnswer(NamedTuple):
    """Pass it on, and close the connection before the answer."""


class HoldAnswer(NamedTuple):
    """Pass it on, and keep the answer back until the event."""

    until: threading.Event


class Delay(NamedTuple):
    """Pass it on so many seconds late, and the answer too."""

    request: float = 0.0
    answer: float = 0.0


class Reset(NamedTuple):
    """Break the connection off by RST; with `done`, pass the request on first."""

    done: bool = False


class CutRequest(NamedTuple):
    """Break the connection off by RST in the middle of the request's body, and pass nothing on."""


class CutAnswer(NamedTuple):
    """Pass it on, and close the connection in the middle of the answer's body."""


Fault = Refuse | Change | LoseAnswer | HoldAnswer | Delay | Reset | CutRequest | CutAnswer | None


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
        self._swapping = threading.Lock()
        """Held while a conditional request is done, as moto compares first and swaps then."""
        upstream = urlsplit(service.endpoint).netloc
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _any(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers)
                fault = proxy.fault(request)
                size = int(headers.get("content-length") or 0)
                body = self.rfile.read(size // 2 if isinstance(fault, CutRequest) else size)
                proxy.seen.append(request)
                match fault:
                    case Refuse(done=False):
                        self._refuse(fault)
                        return
                    case Reset(done=False) | CutRequest():
                        self._reset()
                        return
                    case Delay():
                        time.sleep(fault.request)
                headers = fault.headers if isinstance(fault, Change) else request.headers
                answer, data = self._upstream(request, headers, body)
                match fault:
                    case Refuse():
                        self._refuse(fault)
                        return
                    case Reset():
                        self._reset()
                        return
                    case LoseAnswer():
                        self.close_connection = True
                        self.connection.shutdown(socket.SHUT_RDWR)
                        return
                    case HoldAnswer():
                        proxy.passed_on.set()
                        fault.until.wait(20)
                    case Delay():
                        time.sleep(fault.answer)
                cut = len(data) // 2 if isinstance(fault, CutAnswer) else None
                self._answer(answer.status, dict(answer.headers.items()), data, cut)

            def _refuse(self, fault: Refuse) -> None:
                text = f"<Error><Code>{fault.code}</Code><Message>no</Message></Error>"
                self._answer(fault.status, {}, text.encode())

            def _reset(self) -> None:
                self.close_connection = True
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                os.close(self.connection.detach())  # before anybody can say goodbye

            def _upstream(
                self, request: Request, headers: dict[str, str], body: bytes
            ) -> tuple[http.client.HTTPResponse, bytes]:
                headers = {n: v for n, v in headers.items() if n != "expect"}
                conditional = bool({"if-match", "if-none-match"} & headers.keys())
                with proxy._swapping if conditional else nullcontext():
                    return self._done(request, headers, body, again=not conditional)

            def _done(
                self, request: Request, headers: dict[str, str], body: bytes, *, again: bool
            ) -> tuple[http.client.HTTPResponse, bytes]:
                for last in (False, False, True):
                    connection = http.client.HTTPConnection(upstream, timeout=60)
                    with closing(connection):
                        try:
                            connection.request(request.method, request.path, body, headers)
                            answer = connection.getresponse()
                        except http.client.RemoteDisconnected:  # which Ceph does, now and then
                            if again and not last:
                                continue
                            raise
                        return answer, answer.read()
                raise AssertionError

            def _answer(
                self, status: int, headers: dict[str, str], data: bytes, cut: int | None = None
            ) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data[:cut])
                if cut is not None:
                    self.close_connection = True

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
