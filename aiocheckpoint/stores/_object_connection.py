"""A client of an object service on one event loop, and what goes on there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from ._loops import elsewhere, running_loop
from ._object_client import ObjectClient

S = TypeVar("S")
T = TypeVar("T")

_AT_ONCE = 64  # requests of one batch


class Connection:
    """A client on one loop, with the tasks that outlive their callers.

    The generator is closed by us, or by its loop when that ends.
    """

    def __init__(self, connect: Callable[[], AsyncGenerator[ObjectClient, None]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._life = connect()
        self._opening = self._loop.create_task(self._open())
        self._probing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.ready = False
        self.client: ObjectClient

    async def _open(self) -> None:
        self.client = await anext(self._life)
        self.ready = True

    @property
    def failed(self) -> bool:
        return self._opening.done() and not self.ready

    async def open(self) -> None:
        await asyncio.shield(self._opening)

    async def once(self, fn: Callable[[ObjectClient], Coroutine[Any, Any, None]]) -> None:
        """Await one call of `fn`, together with all who want it, until it has succeeded."""
        if self._probing is None or self._probing.done():
            self._probing = self.start(fn(self.client))
        await asyncio.shield(self._probing)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run it to its end, which `close` awaits."""
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # somebody has seen it, or nobody cares

    async def close(self) -> None:
        if self._loop is running_loop():
            await self._close()
        elif self._loop.is_running():
            closing = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
            await elsewhere(closing)

    async def _close(self) -> None:
        await asyncio.wait([self._opening])
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._life.aclose()


async def side_by_side(fn: Callable[[S], Awaitable[T]], items: Sequence[S]) -> list[T]:
    """Call for each, many at a time; the results in order, or the first error."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(item: S) -> T:
        async with room:
            return await fn(item)

    return await asyncio.gather(*map(one, items))
