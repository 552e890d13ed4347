"""The connections that one event loop has to a Redis server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from .._errors import StoreError, StoreUnavailableError
from ._redis_errors import translated
from ._redis_server import durability, refusal
from ._redis_url import Place

Send = Callable[..., Awaitable[Any]]

_CONNECTIONS = 16
# each, and the two that a call may wait for one after the other, within the core's 30 s
_CONNECT_TIMEOUT = 5.0
_SOCKET_TIMEOUT = 20.0
_SETTINGS = ("appendonly", "appendfsync", "save", "maxmemory-policy")

_log = logging.getLogger("aiocheckpoint")


class Line:
    """A few connections of the running loop, closed by `close` or at the latest as it ends.

    Before the first command, and again after a connection was made anew, it looks at the server's
    settings, since it may be another server by then.
    """

    def __init__(self, place: Place, told: set[str]) -> None:
        """`told`: what has been said of the server's settings, lest it be said again."""
        self._place = place
        self._told = told
        self.looked = False
        self.demoted = False
        """Whether the connections may lead to what is the primary no more."""
        self._looking = asyncio.Lock()
        pool = redis.BlockingConnectionPool.from_url(
            place.url,
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
        self.loop = asyncio.get_running_loop()
        self._holding = self.loop.create_task(self._hold())

    async def ready(self, op: str) -> Send:
        """What sends a command to a server that has been looked at."""
        if self.demoted:
            self.demoted = False
            await self._client.connection_pool.disconnect(inuse_connections=False)
        send: Send = self._client.execute_command
        if not self.looked:
            async with self._looking:
                if not self.looked:
                    await self._look(send, op)
        return send

    def close_soon(self) -> None:
        self._holding.cancel()

    async def close(self) -> None:
        self._holding.cancel()
        await asyncio.wait([self._holding])

    async def _hold(self) -> None:
        try:
            await self.loop.create_future()
        finally:  # closed, or the loop ends, whose tasks are cancelled
            with suppress(RedisError, OSError):
                await self._client.connection_pool.disconnect(inuse_connections=True)

    async def _connected(self, connection: redis.Connection) -> None:
        self.looked = False
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
        why = refusal(settings, expiring=self._place.ttl_ms > 0)
        if why is not None:
            raise StoreError(why, op=op)
        level, what = durability(settings)
        if what not in self._told:
            self._told.clear()
            self._told.add(what)
            _log.log(level, "%s: %s", self._place.identity, what)
        self.looked = True


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
