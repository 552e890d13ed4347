"""Scale: many keys and large blobs, in memory that does not grow with them."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from ..._errors import StoreError
from ..._runtime import Runtime
from ...abc import Put
from ._base import Contract, put

_CHUNK = 1 << 20


class Scale(Contract):
    """What follows may be set in a subclass."""

    many_keys = 10_000
    """Keys of a listing."""
    large_blob = 200 << 20
    """Bytes of the largest blob."""
    in_memory = False
    """True for a store that keeps what it holds in this process."""

    async def test_listing_of_many_keys(self) -> None:
        """Ten thousand keys are listed in order, without their records in memory."""
        store = await self.make_store()
        keys = [f"{n * 7919 % self.many_keys:05d}" for n in range(self.many_keys)]
        for at in range(0, len(keys), 1000):
            batch = [Put(key, None, b"x" * 4000) for key in keys[at : at + 1000]]
            answers = await store.commit(batch)
            assert not [answer for answer in answers if isinstance(answer, StoreError)]
        before = ""
        count = 0
        with self.memory_below((4 << 20) + self.many_keys * 1000):
            async for key in store.keys(""):
                assert key > before
                before = key
                count += 1
        assert count == len(keys)
        assert [key async for key in store.keys("0123")] == [
            key for key in sorted(keys) if key.startswith("0123")
        ]
        await store.aclose()

    async def test_large_blob(self) -> None:
        """A blob of 200 MB passes through in bounded memory, both ways."""
        store = await self.make_store()
        put_digest, read_digest = hashlib.blake2b(), hashlib.blake2b()

        async def chunks() -> AsyncIterator[bytes]:
            for n in range(self.large_blob // _CHUNK):
                chunk = b"%08d" % n * (_CHUNK // 8)
                put_digest.update(chunk)
                yield chunk

        with self.memory_below(96 << 20):
            await store.put_blob("k", "b", chunks())
            async for chunk in store.open_blob("k", "b"):
                assert len(chunk) <= 16 << 20
                read_digest.update(chunk)
        assert read_digest.digest() == put_digest.digest()
        await store.delete_blobs("k", ["b"])
        await store.aclose()

    async def test_a_thousand_open_keys(self) -> None:
        """A runtime has a thousand keys open at a time, and stores the last state of each."""
        keys = [f"open/{n}" for n in range(1000)]
        store = await self.make_store()

        async with Runtime(store, spool=None, flush_timeout=60) as rt:

            async def use(key: str, everybody: asyncio.Barrier) -> None:
                async with rt.open(key) as cp:
                    await cp.write(b"first of " + key.encode())
                    await everybody.wait()
                    await cp.write(b"last of " + key.encode())

            everybody = asyncio.Barrier(len(keys))
            await asyncio.gather(*(use(key, everybody) for key in keys))
            assert len([key async for key in rt.keys("open/")]) == 1000
            for key in keys[::97]:
                found = await rt.latest(key)
                assert found is not None
                assert found.payload == b"last of " + key.encode()
        await store.aclose()

    async def test_commits_side_by_side(self) -> None:
        """Many commits of different keys may be under way at a time."""
        store = await self.make_store()

        async def use(key: str) -> None:
            version = None
            for n in range(5):
                version = await put(store, key, version, b"%d" % n)
            assert await store.load(key) == (b"4", version)

        await asyncio.gather(*(use(f"k{n}") for n in range(64)))
        await store.aclose()

    @contextmanager
    def memory_below(self, limit: int) -> Iterator[None]:
        """Assert that no more bytes than that are allocated, by Python code, at any time."""
        if self.in_memory:
            yield
            return
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            yield
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak - before < limit, f"{peak - before} bytes at a time"
