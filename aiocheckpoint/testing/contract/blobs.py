"""Blobs: seen whole or not at all, in chunks and in parts."""

from __future__ import annotations

from contextlib import suppress

from ..._errors import StoreError
from ._base import Contract, chunked, close, listed, put, read, refused

HOSTILE_NAMES = ["", ".", "..", "../up", "a/b", "/abs", ".hidden", "a\0", "a b", "é", "a" * 121]


class Blobs(Contract):
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
        await close(first, second)

    async def test_blobs_inchunked(self) -> None:
        """A blob that comes in chunks, of any number and size, is put as one."""
        store = await self.make_store()
        for name, chunks in {
            "none": [],
            "one": [b"1" * 1000],
            "some": [b"1", b"22" * (1 << 20), b"333"],
            "many": [b"%07d" % n * 1000 for n in range(300)],
        }.items():
            await store.put_blob("k", name, chunked(chunks))
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
                failing = chunked(done, ZeroDivisionError("no more"))
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

    async def test_blob_replaced_while_it_is_read(self) -> None:
        """A blob that changes in mid-read comes as it was, or as an error: never as a mix."""
        store = await self.make_store()
        for after in (b"2" * (12 << 20), b"2" * 100, None):
            await store.put_blob("k", "b", b"1" * (12 << 20))
            chunks = store.open_blob("k", "b")
            parts = [await anext(chunks)]
            if after is None:
                await store.delete_blobs("k", ["b"])
            else:
                await store.put_blob("k", "b", after)
            with suppress(StoreError, FileNotFoundError):
                parts += [chunk async for chunk in chunks]
                assert b"".join(parts) == b"1" * (12 << 20)
            assert b"".join(parts).count(b"2") == 0
        await store.aclose()
