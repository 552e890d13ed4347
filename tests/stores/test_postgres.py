"""The PostgreSQL store: the contract, its URL, its tables, its batches and its blobs."""

from __future__ import annotations

import asyncio
import secrets
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from urllib.parse import quote

import psycopg
import pytest

from aiocheckpoint._errors import ConflictError, StoreError, StoreUnavailableError
from aiocheckpoint.abc import Put, Store
from aiocheckpoint.stores import open_store
from aiocheckpoint.stores import postgres as postgres_module
from aiocheckpoint.stores._postgres_tables import Tables
from aiocheckpoint.stores._postgres_url import parse_url
from aiocheckpoint.stores.postgres import PostgresStore
from aiocheckpoint.testing.contract import StoreContract, listed, put, read, refused

from ..postgresql import Admin, some_server
from ..support import ROOT, poll

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Stores run on the I/O thread's loop, which is asyncio."""
    return "asyncio"


@pytest.fixture(scope="module")
def admin() -> Iterator[Admin]:
    """A database of this module's own."""
    with some_server() as server, server.database() as admin:
        yield admin


@pytest.fixture
def table() -> str:
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
def url(admin: Admin, table: str) -> str:
    return f"{admin.url}?table={table}"


class TestPostgresStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _place(self, admin: Admin, table: str, url: str) -> None:
        self.admin, self.table, self.url = admin, table, url

    async def make_store(self) -> Store:
        return PostgresStore.from_url(self.url)

    async def raw_head(self, store: Store, key: str) -> bytes | None:
        async with await psycopg.AsyncConnection.connect(self.admin.url) as connection:
            query = f"SELECT record FROM {self.table} WHERE key = %s".encode()
            cursor = await connection.execute(query, [key.encode()], binary=True)
            row: tuple[bytes] | None = await cursor.fetchone()
        return row and row[0]


class Opened(AsyncExitStack):
    """Opens stores, and closes them."""

    def store(self, url: str) -> PostgresStore:
        store = PostgresStore.from_url(url)
        self.push_async_callback(store.aclose)
        return store


@pytest.fixture
async def opened() -> AsyncIterator[Opened]:
    async with Opened() as stack:
        yield stack


# The URL.


def test_identity() -> None:
    """A store is named by host, port, database and table, and by no secret."""
    for url, identity in {
        "postgresql://me:hush@db:5433/jobs": "postgresql://db:5433/jobs/aiocheckpoint",
        "postgres://db/jobs?table=a.b&sslmode=disable": "postgresql://db:5432/jobs/a.b",
        "PostgreSQL://db/jobs?password=hush": "postgresql://db:5432/jobs/aiocheckpoint",
        "postgresql://a:1,b:2/jobs": "postgresql://a,b:1,2/jobs/aiocheckpoint",
        "postgresql://me@db": "postgresql://db:5432/me/aiocheckpoint",
        "postgresql://%2Frun%2Fpg/jobs": "postgresql:///run/pg:5432/jobs/aiocheckpoint",
        "postgresql:///jobs?service=s&host=db": "postgresql://s:db:5432/jobs/aiocheckpoint",
    }.items():
        store = open_store(url)
        assert isinstance(store, PostgresStore)
        assert store.identity == identity
        assert "hush" not in f"{store!r} {store.spool_dir} {parse_url(url)!r}"


def test_identity_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What libpq takes from its environment is part of the name, as it says which store it is."""
    for name, value in {"PGHOST": "db", "PGPORT": "99", "PGDATABASE": "jobs"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PGPASSWORD", "hush")
    assert open_store("postgresql://").identity == "postgresql://db:99/jobs/aiocheckpoint"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://db/jobs?tabel=x", "'tabel' is no option of a PostgreSQL URL"),
        ("postgresql:jobs", "write postgresql://user:password@host"),
        ("postgresql://me:hu@sh@db/jobs", "write @ as %40"),
        ("postgresql://me:hu/sh@db/jobs", "/ as %2F"),
        ("postgresql://me:hu?sh@db/jobs", r"\? as %3F"),
        ("postgresql://me:12?hush=x@db/jobs", r"\? as %3F"),
        ("postgresql://me:hush@db:x%zz/jobs", "percent-encoded"),
        ("postgresql://me:hush@db/jobs?table=a.b.c", "table=schema.name"),
        ("postgresql://me:hush@db/jobs?table=", "table=schema.name"),
        ("postgresql://me:hush@db/jobs?table=a%00b", "table=schema.name"),
        ("postgresql://me:hush@db/jobs?table=" + "x" * 57, "too long: 56 bytes at most"),
        ("postgresql://me:hush@db/jobs?pool_size=2", "pool_size='2' in the URL"),
        ("postgresql://me:hush@db/jobs?prepare_threshold=no", "it is a number"),
    ],
)
def test_mistaken_url(url: str, message: str) -> None:
    """What is wrong with a URL is said at once, without what may be part of a password."""
    with pytest.raises(ValueError, match=message) as caught:
        open_store(url)
    assert "hu" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_options_for_libpq(admin: Admin, url: str, opened: Opened) -> None:
    """Options that are not ours go to libpq, and those for the session hold in it."""
    store = opened.store(f"{url}&options=-c%20search_path%3Dpg_catalog&application_name=mine")
    with pytest.raises(StoreError, match="denied to create"):
        await store.load("k")
    store = opened.store(f"{url}&application_name=mine&prepare_threshold=none&pool_size=3")
    for _ in range(20):
        await store.load("k")
    names = admin.run(
        "SELECT application_name FROM pg_stat_activity WHERE query LIKE 'SELECT record%%'"
        " AND datname = current_database()"
    )
    assert ("mine",) in names


async def test_lost_prepared_statements(url: str, opened: Opened) -> None:
    """A pooler that hands out other sessions is found out, and the option named."""
    store = opened.store(url)
    for _ in range(10):
        await store.load("k")
    (share,) = store._lookups._shares.values()
    for connection in share.idle:
        await connection.execute("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")
    with pytest.raises(StoreError, match="pgbouncer in transaction mode add prepare"):
        await store.load("k")


# The tables.


async def test_tables_made_by_many_at_once(url: str, opened: Opened) -> None:
    """Stores that make the tables at the same time make them once."""
    stores = [opened.store(url) for _ in range(8)]
    await asyncio.gather(*(put(store, f"{i}", None, b"x") for i, store in enumerate(stores)))
    assert len(await listed(stores[0])) == 8


@pytest.mark.parametrize(
    "table",
    ["Two Words", "a%b%s%%", 'x"; DROP TABLE y; --', "é😀", "$1", "select", "'", "pg.x", "x" * 56],
)
async def test_hostile_tables(admin: Admin, table: str, opened: Opened) -> None:
    """Whatever a table is called, and its schema, it is a name and nothing else."""
    if "." in table:
        table = "x.y"
        admin.run("CREATE SCHEMA IF NOT EXISTS x")
    store = opened.store(f"{admin.url}?table={quote(table)}")
    version = await put(store, "k", None, b"one")
    await store.put_blob("k", "b", b"blob")
    assert await read(store.open_blob("k", "b")) == b"blob"
    await put(store, "k", version, b"two")
    assert await listed(store) == ["k"]
    await store.delete_blobs("k", ["b"])
    names = admin.run("SELECT relname FROM pg_class WHERE relname = %s", table.rpartition(".")[2])
    assert len(names) == 1


async def test_later_schema(admin: Admin, table: str, url: str, opened: Opened) -> None:
    """Tables that a later aiocheckpoint has made are refused, and left alone."""
    await put(opened.store(url), "k", None, b"one")
    admin.run(f"UPDATE {table}_schema SET version = 2")
    with pytest.raises(StoreError, match="has schema 2, this aiocheckpoint knows 1; upgrade") as e:
        await opened.store(url).load("k")
    assert type(e.value) is StoreError


async def test_schema_that_is_missing(admin: Admin, opened: Opened) -> None:
    """A schema is made by whoever may, not by us."""
    with pytest.raises(StoreError, match="CREATE SCHEMA") as caught:
        await opened.store(f"{admin.url}?table=nowhere.t").load("k")
    assert type(caught.value) is StoreError


async def test_table_of_others(admin: Admin, table: str, url: str, opened: Opened) -> None:
    """A table of that name which is not ours is left alone."""
    admin.run(f"CREATE TABLE {table} (x int)")
    with pytest.raises(StoreError, match=r"another with \?table=") as caught:
        await opened.store(url).load("k")
    assert type(caught.value) is StoreError
    assert admin.run(f"SELECT * FROM {table}") == []


async def test_role_without_rights(admin: Admin, table: str, url: str, opened: Opened) -> None:
    """A role that may not make tables is told so; with the GRANTs it needs no more than those."""
    role = admin.url.rpartition("/")[2]
    theirs = admin.at(role) + f"?table={table}"
    with pytest.raises(
        StoreError, match="permission denied for schema public; see the GRANTs"
    ) as e:
        await opened.store(theirs).load("k")
    assert type(e.value) is StoreError
    tables = Tables((table,), "")
    admin.run(tables.ddl())
    for call in (opened.store(theirs).load("k"), listed(opened.store(theirs))):
        with pytest.raises(StoreError, match=r"denied for table .*; see the GRANTs"):
            await call
    admin.run(tables.grants(role))
    store = opened.store(theirs)
    version = await put(store, "k", None, b"one")
    version = await put(store, "k", version, b"two")
    await store.put_blob("k", "b", b"one")
    await store.put_blob("k", "b", b"two")
    assert await read(store.open_blob("k", "b")) == b"two"
    await store.delete_blobs("k", ["b"])
    await store.delete("k", version)
    assert admin.run(f"SELECT * FROM {table}_chunks") == []


def test_documented_tables() -> None:
    """The docs show the very DDL and GRANTs that the code has."""
    tables = Tables(("aiocheckpoint",), "")
    page = (ROOT / "docs" / "howto-postgresql.md").read_text()
    assert f"```sql\n{tables.ddl()}```" in page
    assert f"```sql\n{tables.grants('worker')}```" in page


async def test_tables_dropped(admin: Admin, table: str, url: str, opened: Opened) -> None:
    """Tables that are dropped under an open store are an error that lasts, never no state."""
    store = opened.store(url)
    await put(store, "k", None, b"one")
    admin.run(f"DROP TABLE {table}")
    with pytest.raises(StoreError, match="were dropped") as caught:
        await store.load("k")
    assert type(caught.value) is StoreError


async def test_durable_whatever_the_session_says(
    admin: Admin, table: str, url: str, opened: Opened
) -> None:
    """A commit waits for the disk where the database says that none does; what waits is kept."""
    admin.run(Tables((table,), "").ddl())
    admin.run(f"CREATE TABLE {table}_seen (setting text)")
    admin.run(
        f"CREATE FUNCTION {table}_note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" INSERT INTO {table}_seen VALUES (current_setting('synchronous_commit'));"
        " RETURN NULL; END $$"
    )
    for part in ("", "_blobs"):
        admin.run(
            f"CREATE CONSTRAINT TRIGGER note AFTER INSERT OR DELETE OR UPDATE ON {table}{part}"
            f" DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {table}_note()"
        )
    for setting, wanted in {"off": "on", "local": "local", "remote_apply": "remote_apply"}.items():
        store = opened.store(f"{url}&options=-c%20synchronous_commit%3D{setting}")
        version = await put(store, "k", None, b"one")
        version = await put(store, "k", version, b"two")
        await store.put_blob("k", "b", b"x")
        await store.delete("k", version)
        assert admin.run(f"DELETE FROM {table}_seen RETURNING setting") == [(wanted,)] * 4


# Batches.


async def test_batches_in_opposite_order(url: str, opened: Opened) -> None:
    """Batches that want the same keys in opposite orders all end, and each key has one winner."""
    keys = [f"{n:03d}" for n in range(300)]
    stores = [opened.store(url) for _ in range(4)]
    await stores[0].load("k")
    for _ in range(3):
        answers = await asyncio.gather(
            *(
                store.commit([Put(key, None, b"x") for key in (keys, keys[::-1])[n % 2]])
                for n, store in enumerate(stores)
            )
        )
        heads = {key: await stores[0].load(key) for key in keys}
        for n, answer in enumerate(answers):
            for key, outcome in zip((keys, keys[::-1])[n % 2], answer, strict=True):
                assert isinstance(outcome, ConflictError | StoreUnavailableError | int)
                head = heads[key]
                assert head is not None
                assert (outcome == head.version) == isinstance(outcome, int)
                if isinstance(outcome, int):
                    await stores[0].delete(key, outcome)


async def test_one_winner_when_serializable(admin: Admin, table: str, url: str) -> None:
    """A database whose transactions are serializable by default makes no difference."""
    contract = TestPostgresStore()
    contract.admin, contract.table = admin, table
    contract.url = f"{url}&options=-c%20default_transaction_isolation%3Dserializable"
    await contract.test_one_winner()


async def test_one_bad_item(admin: Admin, table: str, url: str, opened: Opened) -> None:
    """A row that the database will not have fails alone."""
    admin.run(Tables((table,), "").ddl())
    admin.run(f"ALTER TABLE {table} ADD CHECK (record <> 'bad')")
    store = opened.store(url)
    records = [b"bad" if n in (7, 70) else b"good" for n in range(100)]
    answers = await store.commit([Put(f"{n}", None, records[n]) for n in range(100)])
    assert [n for n in range(100) if isinstance(answers[n], StoreError)] == [7, 70]
    bad = answers[7]
    assert type(bad) is StoreError
    assert "violates check constraint" in str(bad)
    assert len(await listed(store)) == 98


async def test_record_too_large(url: str, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that PostgreSQL cannot be sent fails alone."""
    monkeypatch.setattr(postgres_module, "_MAX_RECORD", 1000)
    store = opened.store(url)
    large, small = await store.commit([Put("a", None, bytes(1001)), Put("b", None, bytes(1000))])
    assert type(large) is StoreError
    assert "too large" in str(large)
    assert await store.load("b") == (bytes(1000), small)


async def test_several_statements(
    admin: Admin, table: str, url: str, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of many bytes is several statements; what was not reached in time may be tried
    again, and what was done is said to be."""
    monkeypatch.setattr(postgres_module, "_STATEMENT", 1000)
    store = opened.store(url)
    answers = await store.commit([Put(f"{n}", None, bytes(400)) for n in range(10)])
    assert len(set(answers)) == 5
    batch = [Put(f"{n}", answer, b"x" * 400) for n, answer in enumerate(answers)]  # type: ignore[arg-type]
    monkeypatch.setattr(postgres_module, "_BATCH_TIME", -1.0)
    again = await store.commit(batch)
    assert [n for n in range(10) if isinstance(again[n], StoreUnavailableError)] == [*range(2, 10)]
    for n in range(10):
        head = await store.load(f"{n}")
        assert head is not None
        assert head.version == (again[n] if n < 2 else answers[n])


def test_many_loops(admin: Admin, url: str) -> None:
    """Loops at once and one after the other share a store, more calls than connections on each."""
    store = PostgresStore.from_url(url)
    met = threading.Barrier(2, timeout=20)

    async def busy(name: str) -> int:
        await store.load(name)
        met.wait()
        puts = [Put(f"{name}{number}", None, b"r") for number in range(20)]
        await asyncio.gather(*(store.commit([put]) for put in puts))
        await asyncio.gather(*(store.put_blob(name, f"{n}", b"b") for n in range(20)))
        return len(await store.list_blobs(name))

    for turn in range(2):
        with ThreadPoolExecutor() as threads:
            done = [threads.submit(asyncio.run, busy(f"{turn}{one}")) for one in "ab"]
            assert [found.result(30) for found in done] == [20, 20]
    asyncio.run(store.aclose())
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'aiocheckpoint'"
    gone = f"{query} AND datname = current_database()"
    poll(lambda: admin.run(gone) == [(0,)])


async def test_version_of_another_store(url: str, opened: Opened) -> None:
    """Versions are random: those of one table do not hold in another, nor come again."""
    one, other = opened.store(url), opened.store(f"{url}2")
    version = await put(one, "k", None, b"x")
    await put(other, "k", None, b"x")
    await refused(put(other, "k", version, b"y"))
    await refused(other.delete("k", version))


async def test_backup_put_back(admin: Admin, table: str, url: str, opened: Opened) -> None:
    """After a backup was put back no version that was made since holds, nor is made again."""
    store = opened.store(url)
    first = await put(store, "k", None, b"one")
    admin.run(f"CREATE TABLE {table}_backup AS SELECT * FROM {table}")
    second = await put(store, "k", first, b"two")
    admin.run(f"DELETE FROM {table}")
    admin.run(f"INSERT INTO {table} SELECT * FROM {table}_backup")
    await refused(put(store, "k", second, b"three"))
    assert await put(store, "k", first, b"three") != second


# Blobs.


async def test_blob_replaced_while_it_is_read(url: str, opened: Opened) -> None:
    """Who reads a blob that is replaced or deleted meanwhile gets no mixture, but an error."""
    store = opened.store(url)
    for change in (store.put_blob("k", "b", b"2" * (5 << 20)), store.delete_blobs("k", ["b"])):
        await store.put_blob("k", "b", b"1" * (5 << 20))
        chunks = store.open_blob("k", "b")
        assert set(await anext(chunks)) == {ord("1")}
        await change
        with pytest.raises(FileNotFoundError):
            await read(chunks)


async def test_blobs_leave_no_pieces(admin: Admin, table: str, url: str, opened: Opened) -> None:
    """Puts of one name that race, fail or are cancelled, and deletes, leave no piece too many."""
    store = opened.store(url)
    bodies = [b"%d" % n * (2 << 20) for n in range(4)]
    puts = [store.put_blob("k", "b", body) for body in bodies]
    await asyncio.gather(*puts, store.delete_blobs("k", ["b"]), store.delete_blobs("k", ["b"]))
    if await store.list_blobs("k"):
        assert await read(store.open_blob("k", "b")) in bodies
    await store.put_blob("k", "b", bodies[0])
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1000
            begun.set()
            await asyncio.sleep(0)

    endless_put = asyncio.ensure_future(store.put_blob("k", "b", endless()))
    await begun.wait()
    endless_put.cancel()
    await asyncio.gather(endless_put, return_exceptions=True)
    assert await read(store.open_blob("k", "b")) == bodies[0]
    left = f"SELECT count(*) FROM {table}_chunks"
    assert admin.run(left) == [(2,)]
    await store.delete_blobs("k", ["b"])
    assert admin.run(left) == [(0,)]


async def test_missing_piece(admin: Admin, table: str, url: str, opened: Opened) -> None:
    """A blob of which a piece is gone is missing, not shorter."""
    store = opened.store(url)
    await store.put_blob("k", "b", b"1" * (3 << 20))
    admin.run(f"DELETE FROM {table}_chunks WHERE start = 1 << 20")
    with pytest.raises(FileNotFoundError, match="a piece of blob b of 'k' is missing, at 1048576"):
        await read(store.open_blob("k", "b"))


async def test_large_blobs_in_little_memory(url: str, opened: Opened) -> None:
    """A blob of 64 MiB passes through in a few MiB of memory, and nothing else waits for it."""
    store = opened.store(url)
    version = await put(store, "k", None, b"one")
    chunk = b"0123456789abcdef" * (4 << 16)
    gate = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        for _ in range(16):
            yield chunk
        await gate.wait()

    tracemalloc.start()
    try:
        puts = [asyncio.ensure_future(store.put_blob("k", f"b{n}", source())) for n in range(4)]
        version = await put(store, "k", version, b"two")
        assert await store.load("k") == (b"two", version)
        await refused(read(store.open_blob("k", "b0")), FileNotFoundError)
        gate.set()
        await asyncio.gather(*puts)
        size = 0
        async for piece in store.open_blob("k", "b0"):
            size += len(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == 64 << 20
    assert peak < 24 << 20
