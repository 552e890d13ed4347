"""A store that does wrong what its plan says, at every call."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from aiocheckpoint._errors import StoreError, StoreUnavailableError
from aiocheckpoint.abc import Head, Put, Source, Store, Version
from aiocheckpoint.testing import Wrapper

from ._plan import LASTING, NONE, Fault

T = TypeVar("T")


class FaultedStore(Wrapper):
    """Takes the next fault of its plan that fits each call; without one all is well."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.plan: deque[Fault] = deque()
        self.always = NONE
        """What goes wrong at every call that the plan says nothing of."""
        self.active = 0
        """How many calls are under way."""
        self.taken: Counter[str] = Counter()
        """How many faults there were, by kind."""
        self.calls = 0
        self.refusals: list[tuple[str, str | None]] = []
        """The calls, and their keys, that were answered with a lasting error."""
        self.under_way: Counter[str] = Counter()
        """Commits that have begun and have had no answer, by key."""
        self._late: set[asyncio.Task[None]] = set()

    def heal(self) -> None:
        self.plan.clear()
        self.always = NONE

    @property
    def forbids(self) -> bool:
        """Whether whatever is to be stored now is answered with a lasting error."""
        others = [fault for fault in self.plan if fault.op != "delete"]
        return self.always.kind in LASTING and not others and not self.active

    async def load(self, key: str) -> Head | None:
        return await self._do("load", key, lambda: self.store.load(key))

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        keys = [put.key for put in batch]
        self.under_way.update(keys)
        fault = self._next("commit")
        try:
            if fault.kind == "partial":
                return await self._some(batch)
            key = keys[0] if len(keys) == 1 else None
            return await self._do("commit", key, lambda: self.store.commit(batch), fault)
        finally:
            self.under_way.subtract(keys)

    async def _some(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        """Every second put is not done; the others are."""
        done = await self.store.commit(batch[::2])
        answers: list[Version | StoreError] = []
        for index, put in enumerate(batch):
            lost = StoreUnavailableError("this one was refused", op="commit", key=put.key)
            answers.append(lost if index % 2 else done[index // 2])
        return answers

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        # what the caller's chunks are made of is gone when a late effect would ask for them
        data = source if isinstance(source, bytes) else await _joined(source)
        copy = bytes(memoryview(data))
        del data, source
        await self._do("put_blob", key, lambda: self.store.put_blob(key, name, copy))

    async def open_blob(
        self, key: str, name: str, start: int = 0, size: int | None = None
    ) -> AsyncIterator[bytes]:
        async for item in self._read(
            "open_blob", key, self.store.open_blob(key, name, start, size)
        ):
            yield item

    async def list_blobs(self, key: str) -> list[str]:
        return await self._do("list_blobs", key, lambda: self.store.list_blobs(key))

    async def delete_blobs(self, key: str, names: Sequence[str]) -> None:
        fault = self._next("delete_blobs")
        if fault.kind == "partial":
            await self.store.delete_blobs(key, names[::2])
            fault = Fault("refused")
        await self._do("delete_blobs", key, lambda: self.store.delete_blobs(key, names), fault)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        async for item in self._read("keys", None, self.store.keys(prefix)):
            yield item

    async def delete(self, key: str, expect: Version) -> None:
        await self._do("delete", key, lambda: self.store.delete(key, expect))

    def _next(self, op: str) -> Fault:
        self.calls += 1
        for index, fault in enumerate(self.plan):
            if fault.op in ("", op):
                del self.plan[index]
                self.taken[fault.kind] += 1
                return fault
        if self.always is not NONE:
            self.taken[f"always {self.always.kind}"] += 1
        return self.always

    async def _do(
        self,
        op: str,
        key: str | None,
        effect: Callable[[], Awaitable[T]],
        fault: Fault | None = None,
    ) -> T:
        fault = self._next(op) if fault is None else fault
        self.active += 1
        try:
            return await self._done(op, key, effect, fault)
        finally:
            self.active -= 1

    async def _done(
        self, op: str, key: str | None, effect: Callable[[], Awaitable[T]], fault: Fault
    ) -> T:
        self._refuse(op, key, fault)
        match fault.kind:
            case "lost" | "partial":
                await effect()
                raise StoreUnavailableError("the answer was lost", op=op, key=key)
            case "late":
                self._later(fault.seconds, effect)
                raise StoreUnavailableError("not in time", op=op, key=key)
            case "delayed":
                await asyncio.sleep(fault.seconds)
                answer = await effect()
                await asyncio.sleep(fault.seconds)
                return answer
            case "hangs":
                await asyncio.Event().wait()
            case "lost in silence":
                await effect()
                await asyncio.Event().wait()
            case "late in silence":
                self._later(fault.seconds, effect)
                await asyncio.Event().wait()
        return await effect()

    async def _read(self, op: str, key: str | None, items: AsyncIterator[T]) -> AsyncIterator[T]:
        fault = self._next(op)
        self._refuse(op, key, fault)
        if fault.kind in ("late", "lost"):
            raise StoreUnavailableError("the answer was lost", op=op, key=key)
        if fault.kind in ("hangs", "lost in silence", "late in silence"):
            await asyncio.Event().wait()
        async for item in items:
            if fault.kind == "delayed":
                await asyncio.sleep(fault.seconds)
            yield item
            if fault.kind == "partial":
                raise StoreUnavailableError("it broke off", op=op, key=key)

    def _refuse(self, op: str, key: str | None, fault: Fault) -> None:
        match fault.kind:
            case "refused":
                raise StoreUnavailableError("refused", op=op, key=key)
            case "forbidden":
                self.refusals.append((op, key))
                raise StoreError("forbidden", op=op, key=key)
            case "broken":
                self.refusals.append((op, key))
                raise ZeroDivisionError("a store with a bug")

    def _later(self, seconds: float, effect: Callable[[], Awaitable[object]]) -> None:
        async def late() -> None:
            await asyncio.sleep(seconds)
            try:
                await effect()
            except StoreError:  # a race that it has lost, which nobody will hear of
                pass

        task = asyncio.ensure_future(late())
        self._late.add(task)
        task.add_done_callback(self._late.discard)


async def _joined(source: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in source])
