"""One measurement in a process of its own: `python -m tests.bench.peers._child ORDERS`, in JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import mmap
import random
import statistics
import struct
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._contestants import BY_NAME, Body, Contestant, Save, number_of, state, ticking

PROGRESS = struct.Struct("<QQ")
"""Whether anything was kept, and the number of the newest state that was."""
STEP = 0.0002
"""Seconds of work in a step."""


def _work() -> None:
    """A step's own work: it computes, and holds the loop."""
    until = time.perf_counter() + STEP
    while time.perf_counter() < until:
        pass


async def measured(one: Contestant, place: Path, size: int, seconds: float) -> Any:
    """A loop of steps that work, yield, and keep their state."""
    calls: list[int] = []
    lags: list[float] = []
    steps, took = 0, 0.0

    async def body(save: Save) -> None:
        nonlocal steps, took
        clock = time.perf_counter_ns
        await save(state(1, size))  # what is made at the first call is not measured
        async with ticking(lags):
            await asyncio.sleep(0.05)
            lags.clear()
            start = time.perf_counter()
            while (took := time.perf_counter() - start) < seconds:
                _work()
                await asyncio.sleep(0)
                data = state(steps + 2, size)
                before = clock()
                await save(data)
                calls.append(clock() - before)
                steps += 1

    stored = await one.run(place, body)
    calls.sort()
    return {
        "steps": steps,
        "seconds": took,
        "median_ns": statistics.median(calls),
        "mean_ns": statistics.fmean(calls),
        "p99_ns": calls[len(calls) * 99 // 100],
        "lag_worst": max(lags, default=0.0),
        "lag_p99": sorted(lags)[len(lags) * 99 // 100] if lags else 0.0,
        "stored": steps if stored is None else stored,
    }


def endless(size: int, progress: Path) -> Body:
    """A loop that tells, in mapped memory, which state it has last kept, until it is ended."""

    async def body(save: Save) -> None:
        with progress.open("r+b") as file, mmap.mmap(file.fileno(), PROGRESS.size) as memory:
            number = 0
            while True:
                number += 1
                _work()
                await asyncio.sleep(0)
                await save(state(number, size))
                PROGRESS.pack_into(memory, 0, 1, number)

    return body


async def cancelled(one: Contestant, place: Path, size: int, progress: Path, seed: int) -> None:
    """Cancel the task at a random moment, and let it leave."""
    task = asyncio.ensure_future(one.run(place, endless(size, progress)))
    while not PROGRESS.unpack(progress.read_bytes())[0]:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(random.Random(seed).uniform(0.1, 0.6))
    task.cancel()
    await asyncio.wait([task])


def main(orders: dict[str, Any]) -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    one, place = BY_NAME[orders["name"]], Path(orders["place"])
    size = orders["size"]
    jobs: dict[str, Callable[[], Any]] = {
        "measure": lambda: measured(one, place, size, orders["seconds"]),
        "endless": lambda: one.run(place, endless(size, place / "progress")),
        "cancel": lambda: cancelled(one, place, size, place / "progress", orders["seed"]),
        "last": lambda: one.last(place) if one.last else None,
    }
    result = asyncio.run(jobs[orders["job"]]())
    if orders["job"] == "last":
        result = number_of(result)
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
