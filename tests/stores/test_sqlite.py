"""The SQLite store against other programs, other files and bad disks."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from aiocheckpoint._errors import ConflictError, StoreError, StoreUnavailableError
from aiocheckpoint.abc import Put
from aiocheckpoint.stores import sqlite as sqlite_module
from aiocheckpoint.stores.sqlite import SqliteStore
from aiocheckpoint.testing.contract import listed, put, refused

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def other(path: Path) -> closing[sqlite3.Connection]:
    """Another program's connection."""
    return closing(sqlite3.connect(path, isolation_level=None))


async def test_locked(path: Path) -> None:
    """While another program writes, reads go on and commits are told, soon, to come back."""
    store = SqliteStore(path)
    version = await put(store, "k", None, b"one")
    with other(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        start = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="another process is writing to it"):
            await put(store, "k", version, b"two")
        with pytest.raises(StoreUnavailableError, match="another process is writing to it"):
            await store.delete("k", version)
        assert time.monotonic() - start < 5
        assert await store.load("k") == (b"one", version)
        connection.execute("ROLLBACK")
    await put(store, "k", version, b"two")
    await store.aclose()


async def test_locked_when_new(path: Path) -> None:
    """A database that another program is making is waited for by trying again."""
    with other(path) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        store = SqliteStore(path)
        with pytest.raises(StoreUnavailableError):
            await store.load("k")
        connection.execute("ROLLBACK")
    assert await store.load("k") is None
    await store.aclose()


async def test_opened_by_many_at_once(path: Path) -> None:
    """Instances that make the database at the same time make one."""
    stores = [SqliteStore(path) for _ in range(8)]

    async def create(store: SqliteStore, key: str) -> None:
        while True:
            try:
                await put(store, key, None, b"x")
                break
            except StoreUnavailableError:
                await asyncio.sleep(0.01)

    await asyncio.gather(*(create(store, f"{i}") for i, store in enumerate(stores)))
    assert len(await listed(stores[0])) == 8
    for store in stores:
        await store.aclose()


async def test_shared_database(path: Path) -> None:
    """A database that has other tables may be shared: they stay as they are."""
    with other(path) as connection:
        connection.execute("PRAGMA application_id=1234")
        connection.execute("PRAGMA user_version=99")
        connection.execute("CREATE TABLE heads (x)")
        connection.execute("INSERT INTO heads VALUES (1)")
        store = SqliteStore(path)
        version = await put(store, "k", None, b"one")
        assert await store.load("k") == (b"one", version)
        await store.aclose()
        assert connection.execute("SELECT x FROM heads").fetchall() == [(1,)]
        assert connection.execute("PRAGMA user_version").fetchone() == (99,)
        assert connection.execute("PRAGMA application_id").fetchone() == (1234,)


async def test_newer_schema(path: Path) -> None:
    """A database that a later aiocheckpoint has made is refused, and left alone."""
    store = SqliteStore(path)
    await put(store, "k", None, b"one")
    await store.aclose()
    with other(path) as connection:
        connection.execute("UPDATE aiocheckpoint_meta SET value=2 WHERE name='schema'")
    store = SqliteStore(path)
    with pytest.raises(StoreError, match="has schema 2, this aiocheckpoint knows 1; upgrade it"):
        await store.load("k")
    await store.aclose()


async def test_other_encoding(path: Path) -> None:
    """A database in UTF-16 would sort keys wrongly, and is refused."""
    with other(path) as connection:
        connection.execute("PRAGMA encoding='UTF-16le'")
        connection.execute("CREATE TABLE t (x)")
    store = SqliteStore(path)
    with pytest.raises(StoreError, match="use a database of its own"):
        await store.load("k")
    await store.aclose()


async def test_no_database(path: Path) -> None:
    """A file that is no database is an error that lasts, and is left alone."""
    path.write_bytes(b"precious" * 1000)
    store = SqliteStore(path)
    for call in (store.load("k"), put(store, "k", None, b"x"), listed(store)):
        with pytest.raises(StoreError, match="not an SQLite database; name another") as caught:
            await call
        assert type(caught.value) is StoreError
        assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)
    await store.aclose()
    assert path.read_bytes() == b"precious" * 1000


async def test_corrupt_database(path: Path) -> None:
    """A damaged database is an error that lasts, never a key that was not written."""
    store = SqliteStore(path)
    await store.commit([Put(f"{i}", None, os.urandom(500)) for i in range(1000)])
    await store.aclose()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xa5" * (path.stat().st_size - 8192))
    store = SqliteStore(path)
    with pytest.raises(StoreError, match="malformed; it is damaged; move it away") as caught:
        await store.load("500")
    assert type(caught.value) is StoreError
    await store.aclose()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE aiocheckpoint_heads SET record = 'text'",
        "UPDATE aiocheckpoint_heads SET version = 'x'",
        "UPDATE aiocheckpoint_heads SET key = CAST(key AS BLOB)",
    ],
)
async def test_a_row_of_other_types_is_damage(path: Path, damage: str) -> None:
    """SQLite does not notice all damage: a row may come back with values of any type."""
    store = SqliteStore(path)
    await put(store, "k", None, b"x")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(damage)
    with pytest.raises(StoreError, match="malformed; it is damaged; move it away"):
        await store.load("k")
        await listed(store)
    await store.aclose()


async def test_damage_in_the_text_of_a_message(path: Path) -> None:
    """What SQLite says of a damaged schema quotes it, and need not be text."""
    store = SqliteStore(path)
    await put(store, "k", None, b"x")
    await store.aclose()
    data = path.read_bytes()
    path.write_bytes(
        data.replace(b"CREATE TABLE aiocheckpoint_heads", b"CREATE \xffABLE" + b" " * 19)
    )
    store = SqliteStore(path)
    with pytest.raises(StoreError, match="malformed; it is damaged; move it away"):
        await store.load("k")
    await store.aclose()


async def test_replaced_database(path: Path) -> None:
    """A database that was moved away under an open store is not written to any more."""
    store = SqliteStore(path)
    version = await put(store, "k", None, b"one")
    with other(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path.rename(path.with_name("backup.db"))
    await refused(put(store, "k", version, b"two"))
    assert await store.load("k") is None
    await store.aclose()
    with other(path.with_name("backup.db")) as connection:
        records = connection.execute("SELECT record FROM aiocheckpoint_heads").fetchall()
    assert records == [(b"one",)]


async def test_backup_put_back(path: Path) -> None:
    """After a backup was put back no version that was made since holds, nor is made again."""
    store = SqliteStore(path)
    first = await put(store, "k", None, b"one")
    with other(path) as connection:
        backup = connection.execute("SELECT * FROM aiocheckpoint_heads").fetchone()
        second = await put(store, "k", first, b"two")
        insert = "REPLACE INTO aiocheckpoint_heads VALUES (?, ?, ?)"
        connection.execute(insert, backup)
    await refused(put(store, "k", second, b"three"))
    assert await put(store, "k", first, b"three") != second
    await store.aclose()


async def test_record_too_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that SQLite cannot hold fails alone."""
    monkeypatch.setattr(sqlite_module, "_MAX_RECORD", 1000)
    store = SqliteStore(path)
    large, small = await store.commit([Put("a", None, bytes(1001)), Put("b", None, bytes(1000))])
    assert isinstance(large, StoreError)
    assert not isinstance(large, ConflictError)
    assert "too large" in str(large)
    assert await store.load("a") is None
    assert await store.load("b") == (bytes(1000), small)
    await store.aclose()


async def test_batch_of_several_statements(path: Path) -> None:
    """Each put of a large batch has its own answer: new ones, later ones, and those that come too
    late."""
    store = SqliteStore(path)
    keys = [f"{n}" for n in range(1100)]
    answers = await store.commit([Put(key, None, b"one") for key in keys])
    made = [answer for answer in answers if not isinstance(answer, StoreError)]
    late = {"0", "1023", "1024", "1099"}
    for key in late:
        await put(store, key, made[keys.index(key)], b"another")
    news = [Put(f"new {n}", None, b"two") for n in range(37)]
    olds = [Put(key, made[n], b"two") for n, key in enumerate(keys)]
    answers = await store.commit([*news, *olds, Put("0 again", 1, b"two")])
    conflicts = {
        put.key
        for put, answer in zip([*news, *olds, Put("0 again", 1, b"")], answers, strict=True)
        if isinstance(answer, ConflictError)
    }
    assert conflicts == late | {"0 again"}
    for key in ("0", "1", "1023", "1025", "1098", "new 36"):
        found = await store.load(key)
        assert found is not None
        assert found.record == (b"another" if key in late else b"two")
    await store.aclose()


async def test_failed_batch_leaves_no_transaction(path: Path) -> None:
    """Whatever a batch fails with, the next one finds no transaction open."""
    store = SqliteStore(path)
    with pytest.raises(OverflowError):
        await store.commit([Put("a", None, b"x"), Put("k", 1 << 70, b"x")])
    assert await store.load("a") is None
    await put(store, "a", None, b"x")
    with other(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
    await store.aclose()


async def test_files(path: Path) -> None:
    """Blobs lie beside the database, under their keys' names; closing ends all threads."""
    threads = set(threading.enumerate())
    store = SqliteStore(path)
    await put(store, "a/b", None, b"x")
    await store.put_blob("a/b", "blob", b"x")
    assert (path.parent / "jobs.db-blobs" / "a%2fb" / "blob").read_bytes() == b"x"
    assert store.spool_dir == path.parent / "jobs.db-spool"
    await store.delete_blobs("a/b", ["blob"])
    await store.aclose()
    assert sorted(os.listdir(path.parent)) == ["jobs.db", "jobs.db-blobs"]
    assert os.listdir(path.parent / "jobs.db-blobs") == []
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)
        assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        await store.load("k")
    await store.aclose()


AT_EXIT = """
import asyncio, sys, threading
from aiocheckpoint.abc import Put
from aiocheckpoint.stores import open_store

store = open_store(sys.argv[1])
(version,) = asyncio.run(store.commit([Put("k", None, b"one")]))

def at_exit():
    asyncio.run(last())

async def last():
    await store.put_blob("k", "large", b"x")
    print(await store.commit([Put("k", version, b"two")]), await store.list_blobs("k"))
    await store.aclose()

threading._register_atexit(at_exit)
"""


@pytest.mark.parametrize("url", ["sqlite:{}/jobs.db", "file:{}/jobs"])
def test_at_exit(tmp_path: Path, url: str) -> None:
    """A store that was used before works while the interpreter exits, blobs and all."""
    run = [sys.executable, "-c", AT_EXIT, url.format(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=30, check=False)
    assert "['large']" in done.stdout, done.stderr
    assert not done.stderr


def test_constructor(tmp_path: Path) -> None:
    """What is wrong with the path is said at once, and no file is made yet."""
    for path, message in {"": "is a directory", "no/jobs.db": "create it first"}.items():
        with pytest.raises(StoreError, match=message) as caught:
            SqliteStore(tmp_path / path)
        assert caught.value.op == "open"
    SqliteStore(tmp_path / "jobs.db")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own, where the tests may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


async def test_disk_full(small_disk: Path) -> None:
    """A full disk is passing: what was stored stays, and commits go on once there is room."""
    store = SqliteStore(small_disk / "jobs.db")
    version = await put(store, "k", None, b"one")
    (small_disk / "ballast").write_bytes(bytes(600_000))
    for _ in range(3):
        with pytest.raises(StoreUnavailableError, match="disk"):
            await put(store, "k", version, os.urandom(400_000))
        assert store._connection is None  # what failed once must not seem to succeed later
    assert await store.load("k") == (b"one", version)
    (small_disk / "ballast").unlink()
    await put(store, "k", version, os.urandom(200_000))
    await store.aclose()


async def test_read_only(small_disk: Path) -> None:
    """A database that cannot be written is refused when it is opened."""
    store = SqliteStore(small_disk / "jobs.db")
    await put(store, "k", None, b"one")
    await store.aclose()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for name in ("jobs.db", "other.db"):
        with pytest.raises(StoreError, match="cannot be written"):
            SqliteStore(small_disk / name)
