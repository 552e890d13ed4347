"""What an outage is made of: a service that may fail, a store whose calls are counted, and short
timeouts."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from typing import Protocol

import aiocheckpoint._calls
import aiocheckpoint._claim
from aiocheckpoint._errors import StoreError
from aiocheckpoint.abc import Head, Put, Source, Version
from aiocheckpoint.testing import Wrapper

from ._torture import Counts


class Service(Protocol):
    """A service and what may befall it."""

    @property
    def url(self) -> str:
        """Of an empty store in it."""

    def trouble(self, rng: random.Random) -> AbstractAsyncContextManager[str]:
        """Begin some trouble, and say which; at the end the service is well."""

    def counts(self) -> Counts:
        """What befell it that it alone knows of."""


class Pile:
    """Troubles, each of which is drawn before one comes again."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._left: list[str] = []

    def draw(self, rng: random.Random) -> str:
        self._left = self._left or rng.sample(self._names, len(self._names))
        return self._left.pop()


class Watched(Wrapper):
    """Counts the calls of a store."""

    calls = 0

    async def load(self, key: str) -> Head | None:
        self.calls += 1
        return await self.store.load(key)

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        self.calls += 1
        return await self.store.commit(batch)

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        self.calls += 1
        await self.store.put_blob(key, name, source)


@contextmanager
def timeouts(calls: float, claims: float) -> Iterator[None]:
    """After how many seconds calls are given up, and claims."""
    before = aiocheckpoint._calls.OP_TIMEOUT, aiocheckpoint._claim.OP_TIMEOUT  # type: ignore[attr-defined]
    aiocheckpoint._calls.OP_TIMEOUT = calls
    aiocheckpoint._claim.OP_TIMEOUT = claims  # type: ignore[attr-defined]
    try:
        yield
    finally:
        aiocheckpoint._calls.OP_TIMEOUT = before[0]
        aiocheckpoint._claim.OP_TIMEOUT = before[1]  # type: ignore[attr-defined]


@contextmanager
def silence() -> Iterator[None]:
    """Package and driver log nothing: who keeps lines keeps errors, and what these refer to."""
    loggers = [logging.getLogger(name) for name in ("aiocheckpoint", "psycopg")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@asynccontextmanager
async def again_and_again(trouble: Callable[[], object]) -> AsyncIterator[None]:
    """Call it in a thread, at the beginning and over and over."""
    over = asyncio.Event()

    async def repeat() -> None:
        while not over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), 0.05)
            await asyncio.to_thread(trouble)

    await asyncio.to_thread(trouble)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(repeat())
        try:
            yield
        finally:
            over.set()
