"""Hops to a thread that are never left half way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def hop(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `fn` in a thread, and do not go on, cancelled or not, while it runs."""
    return await settled(asyncio.to_thread(fn, *args, **kwargs))


async def settled(call: Awaitable[T], discard: Callable[[T], object] | None = None) -> T:
    """Await to the end, even if cancelled meanwhile, and raise that only then, having discarded
    what came of it.

    What a thread still uses (a descriptor, a directory) must not be closed or removed under it.
    """
    future = asyncio.ensure_future(call)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        if not future.cancelled() and future.exception() is None and discard is not None:
            discard(future.result())
        raise
