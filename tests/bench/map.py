"""`Runtime.map`: what an item costs, and that memory does not grow with the items."""

from __future__ import annotations

import gc
import os
import statistics
import time
from pathlib import Path

import anyio

from aiocheckpoint import Checkpointer, Runtime
from aiocheckpoint.stores.memory import MemoryStore

from ._measure import Row, progress

clock = time.perf_counter
AT_ONCE = 16


async def nothing(cp: Checkpointer[bytes], n: int) -> None:
    """An item that does nothing: what remains is the map's."""


async def _bare(items: int) -> float:
    """Seconds per item of a task group with a limiter, whose tasks all exist from the start."""
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def one() -> None:
        async with limiter:
            pass

    began = clock()
    async with anyio.create_task_group() as group:
        for _ in range(items):
            group.start_soon(one)
    return (clock() - began) / items


async def _map(rt: Runtime, items: int) -> float:
    """Seconds per item of a map; 16 at a time."""
    began = clock()
    async with rt.map(nothing, range(items), key="item/{n}", max_concurrency=AT_ONCE) as outcomes:
        async for outcome in outcomes:
            outcome.unwrap()
    return (clock() - began) / items


async def cost(directory: Path, rounds: int) -> list[Row]:
    """100,000 items that do nothing, on `memory:`: claimed, run, committed as done; then once more,
    when all are done; each against a bare task group. The targets are ours, not DESIGN's."""
    first: list[float] = []
    again: list[float] = []
    costs: list[tuple[float, float]] = []
    rounds = min(rounds, 3)
    for number in range(rounds):
        progress(f"  100,000 items, round {number + 1} of {rounds}")
        base = await _bare(100_000)
        async with Runtime("memory:") as rt:
            ran, found = await _map(rt, 100_000), await _map(rt, 100_000)
        first.append(ran / base)
        again.append(found / base)
        costs.append((ran * 1e6, found * 1e6))
    ran, found = (statistics.median(each) for each in zip(*costs, strict=True))
    what = "an item of `map` over 100,000, `memory:`, {}, against a bare task group with a limiter"
    return [
        Row(what.format("no-op"), 10.0, "at most", first, "times", f"{ran:.0f} µs an item"),
        Row(what.format("done before"), 10.0, "at most", again, "times", f"{found:.0f} µs an item"),
    ]


class _Forgetful(MemoryStore):
    """A store that keeps only the newest keys, so that what grows is not the store."""

    async def load(self, key: str) -> None:
        while len(self._heads) > 10 * AT_ONCE:
            del self._heads[next(iter(self._heads))]
        return None


async def memory(directory: Path, rounds: int) -> list[Row]:
    """The process's memory after 100,000 items of one map, against that after 10,000."""

    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    growths, notes = [], []
    for _ in range(min(rounds, 3)):
        sizes = {}
        taken = 0
        numbers = range(100_000)
        async with (
            Runtime(_Forgetful()) as rt,
            rt.map(nothing, numbers, key="item/{n}", max_concurrency=AT_ONCE) as outcomes,
        ):
            async for _ in outcomes:
                taken += 1
                if taken in (10_000, 100_000):
                    sizes[taken] = resident()
                    progress(f"  {taken:,} items: {sizes[taken] / 1e6:.1f} MB")
        growths.append((sizes[100_000] - sizes[10_000]) / 90_000)
        notes.append(f"{sizes[10_000] / 1e6:.1f} and {sizes[100_000] / 1e6:.1f} MB")
    what = "resident memory after 100,000 items of `map`, less that after 10,000, per further item"
    note = f"{'; '.join(notes)}; 8 bytes a key tell two items of one key"
    return [Row(what, 32.0, "at most", growths, "bytes", note)]


ROWS = {"map": cost, "map-memory": memory}
