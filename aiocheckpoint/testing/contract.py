"""The contract of `abc.Store` as tests: subclass `StoreContract` for your store.

    class TestMyStore(StoreContract):
        async def make_store(self): return MyStore(self.url)
        async def raw_head(self, store, key): ...    # read past the store, with another client

Collect it with any runner that knows async methods (with pytest: anyio's plugin, on asyncio).
Records are never empty, so no store is asked to keep an empty one.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable
from typing import Any

from .._errors import ConflictError, StoreError, StoreUnavailableError
from ..abc import Put, Store, Version

HOSTILE_KEYS = [
    *("a", "A", "a/b", "a%2fb", "%2f", "..", ".", ".hidden", "-rf", "con", "nul.txt", "key"),
    *("head.000000000001", "blobs", "dot.", "two words ", " ", "'", '"', "%", "%%", "_", "*", "?"),
    *("\\", "a\\b", "~", "%~", "$HOME", ";--", "é", "e\u0301", "ß", "İ", "日本", "😀", "\u2028"),
    *("x" * 200, "x" * 199 + "y", "X" * 200, "/" * 200, "😀" * 50),
]
HOSTILE_NAMES = ["", ".", "..", "../up", "a/b", "/abs", ".hidden", "a\0", "a b", "é", "a" * 121]


class StoreContract:
    """One sentence of the contract a test."""

    @abstractmethod
    async def make_store(self) -> Store:
        """Another instance, over the same data for as long as the test runs.

        A store whose data are the instance itself may return the same one again.
        """

    @abstractmethod
    async def raw_head(self, store: Store, key: str) -> bytes | None:
        """The record that the key holds, read by other means than the store."""

    async def test_absent_key_loads_none(self) -> None:
        """A key that was never written has no head."""
        store = await self.make_store()
        assert await store.load("k") is None
        await store.aclose()

    async def test_create(self) -> None:
        """What was created is loaded, with the version that the commit answered."""
        store = await self.make_store()
        version = await put(store, "k", None, b"one")
        assert await store.load("k") == (b"one", version)
        await store.aclose()

    async def test_create_conflicts_with_a_head(self) -> None:
        """A key that has a head cannot be created."""
        store = await self.make_store()
        version = await put(store, "k", None, b"one")
        await refused(put(store, "k", None, b"two"))
        assert await store.load("k") == (b"one", version)
        await store.aclose()

    async def test_replace(self) -> None:
        """Naming the version replaces the record, and makes another version."""
        store = await self.make_store()
        versions = [await put(store, "k", None, b"0")]
        for i in range(1, 8):
            versions.append(await put(store, "k", versions[-1], b"%d" % i))
            assert await store.load("k") == (b"%d" % i, versions[-1])
        assert len(set(versions)) == 8
        await store.aclose()

    async def test_stale_version_conflicts(self) -> None:
        """Naming a version that was replaced, lately or long ago, changes nothing."""
        store = await self.make_store()
        stale = []
        version = None
        for i in range(6):
            version = await put(store, "k", version, b"%d" % i)
            stale.append(version)
        for old in stale[:-1]:
            await refused(put(store, "k", old, b"late"))
            await refused(store.delete("k", old))
        assert await store.load("k") == (b"5", version)
        await store.aclose()

    async def test_replacing_an_absent_key_conflicts(self) -> None:
        """A version of one key does not let another, absent one be written or deleted."""
        store = await self.make_store()
        version = await put(store, "k", None, b"one")
        await refused(put(store, "other", version, b"two"))
        await refused(store.delete("other", version))
        assert await store.load("other") is None
        await store.aclose()

    async def test_delete(self) -> None:
        """A deleted key has no head and is not listed."""
        store = await self.make_store()
        version = await put(store, "k", None, b"one")
        await store.delete("k", version)
        assert await store.load("k") is None
        assert await self.raw_head(store, "k") is None
        assert await listed(store) == []
        await refused(store.delete("k", version))
        await store.aclose()

    async def test_versions_stay_stale_after_delete(self) -> None:
        """No version is used twice, nor holds again, when its key is deleted and created anew."""
        store = await self.make_store()
        versions: list[Version] = []
        for _ in range(3):
            versions.append(await put(store, "k", None, b"same"))
            versions.append(await put(store, "k", versions[-1], b"same"))
            await store.delete("k", versions[-1])
            for old in versions:
                await refused(put(store, "k", old, b"late"))
        assert len(set(versions)) == 6
        last = await put(store, "k", None, b"same")
        for old in versions:
            await refused(put(store, "k", old, b"late"))
            await refused(store.delete("k", old))
        assert await store.load("k") == (b"same", last)
        await store.aclose()

    async def test_batch_answers_each(self) -> None:
        """Each item of a batch has its own answer, and one that fails harms no other."""
        store = await self.make_store()
        a1 = await put(store, "a", None, b"1")
        b1 = await put(store, "b", None, b"1")
        b2 = await put(store, "b", b1, b"2")
        batch = [
            Put("a", a1, b"new"),
            Put("b", b1, b"stale"),
            Put("c", None, b"new"),
            Put("b2", b2, b"absent"),
            Put("d", None, b"new"),
        ]
        a, b, c, absent, d = await store.commit(batch)
        assert isinstance(b, ConflictError)
        assert isinstance(absent, ConflictError)
        assert (b.key, absent.key) == ("b", "b2")
        assert await store.load("a") == (b"new", a)
        assert await store.load("b") == (b"2", b2)
        assert await store.load("c") == (b"new", c)
        assert await store.load("b2") is None
        assert await store.load("d") == (b"new", d)
        await store.aclose()

    async def test_large_batch(self) -> None:
        """A batch may have a thousand items, and may have none."""
        store = await self.make_store()
        assert list(await store.commit([])) == []
        answers = await store.commit([Put(f"{i}", None, b"%d" % i) for i in range(1000)])
        assert not [answer for answer in answers if isinstance(answer, StoreError)]
        assert await store.load("999") == (b"999", answers[999])
        await store.aclose()

    async def test_one_winner(self) -> None:
        """Of writers that race over several instances exactly one wins each round."""
        stores = [await self.make_store() for _ in range(4)]
        await stores[0].load("k")
        version: Version | None = None
        for _ in range(8):
            racers = [race(stores[i % 4], "k", version, b"%d" % i) for i in range(16)]
            answers = await asyncio.gather(*racers)
            assert answers.count(None) == 15, answers
            head = await stores[3].load("k")
            assert head is not None
            version = head.version
            assert head.record == b"%d" % answers.index(version)
        for store in dict.fromkeys(stores):
            await store.aclose()

    async def test_durable_on_return(self) -> None:
        """Another client and another instance see what a commit or delete answered for."""
        first, second = await self.make_store(), await self.make_store()
        version = await put(first, "k", None, b"one")
        assert await self.raw_head(first, "k") == b"one"
        assert await second.load("k") == (b"one", version)
        version = await put(second, "k", version, b"two")
        assert await self.raw_head(first, "k") == b"two"
        assert await first.load("k") == (b"two", version)
        await second.delete("k", version)
        assert await self.raw_head(first, "k") is None
        assert await first.load("k") is None
        for store in dict.fromkeys((first, second)):
            await store.aclose()

    async def test_one_mebibyte(self) -> None:
        """A record of 1 MiB with every byte in it comes back as it was."""
        store = await self.make_store()
        record = bytes(range(256)) * 4096
        version = await put(store, "k", None, record)
        assert await store.load("k") == (record, version)
        assert await self.raw_head(store, "k") == record
        await store.aclose()

    async def test_hostile_keys(self) -> None:
        """Any key is kept apart from every other, and is listed as it was given."""
        store = await self.make_store()
        versions = [await put(store, key, None, key.encode()) for key in HOSTILE_KEYS]
        for key, version in zip(HOSTILE_KEYS, versions, strict=True):
            await store.put_blob(key, "blob", key.encode())
            assert await store.load(key) == (key.encode(), version)
            assert await self.raw_head(store, key) == key.encode()
        for key in HOSTILE_KEYS:
            assert await read(store.open_blob(key, "blob")) == key.encode()
        assert await listed(store) == sorted(HOSTILE_KEYS)
        await store.aclose()

    async def test_keys_by_prefix(self) -> None:
        """Thousands of keys are listed in order, and a prefix means nothing but itself."""
        store = await self.make_store()
        keys = [f"{prefix}{i}" for prefix in ("a%", "a_", "ab") for i in range(1000)]
        answers = await store.commit([Put(key, None, b"x") for key in keys])
        assert not [answer for answer in answers if isinstance(answer, StoreError)]
        for key in ("a", "é", "\uffff", "😀"):
            await put(store, key, None, b"x")
        assert await listed(store) == sorted([*keys, "a", "é", "\uffff", "😀"])
        assert await listed(store, "a%") == sorted(keys[:1000])
        assert await listed(store, "a_") == sorted(keys[1000:2000])
        assert await listed(store, "ab99") == ["ab99", *(f"ab99{i}" for i in range(10))]
        assert await listed(store, "A") == []
        await store.aclose()

    async def test_absent_blob(self) -> None:
        """A blob that is not there is a FileNotFoundError, of a key with or without others."""
        store = await self.make_store()
        assert await store.list_blobs("k") == []
        await refused(read(store.open_blob("k", "b")), FileNotFoundError)
        await store.put_blob("k", "other", b"1")
        await refused(read(store.open_blob("k", "b")), FileNotFoundError)
        await store.delete_blobs("k", ["b"])
        await store.delete_blobs("absent", ["b"])
        await store.aclose()

    async def test_blobs(self) -> None:
        """A blob of any size comes back as it was, in chunks of a few MiB at most."""
        first, second = await self.make_store(), await self.make_store()
        for size in (0, 1, 5 << 20):
            data = (b"%08d" % size) * (size // 8) + b"x" * (size % 8)
            await first.put_blob("k", f"b{size}", data)
            chunks = [chunk async for chunk in second.open_blob("k", f"b{size}")]
            assert b"".join(chunks) == data
            assert max(map(len, chunks), default=0) <= 16 << 20
        assert await second.list_blobs("k") == ["b0", "b1", "b5242880"]
        for store in dict.fromkeys((first, second)):
            await store.aclose()

    async def test_blobs_in_chunks(self) -> None:
        """A blob that comes in chunks, of any number and size, is put as one."""
        store = await self.make_store()
        for name, chunks in {
            "none": [],
            "one": [b"1" * 1000],
            "some": [b"1", b"22" * (1 << 20), b"333"],
            "many": [b"%07d" % n * 1000 for n in range(300)],
        }.items():
            await store.put_blob("k", name, _chunks(chunks))
            assert await read(store.open_blob("k", name)) == b"".join(chunks)
        await store.aclose()

    async def test_part_of_a_blob(self) -> None:
        """A blob is read from any byte on, as far as is wanted and no further than its end."""
        store = await self.make_store()
        data = bytes(range(256)) * (20 << 10)
        await store.put_blob("k", "b", data)
        for start, size in (
            (0, 0),
            (0, 1),
            (1, 255),
            (4 << 20, 1000),
            ((4 << 20) - 1, 2),
            (1, 5 << 20),
            (len(data) - 1, 9),
            (len(data), 1),
            (len(data) + 9, 1),
        ):
            part = await read(store.open_blob("k", "b", start, size))
            assert part == data[start : start + size]
        assert await read(store.open_blob("k", "b", 7)) == data[7:]
        await refused(read(store.open_blob("k", "absent", 1, 1)), FileNotFoundError)
        await store.aclose()

    async def test_source_that_fails(self) -> None:
        """What the chunks' source raises is raised, and the blob is what it was before."""
        store = await self.make_store()
        await store.put_blob("k", "before", b"as it was")
        for done in ([], [b"x"], [b"x" * 100, b"y" * (5 << 20)], [b"x", b"y", b"z"]):
            for name in ("before", "new"):
                failing = _chunks(done, ZeroDivisionError("no more"))
                await refused(store.put_blob("k", name, failing), ZeroDivisionError)
        assert await store.list_blobs("k") == ["before"]
        assert await read(store.open_blob("k", "before")) == b"as it was"
        await store.aclose()

    async def test_blob_replaced(self) -> None:
        """Putting under a name that is taken replaces what was there."""
        store = await self.make_store()
        await store.put_blob("k", "b", b"long before")
        await store.put_blob("k", "b", b"after")
        assert await read(store.open_blob("k", "b")) == b"after"
        assert await store.list_blobs("k") == ["b"]
        await store.aclose()

    async def test_blobs_deleted(self) -> None:
        """Deleting blobs leaves those that were not named, and those of other keys."""
        store = await self.make_store()
        for name in ("c", "a", "b"):
            await store.put_blob("k", name, b"x")
            await store.put_blob("other", name, b"x")
        await store.delete_blobs("k", ["a", "c", "absent"])
        assert await store.list_blobs("k") == ["b"]
        await store.delete_blobs("k", ["b"])
        assert await store.list_blobs("k") == []
        assert await store.list_blobs("other") == ["a", "b", "c"]
        await store.put_blob("k", "again", b"x")
        assert await store.list_blobs("k") == ["again"]
        await store.aclose()

    async def test_blob_names(self) -> None:
        """A name that the contract does not allow is refused, and one that it does is not."""
        store = await self.make_store()
        for name in HOSTILE_NAMES:
            await refused(store.put_blob("k", name, b"x"), ValueError, StoreError)
        assert await store.list_blobs("k") == []
        for name in ("a" * 120, "A-z_0.9", "-", "_"):
            await store.put_blob("k", name, b"x")
            assert await read(store.open_blob("k", name)) == b"x"
        await store.aclose()

    async def test_blobs_need_no_head(self) -> None:
        """Blobs are there before the head, are not a head, and outlive it."""
        store = await self.make_store()
        await store.put_blob("k", "b", b"x")
        assert await store.load("k") is None
        assert await listed(store) == []
        version = await put(store, "k", None, b"one")
        await store.delete("k", version)
        assert await store.list_blobs("k") == ["b"]
        assert await read(store.open_blob("k", "b")) == b"x"
        await store.aclose()

    async def test_abandoned_commit(self) -> None:
        """A store that is closed on a commit in flight keeps the old record or the new, whole."""
        old, new = b"old" * 100_000, b"new" * 400_000
        version: Version | None = None
        for steps in range(4):
            store = await self.make_store()
            head = await store.load("k")
            version = await put(store, "k", head and head.version, old)
            commit = asyncio.ensure_future(store.commit([Put("k", version, new)]))
            for _ in range(steps):
                await asyncio.sleep(0)
            commit.cancel()
            await store.aclose()
            await asyncio.gather(commit, return_exceptions=True)
            again = await self.make_store()
            head = await again.load("k")
            assert head is not None
            assert head.record in (old, new)
            assert (head.version == version) == (head.record == old)
            assert await put(again, "k", head.version, b"after")
            assert await self.raw_head(again, "k") == b"after"
            await again.aclose()


async def put(store: Store, key: str, expect: Version | None, record: bytes) -> Version:
    """Commit one record; its version, or its error raised."""
    (answer,) = await store.commit([Put(key, expect, record)])
    if isinstance(answer, StoreError):
        raise answer
    return answer


async def race(store: Store, key: str, expect: Version | None, record: bytes) -> Version | None:
    """Commit one record, as often as the store is unavailable; None if somebody else did."""
    while True:
        try:
            return await put(store, key, expect, record)
        except StoreUnavailableError:
            await asyncio.sleep(0.01)
        except ConflictError:
            return None


async def listed(store: Store, prefix: str = "") -> list[str]:
    return [key async for key in store.keys(prefix)]


async def _chunks(chunks: list[bytes], error: Exception | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk
    if error is not None:
        raise error


async def read(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def refused(awaitable: Awaitable[Any], *errors: type[Exception]) -> None:
    """Assert that it raises one of `errors`, ConflictError if none is given."""
    wanted = errors or (ConflictError,)
    try:
        result = await awaitable
    except wanted:
        return
    raise AssertionError(f"{result!r} instead of an error")
