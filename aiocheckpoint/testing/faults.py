"""Stores with faults, each named for its own, around a store without."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from .._errors import StoreError, StoreUnavailableError
from ..abc import Head, Put, Source, Store, Version


class Wrapper:
    """Passes every call on to another store: the base of stores that change one thing.

    It has the other store's identity, so that a key means the same through both.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def transactional(self) -> bool:
        return self.store.transactional

    @property
    def min_interval(self) -> float:
        return self.store.min_interval

    @property
    def identity(self) -> str:
        return self.store.identity

    @property
    def spool_dir(self) -> Path | None:
        return self.store.spool_dir

    async def load(self, key: str) -> Head | None:
        return await self.store.load(key)

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        return await self.store.commit(batch)

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        await self.store.put_blob(key, name, source)

    async def open_blob(
        self, key: str, name: str, start: int = 0, size: int | None = None
    ) -> AsyncIterator[bytes]:
        async for chunk in self.store.open_blob(key, name, start, size):
            yield chunk

    async def list_blobs(self, key: str) -> list[str]:
        return await self.store.list_blobs(key)

    async def delete_blobs(self, key: str, names: Sequence[str]) -> None:
        await self.store.delete_blobs(key, names)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        async for key in self.store.keys(prefix):
            yield key

    async def delete(self, key: str, expect: Version) -> None:
        await self.store.delete(key, expect)

    async def aclose(self) -> None:
        await self.store.aclose()


class SlowStore(Wrapper):
    """Takes `seconds` longer for each commit; change them at any time."""

    def __init__(self, store: Store, seconds: float) -> None:
        super().__init__(store)
        self.seconds = seconds

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        await asyncio.sleep(self.seconds)
        return await super().commit(batch)


class FaultyStore(Wrapper):
    """Fails when it is told to. Its switches and events may be used from any thread.

    Attributes:
        down: While True, every call but `aclose` raises StoreUnavailableError.
        calls: How often each operation was called, by its name; failed calls count.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.down = False
        self.calls: Counter[str] = Counter()
        self._errors: list[StoreError] = []
        self._answers_to_lose = 0
        self._lock = threading.Lock()
        self._begun: dict[int, threading.Event] = {}
        self._gate: Future[None] | None = None

    def fail_next(self, n: int, error: StoreError) -> None:
        """Have the next `n` commits do nothing but raise this error."""
        with self._lock:
            self._errors += [error] * n

    def lose_answers(self, n: int) -> None:
        """Have the next `n` commits take effect, and raise StoreUnavailableError all the same."""
        with self._lock:
            self._answers_to_lose += n

    def commit_begun(self, n: int) -> threading.Event:
        """An event that is set once the `n`-th call of `commit` (from 1) has begun."""
        with self._lock:
            event = self._begun.setdefault(n, threading.Event())
            if self.calls["commit"] >= n:
                event.set()
        return event

    def next_commit(self) -> threading.Event:
        """An event that is set once a commit begins that has not begun yet."""
        return self.commit_begun(self.calls["commit"] + 1)

    @contextmanager
    def held(self) -> Iterator[None]:
        """While inside, commits begin but go no further."""
        gate = self._gate = Future()
        try:
            yield
        finally:
            self._gate = None
            gate.set_result(None)

    async def load(self, key: str) -> Head | None:
        self._enter("load", key)
        return await super().load(key)

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        with self._lock:
            self.calls["commit"] += 1
            if begun := self._begun.get(self.calls["commit"]):
                begun.set()
        if gate := self._gate:
            await asyncio.shield(asyncio.wrap_future(gate))  # the gate is every commit's
        self._check("commit", batch[0].key if len(batch) == 1 else None)
        with self._lock:
            error = self._errors.pop(0) if self._errors else None
            lost = error is None and self._answers_to_lose > 0
            self._answers_to_lose -= lost
        if error is not None:
            raise error
        answers = await super().commit(batch)
        if lost:
            raise StoreUnavailableError("the answer was lost", op="commit")
        return answers

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        self._enter("put_blob", key)
        await super().put_blob(key, name, source)

    async def open_blob(
        self, key: str, name: str, start: int = 0, size: int | None = None
    ) -> AsyncIterator[bytes]:
        self._enter("open_blob", key)
        async for chunk in super().open_blob(key, name, start, size):
            yield chunk

    async def list_blobs(self, key: str) -> list[str]:
        self._enter("list_blobs", key)
        return await super().list_blobs(key)

    async def delete_blobs(self, key: str, names: Sequence[str]) -> None:
        self._enter("delete_blobs", key)
        await super().delete_blobs(key, names)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        self._enter("keys", None)
        async for key in super().keys(prefix):
            yield key

    async def delete(self, key: str, expect: Version) -> None:
        self._enter("delete", key)
        await super().delete(key, expect)

    def _enter(self, op: str, key: str | None) -> None:
        self.calls[op] += 1
        self._check(op, key)

    def _check(self, op: str, key: str | None) -> None:
        if self.down:
            raise StoreUnavailableError("the store is down", op=op, key=key)
