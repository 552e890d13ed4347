"""One point of each curve, measured in a process of its own."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

import aiocheckpoint
from aiocheckpoint import Checkpointer, Runtime
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import SlowStore

clock = time.perf_counter
Figures = dict[str, float]


def _resident() -> int:
    """Bytes of memory that this process has, shared ones included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _worst(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def keys(place: Path, count: int) -> Figures:
    """A loop that writes to each of many open keys in turn, and yields after each hundred."""
    before = _resident()
    async with Runtime(f"sqlite:{place}/db") as rt, AsyncExitStack() as stack:
        began = clock()
        cps = await _opened(rt, count, stack)
        opening = (clock() - began) / count
        for cp in cps:
            await cp.write(os.urandom(100))
        await rt.flush()
        stored = rt.statistics().stored
        ages: list[float] = []
        rng = random.Random(1)
        payloads = [os.urandom(100) for _ in range(997)]
        writes = 0
        began = clock()
        until, look = began + max(3.0, count / 20_000), began
        while clock() < until:
            for cp in cps:
                await cp.write(payloads[writes % 997])
                writes += 1
                if writes % 100 == 0:
                    await anyio.lowlevel.checkpoint()
                    if (now := clock()) > look:
                        look = now + 0.1
                        some = rng.sample(cps, min(count, 50))
                        ages += [each.statistics().lag for each in some]
                        if now > until:
                            break
        took = clock() - began
        return {
            "seconds a write": took / writes,
            "commits a second": (rt.statistics().stored - stored) / took,
            "seconds to open": opening,
            "bytes a key": (_resident() - before) / count,
            "age of the stored state, p99": _worst(ages, 0.99),
        }


async def _opened(rt: Runtime, count: int, stack: AsyncExitStack) -> list[Checkpointer[bytes]]:
    cps: list[Checkpointer[bytes]] = []

    async def enter(number: int, limiter: anyio.CapacityLimiter) -> None:
        async with limiter:
            cps.append(await stack.enter_async_context(rt.open(f"key/{number:06d}")))

    limiter = anyio.CapacityLimiter(500)
    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(enter, number, limiter)
    return cps


async def size(place: Path, count: int) -> Figures:
    """States of so many bytes, to both local stores."""
    figures: Figures = {}
    state = random.Random(count).randbytes(min(count, 1 << 20)) * max(1, count >> 20)
    for url in ("file:{}/files", "sqlite:{}/db"):
        calls, totals = [], []
        async with aiocheckpoint.open(url.format(place), "k", min_interval=0) as cp:
            for number in range(5 if count > 10**7 else 20):
                changed = number.to_bytes(8, "little") + state
                began = clock()
                await cp.write(changed)
                calls.append(clock() - began)
                await cp.flush()
                totals.append(clock() - began)
        kind = url.partition(":")[0]
        figures[f"a write, `{kind}:`"] = statistics.median(calls)
        figures[f"until it is stored, `{kind}:`"] = statistics.median(totals)
    return figures


async def history(place: Path, count: int) -> Figures:
    """A key that has so many earlier states, all kept."""
    figures: Figures = {}
    for url in ("file:{}/files", "sqlite:{}/db"):
        store = url.format(place)
        async with aiocheckpoint.open(store, "k", keep=count, min_interval=0) as cp:
            for number in range(count + 1):
                await cp.write(b"%0100d" % number)
                await cp.flush()
        opens, reads, commits = [], [], []
        for number in range(7):
            began = clock()
            async with aiocheckpoint.open(store, "k", keep=count, min_interval=0) as cp:
                opens.append(clock() - began)
                began = clock()
                assert await cp.read()
                reads.append(clock() - began)
                began = clock()
                await cp.write(b"%0100d" % -number)
                await cp.flush()
                commits.append(clock() - began)
        kind = url.partition(":")[0]
        figures[f"to open, `{kind}:`"] = statistics.median(opens)
        figures[f"to read, `{kind}:`"] = statistics.median(reads)
        figures[f"to commit, `{kind}:`"] = statistics.median(commits)
    return figures


async def files(place: Path, count: int) -> Figures:
    """A tree of so many files of 1 KB."""
    tree = place / "tree"
    for number in range(count):
        folder = tree / f"{number // 1000}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}").write_bytes(os.urandom(1000))
    async with aiocheckpoint.open(f"file:{place}/store", "k", flush_timeout=300) as cp:
        began = clock()
        await cp.save(tree)
        first = clock() - began
        (tree / "0" / "0").write_bytes(os.urandom(1000))
        began = clock()
        await cp.save(tree)
        again = clock() - began
        began = clock()
        await cp.restore(place / "anew")
        return {"first save": first, "save with one changed": again, "restore": clock() - began}


async def processes(place: Path, count: int) -> Figures:
    """So many processes, each with a key of its own, that write and flush without a pause."""
    url = f"sqlite:{place}/db"
    start = time.time() + 1 + count / 4
    command = [sys.executable, "-m", "tests.bench.growth", "--flushing", url]
    children = [
        subprocess.Popen([*command, str(n), str(start)], stdout=subprocess.PIPE, text=True)
        for n in range(count)
    ]
    took: list[float] = []
    for child in children:
        out, _ = child.communicate(timeout=120)
        assert child.returncode == 0
        took += json.loads(out)
    return {"flushes a second, all": len(took) / 3, "a flush, p99": _worst(took, 0.99)}


async def flushing(url: str, key: str, start: float) -> None:
    """One of those processes: how long its flushes took in three seconds."""
    took = []
    async with aiocheckpoint.open(url, key, min_interval=0) as cp:
        await anyio.sleep(max(0, start - time.time()))
        until = clock() + 3
        while (began := clock()) < until:
            await cp.write(os.urandom(100))
            await cp.flush()
            took.append(clock() - began)
    print(json.dumps(took))


async def latency(place: Path, microseconds: int) -> Figures:
    """A loop of steps of 200 µs beside a store that takes so long for each call."""
    store = SlowStore(MemoryStore(), 0)

    async def nothing(_: bytes) -> None:
        return None

    async def rate(fn: Callable[[bytes], Awaitable[object]], seconds: float) -> float:
        steps = 0
        began = now = clock()
        while now - began < seconds:
            until = now + 200e-6
            while clock() < until:
                pass
            await fn(b"%0100d" % steps)
            steps += 1
            now = clock()
        return steps / (now - began)

    async with aiocheckpoint.open(store, "k", min_interval=0, spool=place) as cp:
        store.seconds = microseconds / 1e6
        bare, writing, ages = [], [], []
        for _ in range(8):
            bare.append(await rate(nothing, 0.25))
            writing.append(await rate(cp.write, 0.25))
            ages.append(cp.statistics().lag)
        store.seconds = 0
    share = statistics.median(writing) / statistics.median(bare)
    return {"steps, of no checkpoint": share, "age of the stored state": statistics.median(ages)}


Point = Callable[[Path, int], Awaitable[Figures]]
POINTS: dict[str, tuple[Point, tuple[int, ...]]] = {
    "keys": (keys, (1, 10, 100, 1000, 10_000, 100_000)),
    "size": (size, tuple(10**n for n in range(1, 10))),
    "history": (history, (1, 10, 100, 1000)),
    "files": (files, (1, 10, 100, 1000, 10_000, 100_000)),
    "processes": (processes, (1, 2, 4, 8, 16)),
    "latency": (latency, tuple(10**n for n in range(2, 8))),
}


def measured(curve: str, x: int, place: Path) -> Any:
    return anyio.run(POINTS[curve][0], place, x)
