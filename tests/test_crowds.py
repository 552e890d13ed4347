"""Many keys at once, whose large states and files share the way to the store."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from aiocheckpoint import Runtime
from aiocheckpoint._calls import PUTS_AT_ONCE
from aiocheckpoint.abc import Source, Store
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import Wrapper

pytestmark = pytest.mark.anyio


class Crowded(Wrapper):
    """Notes how many puts of blobs were under way at most, of states and of packs of files."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.now = {"state": 0, "pack": 0}
        self.most = {"state": 0, "pack": 0}

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        kind = name.partition("-")[0]
        if kind not in self.now:
            return await super().put_blob(key, name, source)
        self.now[kind] += 1
        self.most[kind] = max(self.most[kind], self.now[kind])
        try:
            await asyncio.sleep(0.02)
            await super().put_blob(key, name, source)
        finally:
            self.now[kind] -= 1


async def test_few_large_puts_at_a_time(tmp_path: Path) -> None:
    """However many keys there are, few share the way to the store, so that each is in time."""
    (tmp_path / "file").write_bytes(b"f" * 1000)
    store = Crowded(MemoryStore())
    async with Runtime(store, min_interval=0, spool=None) as rt, AsyncExitStack() as stack:
        cps = [await stack.enter_async_context(rt.open(f"k{n}")) for n in range(16)]
        for cp in cps:
            await cp.write(bytes(2 << 20))
        async with anyio.create_task_group() as group:
            for cp in cps:
                group.start_soon(cp.flush)
        async with anyio.create_task_group() as group:
            for cp in cps:
                group.start_soon(cp.save, tmp_path / "file")
    assert store.most == {"state": PUTS_AT_ONCE, "pack": PUTS_AT_ONCE}
