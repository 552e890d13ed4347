"""Many open keys, as the rows of batches need them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AsyncExitStack

import anyio

from aiocheckpoint import Checkpointer, Runtime

from ._measure import progress


async def opened(
    rt: Runtime, keys: Sequence[str], stack: AsyncExitStack
) -> list[Checkpointer[bytes]]:
    """Open all, some hundred at a time; from then on only a flush stores anything."""
    progress(f"  opening {len(keys):,} keys")
    cps: list[Checkpointer[bytes]] = []

    async def enter(key: str, limiter: anyio.CapacityLimiter) -> None:
        async with limiter:
            cps.append(await stack.enter_async_context(rt.open(key, min_interval=3600)))

    limiter = anyio.CapacityLimiter(500)
    async with anyio.create_task_group() as group:
        for key in keys:
            group.start_soon(enter, key, limiter)
    return cps


async def first_states(rt: Runtime, cps: Sequence[Checkpointer[bytes]]) -> None:
    """The first state of a key goes at once: let it be gone."""
    for cp in cps:
        await cp.write(os.urandom(100))
    await rt.flush()
