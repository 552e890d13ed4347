"""The PostgreSQL store against servers that die, freeze, refuse, and connections that drop."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from aiocheckpoint._errors import StoreError, StoreUnavailableError
from aiocheckpoint.abc import Put
from aiocheckpoint.stores.postgres import PostgresStore
from aiocheckpoint.testing.contract import listed, put, read, refused

from .. import support
from ..postgresql import Admin, Server, own_server
from ..servers import free_port

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that tests may do anything to, if it runs again afterwards."""
    with own_server() as server:
        yield server


@pytest.fixture
def admin(server: Server) -> Iterator[Admin]:
    """A database of the test's own."""
    with server.admin.database() as admin:
        yield admin


@pytest.fixture
async def store(admin: Admin) -> AsyncIterator[PostgresStore]:
    store = PostgresStore.from_url(admin.url)
    yield store
    await store.aclose()


OURS = (
    "FROM pg_stat_activity WHERE application_name = 'aiocheckpoint'"
    " AND datname = current_database()"
)


class Locked:
    """Holds the row of a key, so that commits to it wait."""

    def __init__(self, admin: Admin, key: str = "k") -> None:
        self._admin = admin
        self._connection = psycopg.connect(admin.url)
        self._connection.execute("SET deadlock_timeout = '1h'")
        self.wait_for(key)

    def wait_for(self, key: str) -> None:
        query = "SELECT 1 FROM aiocheckpoint WHERE key = %s FOR UPDATE"
        self._connection.execute(query, [key.encode()])

    async def somebody_waits(self) -> None:
        waiting = f"SELECT 1 {OURS} AND wait_event_type = 'Lock'"
        await support.true(lambda: bool(self._admin.run(waiting)))

    def __enter__(self) -> Locked:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


async def unavailable(call: Any, match: str | None = None) -> None:
    with pytest.raises(StoreUnavailableError, match=match):
        await call


# Connections.


async def test_connections_dropped_while_idle(admin: Admin, store: PostgresStore) -> None:
    """Connections that the server has closed since are replaced, and nobody notices."""
    version = await put(store, "k", None, b"one")
    await store.put_blob("k", "b", b"x")
    assert admin.run(f"SELECT pg_terminate_backend(pid, 5000) {OURS}")
    version = await put(store, "k", version, b"two")
    assert await store.load("k") == (b"two", version)
    assert await read(store.open_blob("k", "b")) == b"x"


async def test_connection_dropped_in_mid_commit(admin: Admin, store: PostgresStore) -> None:
    """A commit whose connection is cut was done or not; the next one works."""
    version = await put(store, "k", None, b"one")
    with Locked(admin) as lock:
        commit = asyncio.ensure_future(put(store, "k", version, b"two"))
        await lock.somebody_waits()
        admin.run(f"SELECT pg_terminate_backend(pid, 5000) {OURS}")
        await unavailable(commit, "terminating connection")
    assert await store.load("k") == (b"one", version)
    await put(store, "k", version, b"three")


async def test_connection_dropped_in_mid_blob(admin: Admin, store: PostgresStore) -> None:
    """A put whose connection is cut is no blob, and the one before it stays."""
    await store.put_blob("k", "b", b"before")

    async def source() -> AsyncIterator[bytes]:
        yield bytes(4 << 20)
        admin.run(f"SELECT pg_terminate_backend(pid, 5000) {OURS}")
        for _ in range(8):
            yield bytes(4 << 20)

    await unavailable(store.put_blob("k", "b", source()))
    assert await read(store.open_blob("k", "b")) == b"before"
    assert admin.run("SELECT count(*) FROM aiocheckpoint_chunks") == [(1,)]
    await store.put_blob("k", "b", b"after")


async def test_cancelled_commit(admin: Admin, store: PostgresStore) -> None:
    """A commit that is cancelled is stopped on the server; its connection is not used again."""
    version = await put(store, "k", None, b"one")
    with Locked(admin) as lock:
        commit = asyncio.ensure_future(put(store, "k", version, b"two"))
        await lock.somebody_waits()
        commit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await commit
        assert not any(share.idle for share in store._commits._shares.values())
        waiting = f"SELECT 1 {OURS} AND wait_event_type = 'Lock'"
        await support.true(lambda: not admin.run(waiting))
    assert await store.load("k") == (b"one", version)
    await put(store, "k", version, b"three")


async def test_closed_while_a_commit_waits(admin: Admin, store: PostgresStore) -> None:
    """Closing leaves no connection behind, whatever was under way."""
    version = await put(store, "k", None, b"one")
    with Locked(admin) as lock:
        commit = asyncio.ensure_future(put(store, "k", version, b"two"))
        await lock.somebody_waits()
        await store.aclose()
        commit.cancel()
        await asyncio.gather(commit, return_exceptions=True)
        with pytest.raises(RuntimeError, match="closed"):
            await store.load("k")
    await support.true(lambda: admin.run(f"SELECT 1 {OURS}") == [])


async def test_timeouts_of_the_server(admin: Admin) -> None:
    """What the server gives up after a time of its own may be tried again."""
    for name, match in {
        "lock_timeout": "holds a lock",
        "statement_timeout": "has cancelled",
    }.items():
        store = PostgresStore.from_url(f"{admin.url}?options=-c%20{name}%3D200")
        head = await store.load("k")
        version = head.version if head else await put(store, "k", None, b"one")
        with Locked(admin):
            await unavailable(put(store, "k", version, b"two"), match)
        assert await store.load("k") == (b"one", version)
        await store.aclose()


async def test_deadlock(admin: Admin) -> None:
    """A batch that is chosen to end a deadlock may be tried again; none of it was done."""
    store = PostgresStore.from_url(f"{admin.url}?options=-c%20deadlock_timeout%3D300")
    a, b = await put(store, "a", None, b"1"), await put(store, "b", None, b"1")
    with Locked(admin, "b") as lock:
        commit = asyncio.ensure_future(store.commit([Put("b", b, b"2"), Put("a", a, b"2")]))
        await lock.somebody_waits()
        await asyncio.to_thread(lock.wait_for, "a")
        for answer in await commit:
            assert isinstance(answer, StoreUnavailableError)
            assert "deadlock detected" in str(answer)
    assert await store.load("a") == (b"1", a)
    await store.commit([Put("b", b, b"2"), Put("a", a, b"2")])
    await store.aclose()


# Servers that cannot, or will not.


async def test_nobody_listens() -> None:
    """A server that is not there may come; nothing is connected before the first call."""
    store = PostgresStore.from_url(f"postgresql://me:hush@127.0.0.1:{free_port()}/jobs")
    for call in (store.load("k"), put(store, "k", None, b"x"), store.put_blob("k", "b", b"x")):
        await unavailable(call, "refused")
    await unavailable(listed(store))
    await unavailable(read(store.open_blob("k", "b")))
    await store.aclose()


async def test_refused(server: Server, admin: Admin) -> None:
    """Who is refused is told why, at once and without the password."""
    server.admin.run("DROP ROLE IF EXISTS locked")
    server.admin.run("CREATE ROLE locked LOGIN PASSWORD 'secret'")
    for url, match in {
        admin.at("locked:hush"): "authentication failed .*; check the user, the password",
        admin.at("locked"): "no password supplied; check the user, the password",
        admin.at("nobody:hush"): 'role "nobody" does not exist; CREATE ROLE',
        admin.url.replace("aiocheckpoint_", "no_").replace("//postgres", "//postgres:hush"): (
            'database "no_.*" does not exist; create it'
        ),
        admin.at("postgres:hush") + "?sslmode=require": "does not support SSL.*; check sslmode",
        admin.at("postgres:hush") + "?sslmode=maybe": "invalid sslmode value.*; mend the URL",
    }.items():
        store = PostgresStore.from_url(url)
        with pytest.raises(StoreError, match=match) as caught:
            await store.load("k")
        assert type(caught.value) is StoreError
        assert isinstance(caught.value.__cause__, psycopg.Error)
        for text in (caught.value, caught.value.__cause__, store):
            assert "hush" not in f"{text!r} {text}"
        await store.aclose()
    server.admin.run("DROP ROLE locked")


async def test_read_only(admin: Admin) -> None:
    """A server that will not write now may later, or another may be the primary by then."""
    url = f"{admin.url}?options=-c%20default_transaction_read_only%3Don"
    store = PostgresStore.from_url(url)
    await unavailable(store.load("k"), "read-only.*; a standby, or default_transaction_read_only")
    other = PostgresStore.from_url(admin.url)
    version = await put(other, "k", None, b"one")
    assert await store.load("k") == (b"one", version)  # the tables are there
    await unavailable(put(store, "k", version, b"two"), "target_session_attrs=read-write")
    await unavailable(store.put_blob("k", "b", b"x"), "read-only")
    assert not any(share.idle for share in store._commits._shares.values())
    for each in (store, other):
        await each.aclose()


async def test_too_many_connections(server: Server, admin: Admin, store: PostgresStore) -> None:
    """No connection left is an outage, and ends with it."""
    role = admin.url.rpartition("/")[2]
    admin.run(f"ALTER ROLE {role} CONNECTION LIMIT 1")
    admin.run(f"GRANT CREATE ON SCHEMA public TO {role}")
    limited = PostgresStore.from_url(admin.at(role))
    with psycopg.connect(admin.at(role)):
        await unavailable(limited.load("k"), "too many connections")
    assert await limited.load("k") is None
    await limited.aclose()


async def test_server_without_fsync(
    server: Server, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    """That a server does not sync is said, once a store."""
    server.admin.run("ALTER SYSTEM SET fsync = off")
    server.admin.run("SELECT pg_reload_conf()")
    try:
        await support.true(lambda: server.admin.run("SHOW fsync") == [("off",)])
        store = PostgresStore.from_url(admin.url)
        with caplog.at_level(logging.WARNING):
            await put(store, "k", None, b"one")
            await store.load("k")
        await store.aclose()
        (message,) = [record.getMessage() for record in caplog.records]
        assert message.endswith("fsync=off, so what is stored may not survive a crash")
    finally:
        server.admin.run("ALTER SYSTEM RESET fsync")
        server.admin.run("SELECT pg_reload_conf()")


async def test_frozen_server(server: Server, admin: Admin, store: PostgresStore) -> None:
    """A server that does not answer holds a call up no longer than the call may take; what it
    was asked it may do when it thaws, once."""
    version = await put(store, "k", None, b"one")
    with server.frozen():
        for _ in range(2):  # on a connection, then while connecting
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await put(store, "k", version, b"two")
            (share,) = store._commits._shares.values()
            assert not share.room.locked()  # nothing is left waiting
    head = await store.load("k")
    assert head is not None
    if head.version != version:
        assert head.record == b"two"
        await refused(put(store, "k", version, b"three"))
    await put(store, "k", head.version, b"four")


async def test_frozen_while_a_blob_is_put(
    server: Server, admin: Admin, store: PostgresStore
) -> None:
    """A put that a frozen server holds up can be cancelled, and leaves no blob."""
    await store.put_blob("k", "b", b"before")
    with server.frozen(), pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await store.put_blob("k", "b", bytes(32 << 20))
    assert await read(store.open_blob("k", "b")) == b"before"
    await support.true(lambda: admin.run("SELECT count(*) FROM aiocheckpoint_chunks") == [(1,)])


AT_EXIT = """
import asyncio, sys, threading
from aiocheckpoint.abc import Put
from aiocheckpoint.stores import open_store

store = open_store(sys.argv[1])

def at_exit():
    asyncio.run(last())

async def last():
    print(await store.commit([Put("k", None, b"one")]))
    await store.put_blob("k", "large", b"x")
    print(await store.list_blobs("k"))
    await store.aclose()

threading._register_atexit(at_exit)
"""


def test_at_exit(admin: Admin) -> None:
    """A store connects and works while the interpreter exits."""
    url = admin.url
    run = [sys.executable, "-W", "error", "-c", AT_EXIT, url]
    done = subprocess.run(run, capture_output=True, text=True, timeout=30, check=False)
    assert "['large']" in done.stdout, done.stderr
    assert not done.stderr
