"""A PostgreSQL server that crashes, is frozen, and whose backends are terminated."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from ..postgresql import Admin, Server, own_server
from ._outage_setting import Pile, again_and_again
from ._torture import Counts

TROUBLES = (
    "PostgreSQL crashed",
    "PostgreSQL crashed and started",
    "PostgreSQL frozen",
    "backends terminated",
)
_PIECES_OF_NOTHING = (
    "SELECT count(*) FROM aiocheckpoint_chunks AS c WHERE NOT EXISTS (SELECT FROM"
    " aiocheckpoint_blobs AS b WHERE b.key = c.key AND b.name = c.name AND b.put = c.put)"
)


class PostgresOutages:
    """A database on a server that does not wait for its disk unless a session insists."""

    def __init__(self, server: Server, admin: Admin) -> None:
        self.url = admin.url
        self._server = server
        self._troubles = Pile(TROUBLES)
        self._admin = admin

    @asynccontextmanager
    async def trouble(self, rng: random.Random) -> AsyncIterator[str]:
        name, server = self._troubles.draw(rng), self._server
        if name == "PostgreSQL crashed":
            await asyncio.to_thread(server.kill)
            try:
                yield name
            finally:
                await asyncio.to_thread(server.start)
        elif name == "PostgreSQL crashed and started":
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            yield name
        elif name == "PostgreSQL frozen":
            frozen = server.frozen()
            await asyncio.to_thread(frozen.__enter__)
            try:
                yield name
            finally:
                frozen.__exit__(None, None, None)
        else:
            async with again_and_again(self._terminate_backends):
                yield name

    def _terminate_backends(self) -> None:
        self._admin.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )

    def counts(self) -> Counts:
        return Counts()


@contextmanager
def postgresql() -> Iterator[PostgresOutages]:
    with own_server() as server:
        for setting in ("synchronous_commit = off", "wal_writer_delay = '10s'"):
            server.admin.run(f"ALTER SYSTEM SET {setting}")
        server.admin.run("SELECT pg_reload_conf()")
        with server.admin.database() as admin:
            yield PostgresOutages(server, admin)
            assert admin.run(_PIECES_OF_NOTHING) == [(0,)], "pieces are left that no blob has"
