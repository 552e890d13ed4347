"""Interruptions: what was cut off happened, or did not, and does not happen later."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from ..._errors import StoreError, StoreUnavailableError
from ...abc import Put, Version
from ._base import Contract, chunked, loaded, patiently, put, race, read, refused

AFTER = [0, 1, 2, 3, 5, 8, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016]
"""Turns of the loop (int) or seconds (float) after which a call is cut off."""


class Interruptions(Contract):
    async def test_lost_answer(self) -> None:
        """A commit that is cut off has happened or has not: if the same version can be replaced
        after it, it never happens."""
        store = await self.make_store()
        version: Version | None = None
        for n, after in enumerate(AFTER):
            cut, then = b"cut off %d" % n, b"then %d" % n
            await cut_off(store.commit([Put("k", version, cut)]), after)
            while (stored := await race(store, "k", version, then)) is None:
                head = await loaded(store, "k")
                assert head is not None
                assert head.version != version
                if head.record == then:  # a race of the two, and the answer was lost
                    stored = head.version
                    break
                assert head.record == cut
                version = head.version
            version = stored
            assert await loaded(store, "k") == (then, version)
        head = await store.load("k")
        await store.aclose()
        again = await self.make_store()
        assert await again.load("k") == head
        await again.aclose()

    async def test_delete_cut_off(self) -> None:
        """A delete that is cut off has happened or has not, and never deletes what came later."""
        store = await self.make_store()
        for n, after in enumerate(AFTER):
            version = await put(store, "k", None, b"one %d" % n)
            await cut_off(store.delete("k", version), after)
            there = await loaded(store, "k") is not None
            await race(store, "k", version if there else None, b"two %d" % n)
            head = await loaded(store, "k")
            if head is None:
                continue  # it was on its way while we looked
            await refused(patiently(lambda: store.delete("k", version)))  # noqa: B023
            assert await loaded(store, "k") == head
            assert head.record == b"two %d" % n
            await store.delete("k", head.version)
        await store.aclose()

    async def test_blob_cut_off(self) -> None:
        """A blob whose putting is cut off is there whole or not at all, as it was or as it is."""
        store = await self.make_store()
        old, new = b"o" * 100_000, [b"n" * (1 << 20)] * 9
        await store.put_blob("k", "b", old)
        for after in AFTER:
            await cut_off(store.put_blob("k", "b", chunked(new)), after)
            with suppress(StoreUnavailableError):  # it lands while we read
                assert await read(store.open_blob("k", "b")) in (old, b"".join(new))
        assert await store.list_blobs("k") == ["b"]
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


async def cut_off(call: Coroutine[Any, Any, object], after: float) -> None:
    """Cancel a call in mid-way, unless it is faster."""
    task = asyncio.ensure_future(call)
    if isinstance(after, int):
        for _ in range(after):
            await asyncio.sleep(0)
    else:
        await asyncio.wait([task], timeout=after)
    task.cancel()
    with suppress(asyncio.CancelledError, StoreError):
        await task
