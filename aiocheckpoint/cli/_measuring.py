"""Measuring a store, through the public face, with keys of its own."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from .._checkpointer import Checkpointer
from .._deleting import delete_now
from .._errors import CheckpointError
from .._runtime import Runtime
from ..abc import Store

_SLICES = 6
_STEP = 0.0002  # seconds that a step computes

clock = time.perf_counter


@dataclass(frozen=True)
class Cost:
    """What storing states of one size costs, in seconds."""

    size: int
    commit: float
    """From `write()` to the end of `flush()`, the median."""
    worst: float
    taken: float
    """What one commit takes from the task, which computes meanwhile."""


@dataclass(frozen=True)
class Claims:
    """What `open()` costs, in seconds, the medians."""

    new: float
    again: float


class Measuring:
    """Measures in an entered runtime. `prefix` begins all keys that it makes."""

    def __init__(self, rt: Runtime, prefix: str, rounds: int, seconds: float) -> None:
        self._rt = rt
        self._prefix = prefix
        self._rounds = rounds
        self._seconds = seconds

    async def claims(self, tell: Callable[[], None]) -> Claims:
        new: list[float] = []
        again: list[float] = []
        for number in range(self._rounds):
            for times in (new, again):
                began = clock()
                async with self._rt.open(f"{self._prefix}claim-{number}", min_interval=0) as cp:
                    times.append(clock() - began)
                    await cp.write(b"%d" % number)
            tell()
        return Claims(statistics.median(new), statistics.median(again))

    async def commits(self, size: int, tell: Callable[[], None]) -> Cost:
        """States of one size: how long a commit lasts, and what it takes."""
        states = [os.urandom(size) for _ in range(2)]
        took = []
        async with self._rt.open(f"{self._prefix}state-{size}", min_interval=0) as cp:
            for number in range(self._rounds + 1):
                began = clock()
                await cp.write(states[number % 2])
                await cp.flush()
                took.append(clock() - began)
                tell()
            took = took[1:] or took  # the first may make directories, and connections
            taken = await self._taken(cp, states, statistics.median(took))
        return Cost(size, statistics.median(took), max(took), taken)

    async def _taken(
        self, cp: Checkpointer[bytes], states: Sequence[bytes], commit: float
    ) -> float:
        """What one commit takes from a task that computes, yields, and has its state stored as
        often as the store can, against one that only computes and yields."""
        seconds = max(self._seconds / (2 * _SLICES), 2 * commit)
        bare, storing, commits = 0, 0, 0
        for _ in range(_SLICES):
            bare += (await _steps(cp, [], seconds))[0]
            steps, stored = await _steps(cp, states, seconds)
            storing += steps
            commits += stored
            await cp.flush()
        lost = max(0.0, 1 - storing / bare)
        return lost * _SLICES * seconds / commits if commits else commit

    async def batch(self, keys: int, tell: Callable[[], None]) -> float:
        """Seconds until a state of 100 bytes in each of so many keys is stored, all at once."""
        took = []
        async with AsyncExitStack() as stack:
            cps: list[Checkpointer[bytes]] = []
            for number in range(keys):
                opening = self._rt.open(f"{self._prefix}batch-{number}", min_interval=0)
                cps.append(await stack.enter_async_context(opening))
                tell()
            for _ in range(self._rounds):
                for cp in cps:
                    cp.write_nowait(os.urandom(100))
                began = clock()
                await self._rt.flush()
                took.append(clock() - began)
        return statistics.median(took)


async def _steps(
    cp: Checkpointer[bytes], states: Sequence[bytes], seconds: float
) -> tuple[int, int]:
    """How many steps were done in that time, and how many states given to be stored."""
    steps = given = 0
    until = clock() + seconds
    while (now := clock()) < until:
        busy = now + _STEP
        while clock() < busy:
            pass
        if states and cp.due:
            await cp.write(states[given % 2])
            given += 1
        await asyncio.sleep(0)
        steps += 1
    return steps, given


async def clear_away(store: Store, prefix: str) -> list[str]:
    """Delete all keys that begin so; those that could not be."""
    left = []
    keys = [key async for key in store.keys(prefix)]
    for key in keys:
        try:
            await delete_now(store, key, store.spool_dir)
        except CheckpointError:
            left.append(key)
    return left
