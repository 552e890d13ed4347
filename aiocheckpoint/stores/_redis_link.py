"""The connections to a Redis server, and the one place where its errors become ours."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from .._errors import StoreError, StoreUnavailableError
from ._redis_errors import answered, translated
from ._redis_scripts import Script
from ._redis_server import durability, refusal
from ._redis_url import Place

Value = bytes | str | int | memoryview
Send = Callable[..., Awaitable[Any]]

_CONNECTIONS = 16
# each, and the two that a call may wait for one after the other, within the core's 30 s
_CONNECT_TIMEOUT = 5.0
_SOCKET_TIMEOUT = 20.0
_SETTINGS = ("appendonly", "appendfsync", "save", "maxmemory-policy")

_log = logging.getLogger("aiocheckpoint")


class Link:
    """Sends commands, one at a time on each of a few connections, and never one twice.

    Before the first command, and again after a connection was made anew, it looks at the server's
    settings, since it may be another server by then.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._client: redis.Redis | None = None
        self._closed = False
        self._looked = False
        self._looking = asyncio.Lock()
        self._told = ""
        self._demoted = False  # and our connections may lead to what is the primary no more

    async def call(self, op: str, key: str | None, *command: Value) -> Any:
        """Send a command; its answer."""
        try:
            return await (await self._ready(op))(*command)
        except (RedisError, OSError) as exc:
            raise self._failed(exc, op, key) from self._told_of(exc)

    async def script(
        self, op: str, key: str | None, script: Script, about: str, args: Sequence[Value]
    ) -> Any:
        """Run a script about one of our keys; its answer."""
        rest = (1, about.encode(), self.place.prefix, self.place.ttl_ms, *args)
        try:
            send = await self._ready(op)
            try:
                return await send("EVALSHA", script.sha, *rest)
            except NoScriptError:  # and so it did not run
                return await send("EVAL", script.text, *rest)
        except (RedisError, OSError) as exc:
            raise self._failed(exc, op, key) from self._told_of(exc)

    def answered(self, answer: bytes, op: str, key: str | None) -> StoreError:
        """The error for one that a script has answered as a value."""
        return self._noted(answered(answer.decode("utf-8", "replace"), op, key))

    async def aclose(self) -> None:
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            with suppress(RedisError, OSError):
                await client.connection_pool.disconnect(inuse_connections=True)
                await client.aclose()

    def _failed(self, exc: Exception, op: str, key: str | None) -> StoreError:
        if not isinstance(exc, ResponseError):
            self._looked = False
        error = translated(exc, op, key)
        if self._tells(exc):
            error.args = (str(error.args[0]).replace(self.place.secret, "***"),)
        return self._noted(error)

    def _noted(self, error: StoreError) -> StoreError:
        if str(error.args[0]).startswith("READONLY"):
            self._demoted = True
        return error

    def _told_of(self, exc: Exception) -> Exception | None:
        return None if self._tells(exc) else exc

    def _tells(self, exc: Exception) -> bool:
        """Whether it quotes the password, as some servers do of an AUTH that they do not know."""
        return bool(self.place.secret) and self.place.secret in str(exc)

    async def _ready(self, op: str) -> Send:
        if self._closed:
            raise RuntimeError("this store is closed")
        if self._client is None:
            pool = redis.BlockingConnectionPool.from_url(
                self.place.url,
                max_connections=_CONNECTIONS,
                timeout=_SOCKET_TIMEOUT,
                socket_connect_timeout=_CONNECT_TIMEOUT,
                socket_timeout=_SOCKET_TIMEOUT,
                socket_keepalive=True,
                retry=Retry(NoBackoff(), 0),
                redis_connect_func=self._connected,
                protocol=2,
            )
            self._client = redis.Redis(connection_pool=pool)
        if self._demoted:
            self._demoted = False
            await self._client.connection_pool.disconnect(inuse_connections=False)
        send: Send = self._client.execute_command
        if not self._looked:
            async with self._looking:
                if not self._looked:
                    await self._look(send, op)
        return send

    async def _connected(self, connection: redis.Connection) -> None:
        self._looked = False
        await connection.on_connect()

    async def _look(self, send: Send, op: str) -> None:
        settings: dict[str, str] = {}
        for command in (("INFO",), *(("CONFIG GET", name) for name in _SETTINGS)):
            try:
                found = await send(*command)
            except ResponseError as exc:
                if isinstance(translated(exc, op, None), StoreUnavailableError):
                    raise
                continue  # not allowed there
            settings |= {_text(name): _text(value) for name, value in found.items()}
        why = refusal(settings, expiring=self.place.ttl_ms > 0)
        if why is not None:
            raise StoreError(why, op=op)
        level, what = durability(settings)
        if what != self._told:
            _log.log(level, "%s: %s", self.place.identity, what)
            self._told = what
        self._looked = True


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
