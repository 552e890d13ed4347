"""A Redis server that is killed, frozen, and started again, and whose connections are cut."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from ..stores.redis_server import ALWAYS, Server
from ._outage_setting import Pile, again_and_again
from ._torture import Counts

EVERYSEC = ("--appendonly", "yes", "--appendfsync", "everysec")
TROUBLES = ("Redis killed", "Redis killed and started", "Redis frozen", "Redis connections killed")


class RedisOutages:
    """What is acknowledged survives the death of the server's process, by its options."""

    def __init__(self, server: Server) -> None:
        self.url = f"{server.url}?prefix=outages"
        self._server = server
        self._troubles = Pile(TROUBLES)

    @asynccontextmanager
    async def trouble(self, rng: random.Random) -> AsyncIterator[str]:
        name, server = self._troubles.draw(rng), self._server
        if name == "Redis killed":
            await asyncio.to_thread(server.kill)
            try:
                yield name
            finally:
                await asyncio.to_thread(server.start)
        elif name == "Redis killed and started":
            await asyncio.to_thread(server.restart)
            yield name
        elif name == "Redis frozen":
            server.freeze()
            try:
                yield name
            finally:
                server.thaw()
        else:
            async with again_and_again(self._kill_connections):
                yield name

    def _kill_connections(self) -> None:
        with self._server.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)

    def counts(self) -> Counts:
        return Counts()


@contextmanager
def redis(*options: str) -> Iterator[RedisOutages]:
    """A server of one's own; without options one that loses nothing."""
    with (
        tempfile.TemporaryDirectory() as name,
        Server(Path(name) / "redis", *(options or ALWAYS)) as server,
    ):
        yield RedisOutages(server)
