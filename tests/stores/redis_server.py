"""A Redis server of a test's own: on a free port, in a directory of its own, killed at the end.

REDIS_SERVER names another program, such as valkey-server; REDIS_PORT is where the server listens
that the other tests share.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..servers import free_port, program

PORT = int(os.environ.get("REDIS_PORT", "6379"))
ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")
"""Options of a server that has on its disk what it answered for."""


class Server:
    """A server process, which may be killed, frozen, and started again over the same files."""

    def __init__(self, directory: Path, *options: str) -> None:
        directory.mkdir(exist_ok=True)
        name = os.environ.get("REDIS_SERVER", "redis-server")
        self._program = program(name, name, "install redis-server")
        self.directory = directory
        self.options = options
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.password: str | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        own = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory))
        save = () if "--save" in self.options else ("--save", "")
        self._process = subprocess.Popen(
            [self._program, *own, *save, *self.options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 20
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.ConnectionError:
                assert self._process.poll() is None, "the server ended"
                assert time.monotonic() < until, "the server does not answer"
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def client(self) -> redis.Redis:
        """A client past the store."""
        return client(self.port, self.password)


def client(port: int, password: str | None = None) -> redis.Redis:
    """A client that does not try again."""
    return redis.Redis(port=port, password=password, protocol=2, retry=Retry(NoBackoff(), 0))
