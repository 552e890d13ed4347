"""The Redis store: the contract, what lies where, what expires, and what a URL may say."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis

from aiocheckpoint._errors import StoreError, StoreUnavailableError
from aiocheckpoint.abc import Put, Store
from aiocheckpoint.stores import _redis_blobs, open_store
from aiocheckpoint.stores import redis as redis_module
from aiocheckpoint.stores.redis import RedisStore
from aiocheckpoint.testing.contract import StoreContract, listed, put, read, refused

from ..servers import missing
from .redis_server import PORT, client

pytestmark = pytest.mark.anyio

URL = f"redis://127.0.0.1:{PORT}"
HOUR = 3_600_000


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Stores run on the I/O thread's loop, which is asyncio."""
    return "asyncio"


@pytest.fixture
def raw() -> Iterator[redis.Redis]:
    """A client of the running server, past the store."""
    with client(PORT) as raw:
        try:
            raw.ping()
        except redis.ConnectionError:
            missing(f"Redis on port {PORT}", "install redis-server and start it")
        yield raw


@pytest.fixture
def prefix(raw: redis.Redis) -> Iterator[str]:
    """A prefix of this test's own, of which nothing is left after."""
    prefix = f"test-{secrets.token_hex(6)}"
    yield prefix
    for key in raw.scan_iter(f"{prefix}*", count=10_000):
        raw.delete(key)


class TestRedisStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _place(self, raw: redis.Redis, prefix: str) -> None:
        self.raw = raw
        self.prefix = prefix

    async def make_store(self) -> Store:
        return RedisStore(URL, prefix=self.prefix)

    async def raw_head(self, store: Store, key: str) -> bytes | None:
        found = self.raw.hget(f"{self.prefix}/head/{key}", "record")
        assert found is None or isinstance(found, bytes)
        return found


class TestExpiringRedisStore(TestRedisStore):
    """The same promises while nothing has expired yet."""

    async def make_store(self) -> Store:
        return RedisStore(URL, prefix=self.prefix, ttl=3600)


@pytest.fixture
async def store(prefix: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(URL, prefix=prefix)
    yield store
    await store.aclose()


@pytest.fixture
async def expiring(prefix: str) -> AsyncIterator[RedisStore]:
    """A store over the same keys whose keys expire."""
    store = RedisStore(URL, prefix=prefix, ttl=HOUR / 1000)
    yield store
    await store.aclose()


def below(raw: redis.Redis, prefix: str) -> dict[str, int]:
    """What lies under the prefix, and for how many milliseconds yet; -1 for ever."""
    keys = sorted(str(key, "utf-8") for key in raw.scan_iter(f"{prefix}/*", count=10_000))
    return {key.removeprefix(f"{prefix}/"): int(raw.pttl(key)) for key in keys}


async def test_layout(raw: redis.Redis, prefix: str, store: RedisStore) -> None:
    """A key is a hash and an entry of the index; a blob is its chunks and one field."""
    version = await put(store, "a/b", None, b"record")
    await store.put_blob("a/b", "blob", b"x")
    head = raw.hgetall(f"{prefix}/head/a/b")
    assert head == {b"version": str(version).encode(), b"record": b"record"}
    assert raw.zrange(f"{prefix}/keys", 0, -1) == [b"a/b"]
    (name, meta) = raw.hgetall(f"{prefix}/blobs/a/b").popitem()
    assert isinstance(meta, bytes)
    blob, *rest = meta.decode().split()
    assert (name, rest) == (b"blob", ["1", "1"])
    places = [f"chunk/{blob}/0", "blobs/a/b", "head/a/b", "keys"]
    assert below(raw, prefix) == dict.fromkeys(places, -1)
    await store.delete_blobs("a/b", ["blob"])
    await store.delete("a/b", version)
    assert below(raw, prefix) == {}


async def test_prefixes(prefix: str, store: RedisStore) -> None:
    """Stores of other prefixes see nothing of each other."""
    others = [RedisStore(URL, prefix=f"{prefix}{more}") for more in (":head", "2", "*")]
    await put(store, "k", None, b"x")
    await store.put_blob("k", "b", b"x")
    for other in others:
        assert await other.load("k") is None
        assert await other.list_blobs("k") == []
        assert await listed(other) == []
        await other.aclose()


async def test_versions_after_a_lost_index(
    raw: redis.Redis, prefix: str, store: RedisStore
) -> None:
    """Nothing that the server forgets makes it give a version twice."""
    versions = []
    for _ in range(3):
        versions.append(await put(store, "k", None, b"same"))
        for key in raw.scan_iter(f"{prefix}/*"):
            raw.delete(key)
    assert len(set(versions)) == 3
    for version in versions:
        await refused(put(store, "k", version, b"late"))


async def test_batch_of_many_scripts(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each item of a batch has its own answer, in whichever script and whatever its size."""
    monkeypatch.setattr(redis_module, "_MAX_RECORD", 3 << 20)
    size = {7: 2 << 20, 8: 4 << 20, 2999: 3 << 20}
    batch = [Put(f"{n}", None, os.urandom(size.get(n, 100))) for n in range(3000)]
    await put(store, "1234", None, b"before")
    answers = await store.commit(batch)
    failed = {n for n, answer in enumerate(answers) if isinstance(answer, StoreError)}
    assert failed == {8, 1234}
    assert "too large" in str(answers[8])
    for n in (0, 7, 9, 499, 500, 2999):
        assert await store.load(f"{n}") == (batch[n].record, answers[n])
    (alone,) = await store.commit([batch[8]])
    assert "too large" in str(alone)


async def test_large_blob(store: RedisStore) -> None:
    """A blob of 200 MB comes and goes in chunks, of which few are there at a time."""
    chunk = os.urandom(1 << 20)

    async def source() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield chunk

    await store.put_blob("k", "b", source())
    size = 0
    async for part in store.open_blob("k", "b"):
        assert len(part) <= _redis_blobs.CHUNK
        assert part == chunk * (len(part) // len(chunk))
        size += len(part)
    assert size == 200 << 20
    assert await read(store.open_blob("k", "b", 150 << 20, 1 << 20)) == chunk
    await store.delete_blobs("k", ["b"])


async def test_half_a_blob(raw: redis.Redis, prefix: str, store: RedisStore) -> None:
    """Chunks of a blob that is not finished are no blob, and vanish by themselves."""
    seen: list[dict[str, int]] = []

    async def source() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(4 << 20)
        seen.append(below(raw, prefix))
        assert await store.list_blobs("k") == []

    await store.put_blob("k", "b", source())
    assert len(seen[0]) == 2  # the last waits for what may be joined to it
    assert all(0 < left <= 4 * HOUR for left in seen[0].values())
    assert set(below(raw, prefix).values()) == {-1}
    assert len(below(raw, prefix)) == 4


async def test_half_a_blob_that_vanished(raw: redis.Redis, prefix: str, store: RedisStore) -> None:
    """A blob of which a chunk has vanished before its end is none, and may be put again."""

    async def source() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(4 << 20)
        raw.delete(next(raw.scan_iter(f"{prefix}/chunk/*")))

    with pytest.raises(StoreUnavailableError, match="lost a part"):
        await store.put_blob("k", "b", source())
    assert below(raw, prefix) == {}


async def test_cancelled_blob(raw: redis.Redis, prefix: str, store: RedisStore) -> None:
    """A blob that is cancelled in the middle leaves nothing behind."""
    reached = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(4 << 20)
        reached.set()
        await asyncio.sleep(60)

    putting = asyncio.ensure_future(store.put_blob("k", "b", source()))
    await reached.wait()
    assert below(raw, prefix)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert below(raw, prefix) == {}


async def test_blob_cancelled_as_the_store_closes(store: RedisStore) -> None:
    """The tidying up, which a closed store refuses, does not take the cancellation's place."""
    reached = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(4 << 20)
        reached.set()
        await asyncio.sleep(60)

    putting = asyncio.ensure_future(store.put_blob("k", "b", source()))
    await reached.wait()
    await store.aclose()
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting


async def test_blob_whose_answer_is_lost(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob that was put, though nobody heard of it, is whole."""
    script = store._link.script

    async def lost(*args: Any) -> None:
        await script(*args)
        raise StoreUnavailableError("the connection broke", op="put_blob")

    monkeypatch.setattr(store._link, "script", lost)
    with pytest.raises(StoreUnavailableError, match="the connection broke"):
        await store.put_blob("k", "b", b"x" * (9 << 20))
    monkeypatch.undo()
    assert await read(store.open_blob("k", "b")) == b"x" * (9 << 20)


async def test_read_of_a_replaced_blob(raw: redis.Redis, prefix: str, store: RedisStore) -> None:
    """Whoever reads a blob while it is replaced or deleted gets no mixture."""
    old, new = bytes(9 << 20), b"\1" * (9 << 20)
    await store.put_blob("k", "b", old)
    reading = store.open_blob("k", "b")
    await anext(reading)
    await store.put_blob("k", "b", new)
    with pytest.raises(StoreUnavailableError, match="replaced"):
        await anext(reading)
    assert await read(store.open_blob("k", "b")) == new
    assert len(below(raw, prefix)) == 1 + 3
    reading = store.open_blob("k", "b")
    await anext(reading)
    await store.delete_blobs("k", ["b"])
    with pytest.raises(FileNotFoundError):
        await anext(reading)
    assert below(raw, prefix) == {}


async def test_damaged_blob(raw: redis.Redis, prefix: str, store: RedisStore) -> None:
    """A blob of which the server has lost a chunk is not there."""
    await store.put_blob("k", "b", bytes(9 << 20))
    raw.delete(next(raw.scan_iter(f"{prefix}/chunk/*")))
    with pytest.raises(FileNotFoundError, match="is missing"):
        await read(store.open_blob("k", "b"))


async def test_expiry(raw: redis.Redis, prefix: str, expiring: RedisStore) -> None:
    """Each commit, and each put and read of a blob, gives all of a key its full time again."""

    def age() -> None:
        for key in raw.scan_iter(f"{prefix}/*"):
            if not key.endswith(b"/keys"):
                raw.pexpire(key, 60_000)

    def times() -> set[int]:
        """How long what there is has yet, in hours."""
        left = {name: left for name, left in below(raw, prefix).items() if name != "keys"}
        return {round(time / HOUR) for time in left.values()}

    await expiring.put_blob("k", "one", b"1")
    assert times() == {1}
    version = await put(expiring, "k", None, b"x")
    await expiring.put_blob("k", "many", bytes(9 << 20))
    assert len(below(raw, prefix)) == 1 + 1 + 3 + 1 + 1
    age()
    assert times() == {0}
    version = await put(expiring, "k", version, b"y")
    assert times() == {1}
    age()
    assert await read(expiring.open_blob("k", "one")) == b"1"
    assert times() == {1}
    age()
    await expiring.put_blob("k", "one", b"11")
    assert times() == {1}
    age()
    await expiring.load("k")
    assert times() == {0}


async def test_expiry_taken_back(
    raw: redis.Redis, prefix: str, store: RedisStore, expiring: RedisStore
) -> None:
    """A commit or a blob by a store without a time to live keeps all of the key for ever."""
    for key in ("a", "b"):
        await put(expiring, key, None, b"x")
        await expiring.put_blob(key, "blob", bytes(5 << 20))
    await store.put_blob("a", "other", b"x")
    head = await store.load("b")
    assert head is not None
    await put(store, "b", head.version, b"y")
    assert set(below(raw, prefix).values()) == {-1}


async def test_expired(raw: redis.Redis, prefix: str, expiring: RedisStore) -> None:
    """A key that has expired is absent, is not listed, and its version holds no more."""
    versions = await expiring.commit([Put(key, None, b"x") for key in "abc"])
    raw.delete(f"{prefix}/head/b")
    assert await listed(expiring) == ["a", "c"]
    assert raw.zrange(f"{prefix}/keys", 0, -1) == [b"a", b"c"]
    assert await expiring.load("b") is None
    assert not isinstance(versions[1], StoreError)
    await refused(put(expiring, "b", versions[1], b"late"))
    assert await put(expiring, "b", None, b"x") != versions[1]
    assert await listed(expiring) == ["a", "b", "c"]


async def test_expired_keys_leave_the_index(
    raw: redis.Redis, prefix: str, expiring: RedisStore
) -> None:
    """Though nobody lists them, keys that have expired do not fill the index."""
    for turn in range(40):
        batch = [Put(f"{turn}/{n}", None, b"x") for n in range(50)]
        await expiring.commit(batch)
        if turn < 39:
            raw.delete(*(f"{prefix}/head/{put.key}" for put in batch))
    assert raw.zcard(f"{prefix}/keys") < 400
    assert len(await listed(expiring)) == 50


@pytest.mark.parametrize(
    ("url", "identity"),
    [
        ("redis://host", "redis://host:6379/0/aiocheckpoint"),
        ("rediss://host", "redis://host:6379/0/aiocheckpoint"),
        ("valkey://HOST:6379/0", "redis://host:6379/0/aiocheckpoint"),
        ("valkeys://host/", "redis://host:6379/0/aiocheckpoint"),
        ("redis://me:hush@host:1/02?prefix=a:b&ttl=60", "redis://host:1/2/a:b"),
        ("redis://:hush@host?db=3", "redis://host:6379/3/aiocheckpoint"),
        ("redis://[::1]:7", "redis://[::1]:7/0/aiocheckpoint"),
        ("rediss://h?ssl_cert_reqs=none&ssl_ca_certs=%2Fca", "redis://h:6379/0/aiocheckpoint"),
    ],
)
def test_url(url: str, identity: str) -> None:
    """One server, database and prefix have one name, without what is secret, and one spool."""
    store = open_store(url)
    assert isinstance(store, RedisStore)
    assert store.identity == identity
    assert store.spool_dir == RedisStore(url).spool_dir
    assert "hush" not in f"{store!r} {store.identity} {vars(store)}"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis:host", "write redis://"),
        ("redis://", "write redis://"),
        ("redis:///0", "write redis://"),
        ("redis://:hush/@host", "% escapes in the password"),
        ("redis://:hush#@host", "% escapes in the password"),
        ("redis://:hush@host:port", "% escapes in the password"),
        ("redis://:hush@[host", "% escapes in the password"),
        ("redis://me:1?hush@host", "% escapes in the password"),
        ("redis://:1/hush@host", "% escapes in the password"),
        ("redis://:hush@host/jobs", "number of a database"),
        ("redis://:hush@host?prefix=a/b", "without a slash"),
        ("redis://:hush@host?prefix=", "1 to 100"),
        ("redis://:hush@host?ttl=soon", "60 at least"),
        ("redis://:hush@host?ttl=1", "60 at least"),
        ("redis://:hush@host?ttl=inf", "60 at least"),
        ("redis://:hush@host?tll=60", "no option 'tll'"),
        ("redis://:hush@host?decode_responses=1", "no option 'decode_responses'"),
        ("redis://:hush@host?ssl_cert_reqs=none", "need a rediss://"),
    ],
)
def test_mistaken_url(url: str, message: str) -> None:
    """A URL that cannot be meant is told what to write, and a password in it is not told."""
    with pytest.raises(ValueError, match=message) as caught:
        open_store(url)
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
