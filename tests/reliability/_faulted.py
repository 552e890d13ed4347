"""A store whose every call does what a plan says: it fails, hangs, or has its effect later."""

from __future__ import annotations

import asyncio
import enum
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import pytest

from aiocheckpoint import _calls, _claim, _commits, _writer
from aiocheckpoint._errors import StoreError, StoreUnavailableError
from aiocheckpoint.abc import Head, Put, Source, Store, Version
from aiocheckpoint.testing import Wrapper

T = TypeVar("T")

INLINE = 2_000
"""Bytes of a state, at most, that lie in the record, in here: so that blobs cost little."""
_TIMEOUT = 0.02


class Fault(enum.Enum):
    """What befalls a call."""

    NONE = "none"
    REFUSED = "refused, and nothing done"
    LOST = "done, and the answer lost"
    LATE = "the answer lost, and done before the next call"
    SLOW = "done after a while"
    HANGS = "no answer, and nothing done"
    HANGS_AFTER = "no answer, and done"
    PARTIAL = "refused for every second key of a batch"
    FORBIDDEN = "refused for good"


class FaultedStore(Wrapper):
    """Takes a fault from `plan` for each call; all is well when none is left."""

    def __init__(self, store: Store, *, transactional: bool = True) -> None:
        super().__init__(store)
        self.plan: deque[Fault] = deque()
        self.met: Counter[str] = Counter()
        """How often each fault was met."""
        self._transactional = transactional
        self._late: list[Callable[[], Awaitable[object]]] = []
        self._under_way: Counter[str] = Counter()
        self.most_under_way = 0
        """Commits of one key at the same time."""

    @property
    def transactional(self) -> bool:
        return self._transactional

    async def settle(self) -> None:
        """Have everything that is late done."""
        while self._late:
            await self._late.pop(0)()

    async def load(self, key: str) -> Head | None:
        return await self._call("load", key, lambda: self.store.load(key))

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        keys = [put.key for put in batch]
        self._under_way.update(keys)
        self.most_under_way = max(self.most_under_way, *self._under_way.values())
        try:
            if self.plan and self.plan[0] is Fault.PARTIAL:
                return await self._partial(batch)
            return await self._call("commit", None, lambda: self.store.commit(batch))
        finally:
            self._under_way.subtract(keys)

    async def _partial(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        self.plan.popleft()
        self.met[Fault.PARTIAL.name] += 1
        await self.settle()
        done = iter(await self.store.commit(batch[1::2]))
        return [
            next(done)
            if number % 2
            else StoreUnavailableError("refused, as drawn", op="commit", key=put.key)
            for number, put in enumerate(batch)
        ]

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        # what is late must not read from a source that is gone
        if self.plan and self.plan[0] is Fault.LATE:
            self.plan[0] = Fault.LOST
        await self._call("put_blob", key, lambda: self.store.put_blob(key, name, source))

    async def list_blobs(self, key: str) -> list[str]:
        return await self._call("list_blobs", key, lambda: self.store.list_blobs(key))

    async def delete_blobs(self, key: str, names: Sequence[str]) -> None:
        await self._call("delete_blobs", key, lambda: self.store.delete_blobs(key, names))

    async def delete(self, key: str, expect: Version) -> None:
        await self._call("delete", key, lambda: self.store.delete(key, expect))

    async def _call(self, op: str, key: str | None, call: Callable[[], Awaitable[T]]) -> T:
        fault = self.plan.popleft() if self.plan else Fault.NONE
        self.met[fault.name] += 1
        await self.settle()
        if fault is Fault.REFUSED or (fault is Fault.PARTIAL and op != "commit"):
            raise StoreUnavailableError("refused, as drawn", op=op, key=key)
        if fault is Fault.FORBIDDEN:
            raise StoreError("forbidden, as drawn", op=op, key=key)
        if fault is Fault.HANGS:
            await asyncio.Event().wait()
        if fault is Fault.LATE:
            self._late.append(call)
            raise StoreUnavailableError("the answer was lost, as drawn", op=op, key=key)
        if fault is Fault.SLOW:
            await asyncio.sleep(_TIMEOUT / 4)
        done = await call()
        if fault is Fault.LOST:
            raise StoreUnavailableError("the answer was lost, as drawn", op=op, key=key)
        if fault is Fault.HANGS_AFTER:
            await asyncio.Event().wait()
        return done


@contextmanager
def impatient() -> Iterator[None]:
    """Calls are given up soon, and tried again at once; small states are blobs already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_calls, "OP_TIMEOUT", _TIMEOUT)
        patch.setattr(_calls, "_RETRY_FIRST", 0.0005)
        patch.setattr(_calls, "_RETRY_MOST", 0.002)
        patch.setattr(_claim, "OP_TIMEOUT", 30.0)
        patch.setattr(_commits, "INLINE_LIMIT", INLINE)
        patch.setattr(_writer, "INLINE_LIMIT", INLINE)
        yield
