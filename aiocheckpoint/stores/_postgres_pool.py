"""Connections to PostgreSQL: few, used again only when their state is known; errors as ours."""

from __future__ import annotations

import asyncio
import re
import select
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from .._errors import StoreError, StoreUnavailableError
from ._postgres_tables import Connection, Tables
from ._postgres_url import Settings

T = TypeVar("T")

_GRACE = 1.0
"""Seconds that a server has to stop a statement that was cancelled, before we hang up."""
_READ_ONLY = "25006"
# Class 08 is connection exceptions, 40 rollbacks, 53 resources, 57 the operator, 58 the system.
_PASSING = ("08", "40", "53", "57", "58", _READ_ONLY, "25P", "55P03")
_OF_DATA = ("22", "23", "44", "54", "P0")
_PREPARED = "behind pgbouncer in transaction mode add prepare_threshold=none to the URL"
_HINTS = {
    _READ_ONLY: "a standby, or default_transaction_read_only: point the URL at the primary, with"
    " several hosts add target_session_attrs=read-write",
    "53100": "free some space on the server",
    "53300": "raise max_connections, or put pgbouncer in between",
    "55P03": "another session holds a lock on the row for longer than lock_timeout",
    "57014": "the server's statement_timeout, or somebody, has cancelled it",
    "42501": "see the GRANTs, or the tables to make beforehand, in docs/howto-postgresql.md",
    "42P01": "the tables were dropped; open the store again to make new ones",
    "42P07": "it is not ours; name another with ?table=",
    "26000": _PREPARED,
    "42P05": _PREPARED,
    "3F000": "the table's schema is not there; CREATE SCHEMA it",
}
# Refusals before the session begins have no code that libpq tells, only the server's words.
_REFUSALS = {
    r"authentication failed|no password supplied|pg_hba\.conf|no such user": "check the user, the"
    " password and the server's pg_hba.conf",
    r'role ".*" (does not exist|is not permitted to log in)': "CREATE ROLE ... LOGIN, or name"
    " another user",
    r'database ".*" does not exist|no such database': "create it, or name another",
    r"permission denied for database": "GRANT CONNECT ON DATABASE",
    r"certificate|does not support SSL|SSL was required": "check sslmode and the certificates",
    r"invalid \S+ value|definition of service": "mend the URL's options",
}


class Pool:
    """At most `size` connections of each loop, made when they are needed and kept.

    psycopg_pool tries again and again in the background, logs each try, and answers a timeout
    whose reason is lost; our writer tries again by itself and must know why.
    """

    def __init__(self, settings: Settings, tables: Tables, size: int) -> None:
        self._settings = settings
        self._tables = tables
        self._size = size
        self._shares: dict[asyncio.AbstractEventLoop, _Share] = {}
        self._closed = False

    async def call(self, op: str, key: str | None, fn: Callable[[Connection], Awaitable[T]]) -> T:
        """Call `fn` with a connection. The one place where PostgreSQL's errors become ours."""
        try:
            return await _interruptible(self._call(fn))
        except psycopg.Error as exc:
            raise self._translated(exc, op, key) from exc

    async def close(self) -> None:
        self._closed = True
        for share in list(self._shares.values()):
            await share.close()

    async def _call(self, fn: Callable[[Connection], Awaitable[T]]) -> T:
        async with self._connection() as connection:
            return await fn(connection)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        share = await self._share()
        async with share.room:
            connection = await share.waiting() or await self._connect()
            known = False
            try:
                yield connection
                known = True
            except psycopg.Error as exc:
                known = exc.sqlstate != _READ_ONLY  # another host may be the primary now
                raise
            finally:
                idle = connection.info.transaction_status == TransactionStatus.IDLE
                if known and idle and not self._closed:
                    share.idle.append(connection)
                else:
                    await connection.close()

    async def _share(self) -> _Share:
        """What the running loop has: a store may serve several runtimes, each with a loop."""
        loop = asyncio.get_running_loop()
        share = self._shares.get(loop)
        if share is None:
            share = self._shares[loop] = _Share(asyncio.Semaphore(self._size), [])
            for other in [other for other in list(self._shares) if other.is_closed()]:
                if (ended := self._shares.pop(other, None)) is not None:
                    await ended.close()
        return share

    async def _connect(self) -> Connection:
        if self._closed:
            raise RuntimeError("this store is closed")
        connection = await psycopg.AsyncConnection[Any].connect(
            self._settings.conninfo,
            autocommit=True,
            prepare_threshold=self._settings.prepare_threshold,
            cursor_factory=psycopg.AsyncRawCursor,
        )
        try:
            await self._tables.make_ready(connection)
        except BaseException:
            await connection.close()
            raise
        return connection

    def _translated(self, exc: psycopg.Error, op: str, key: str | None) -> StoreError:
        code = exc.sqlstate or ""
        passing = code.startswith(_PASSING)
        hint = _HINTS.get(code)
        if not code and isinstance(exc, psycopg.OperationalError | psycopg.InterfaceError):
            hint = next(
                (_REFUSALS[words] for words in _REFUSALS if re.search(words, f"{exc}")), None
            )
            passing = hint is None
        kind = StoreUnavailableError if passing else StoreError
        told = exc.diag.message_primary or str(exc)
        text = " ".join(told.split()) + (f"; {hint}" if hint else "")
        return kind(f"{self._settings.identity}: {text}", op=op, key=key)


class _Share(NamedTuple):
    """The part of a pool that one loop has."""

    room: asyncio.Semaphore
    idle: list[Connection]

    async def waiting(self) -> Connection | None:
        """One that the server has not closed meanwhile."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.closed and not _readable(connection.fileno()):
                return connection
            await connection.close()
        return None

    async def close(self) -> None:
        """Close what is idle, on whichever loop: nobody has it, and to close needs no loop."""
        while self.idle:
            await self.idle.pop().close()


def blames_the_data(error: StoreError) -> bool:
    """Whether something in the rows was the reason, so that others may fare better."""
    cause = error.__cause__
    return isinstance(cause, psycopg.Error) and (cause.sqlstate or "").startswith(_OF_DATA)


def _readable(descriptor: int) -> bool:
    """Nobody has asked, so whatever the server has said is a farewell."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


async def _interruptible(call: Coroutine[Any, Any, T]) -> T:
    """Await a call that ends soon when it is cancelled, even if the server does not answer.

    psycopg answers the first cancellation by asking the server to stop and waiting for it, and
    the second by hanging up.
    """
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.add_done_callback(_forget)
        for _ in range(2):
            task.cancel()
            await asyncio.wait([task], timeout=_GRACE)
        raise
    return await task


def _forget(task: asyncio.Future[Any]) -> None:
    """The caller was cancelled: how the call ended interests nobody."""
    if not task.cancelled():
        task.exception()
