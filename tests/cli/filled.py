"""Stores with something in them, and damage done to it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import aiocheckpoint
from aiocheckpoint import Checkpointer
from aiocheckpoint._calls import read_blob
from aiocheckpoint._records import Record, decode_record
from aiocheckpoint.abc import Put, Store
from aiocheckpoint.testing import Wrapper

LARGE = 2 << 20
"""Bytes of a state that lies in a blob."""


async def double(cp: Checkpointer[object], number: int) -> int:
    """A task with a state and a result."""
    await cp.write({"number": number})
    return number * 2


async def fail(cp: Checkpointer[bytes]) -> None:
    """A task that fails after its state."""
    await cp.write(b"kept")
    raise ZeroDivisionError


async def fill(location: Store | str, base: Path) -> None:
    """Keys of every kind: `done/1`, `done/2`, `failed`, `large`, `small`, `tree`."""
    async with aiocheckpoint.Runtime(location, keep=2, min_interval=0) as rt:
        for number in (1, 2):
            await rt.run(double, number, key=f"done/{number}")
        with pytest.raises(ZeroDivisionError):
            await rt.run(fail, key="failed")
        async with rt.open("large") as cp:
            for number in range(3):
                await cp.write(bytes([number]) * LARGE)
                await cp.flush()
        async with rt.open("small") as cp:
            await cp.write(b"small")
        async with rt.open("tree") as cp:
            tree = base / "tree"
            (tree / "sub").mkdir(parents=True)
            (tree / "sub" / "same").write_bytes(os.urandom(5 << 20))
            (tree / "changes").write_bytes(b"before")
            await cp.save(tree, state=b"before")
            (tree / "changes").write_bytes(b"after")
            await cp.save(tree, state=b"after")


KEYS = ["done/1", "done/2", "failed", "large", "small", "tree"]


async def record_of(store: Store, key: str) -> Record:
    head = await store.load(key)
    assert head is not None
    return decode_record(key, head.record)[0]


def flipped(data: bytes, at: int) -> bytes:
    """One bit is another."""
    changed = bytearray(data)
    changed[at] ^= 4
    return bytes(changed)


async def damage_head(store: Store, key: str) -> None:
    head = await store.load(key)
    assert head is not None
    await store.commit([Put(key, head.version, flipped(head.record, -20))])


async def damage_blob(store: Store, key: str, name: str, at: int = 1000) -> None:
    data = await read_blob(store, key, name, 0)
    await store.put_blob(key, name, flipped(data, min(at, len(data) - 1)))


async def generations(store: Store, key: str) -> list[str]:
    return [name for name in await store.list_blobs(key) if name.startswith("gen-")]


class Overtaken(Wrapper):
    """Just before a state is read, somebody stores the next and collects the one before."""

    def __init__(self, store: Store, cp: aiocheckpoint.Checkpointer[bytes], times: int) -> None:
        super().__init__(store)
        self._cp = cp
        self.left = times

    async def open_blob(
        self, key: str, name: str, start: int = 0, size: int | None = None
    ) -> AsyncIterator[bytes]:
        if name.startswith("state-") and self.left:
            self.left -= 1
            while name in await self.store.list_blobs(key):
                await self._cp.write(bytes([self.left]) * LARGE)
                await self._cp.flush()
                await asyncio.sleep(0)
        async for chunk in super().open_blob(key, name, start, size):
            yield chunk
