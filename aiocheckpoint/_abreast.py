"""Work on many items, a few at a time, however many there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import TypeVar

from ._calls import backoff
from ._errors import StoreUnavailableError

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = 20.0
"""Seconds for which a store that does not answer is asked again."""


async def abreast(
    items: AsyncIterable[T], work: Callable[[T], Awaitable[R]], at_once: int
) -> AsyncGenerator[R, None]:
    """What `work` makes of each item, as it comes. Left early, it cancels what is under way.

    Items are drawn as there is room for them.
    """
    running: set[asyncio.Future[R]] = set()
    try:
        async for item in items:
            running.add(asyncio.ensure_future(work(item)))
            if len(running) == at_once:
                for future in await _ended(running):
                    running.discard(future)
                    yield future.result()
        while running:
            for future in await _ended(running):
                running.discard(future)
                yield future.result()
    finally:
        for future in running:  # those among them that have failed as well, and are heard now
            future.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _ended(running: set[asyncio.Future[R]]) -> set[asyncio.Future[R]]:
    """Those that have ended, at least one."""
    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    return done


async def patiently(attempt: Callable[[], Awaitable[R]]) -> R:
    """Try again while the store is unavailable, for `PATIENCE` seconds."""
    until = asyncio.get_running_loop().time() + PATIENCE
    failures = 0
    while True:
        try:
            return await attempt()
        except StoreUnavailableError:
            wait = backoff(failures)
            failures += 1
            if asyncio.get_running_loop().time() + wait > until:
                raise
        await asyncio.sleep(wait)
