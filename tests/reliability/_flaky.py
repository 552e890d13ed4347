"""A store that is never quite well: errors, lost answers and delays, drawn from a seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from aiocheckpoint._errors import StoreError, StoreUnavailableError
from aiocheckpoint.abc import Head, Put, Source, Store, Version
from aiocheckpoint.testing import Wrapper


class FlakyStore(Wrapper):
    """Fails `rate` of all calls, before or after they took effect, and delays as many."""

    def __init__(self, store: Store, rng: random.Random, rate: float = 0.02) -> None:
        super().__init__(store)
        self.rate = rate
        self.faults = 0
        self._rng = rng

    async def load(self, key: str) -> Head | None:
        await self._before("load", key)
        return await self.store.load(key)

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        await self._before("commit", None)
        outcomes = await self.store.commit(batch)
        self._fail("commit", None, "the answer was lost")
        return outcomes

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        await self._before("put_blob", key)
        await self.store.put_blob(key, name, source)
        self._fail("put_blob", key, "the answer was lost")

    async def list_blobs(self, key: str) -> list[str]:
        await self._before("list_blobs", key)
        return await self.store.list_blobs(key)

    async def delete_blobs(self, key: str, names: Sequence[str]) -> None:
        await self.store.delete_blobs(key, names)
        self._fail("delete_blobs", key, "the answer was lost")

    async def _before(self, op: str, key: str | None) -> None:
        if self._rng.random() < self.rate:
            self.faults += 1
            await asyncio.sleep(self._rng.uniform(0, 0.05))
        self._fail(op, key, "refused")

    def _fail(self, op: str, key: str | None, what: str) -> None:
        if self._rng.random() < self.rate:
            self.faults += 1
            raise StoreUnavailableError(f"{what}, as drawn", op=op, key=key)
