"""Heads: each commit is a compare-and-swap, durable on return."""

from __future__ import annotations

import asyncio

from ..._errors import ConflictError, StoreError
from ...abc import Put, Version
from ._base import Contract, close, listed, loaded, put, race, refused


class Heads(Contract):
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
            head = await loaded(stores[3], "k")
            assert head is not None
            version = head.version
            assert head.record == b"%d" % answers.index(version)
            assert await self.raw_head(stores[0], "k") == head.record
        await close(*stores)

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
        await close(first, second)

    async def test_one_mebibyte(self) -> None:
        """A record of 1 MiB with every byte in it comes back as it was."""
        store = await self.make_store()
        record = bytes(range(256)) * 4096
        version = await put(store, "k", None, record)
        assert await store.load("k") == (record, version)
        assert await self.raw_head(store, "k") == record
        await store.aclose()

    async def test_readers_of_a_changing_key(self) -> None:
        """While a key is replaced, a reader sees whole records only, and never an older one."""
        stores = [await self.make_store() for _ in range(3)]
        last = 40
        version = await put(stores[0], "k", None, b"0" * 1000)

        async def read_on(reader: int) -> None:
            seen = 0
            while seen < last:
                head = await loaded(stores[reader], "k")
                assert head is not None
                number, size = len(head.record) - 1000, len(head.record)
                assert head.record == b"%d" % (number % 10) * size
                assert number >= seen
                seen = number

        reading = [asyncio.ensure_future(read_on(1 + i % 2)) for i in range(4)]
        for number in range(1, last + 1):
            version = await put(stores[0], "k", version, b"%d" % (number % 10) * (1000 + number))
        await asyncio.gather(*reading)
        await close(*stores)
