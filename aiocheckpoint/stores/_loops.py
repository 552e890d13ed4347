"""Closing a store where its user is: on a loop that it was not used on, which may be trio's."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TypeVar

import anyio

T = TypeVar("T")


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The asyncio loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def elsewhere(future: Future[T]) -> T:
    """Await what another thread does, on whichever loop."""
    if running_loop() is None:
        return await anyio.to_thread.run_sync(future.result)
    return await asyncio.wrap_future(future)
