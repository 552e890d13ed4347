"""The rows of DESIGN 7 for the core: write, steps, a busy loop, cancel, ten thousand keys."""

from __future__ import annotations

import itertools
import os
import sqlite3
import statistics
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

import aiocheckpoint
from aiocheckpoint import Keyring, Runtime
from aiocheckpoint._records import decode_record
from aiocheckpoint.abc import Put, Store, Version
from aiocheckpoint.stores import open_store

from ._handles import first_states, opened
from ._measure import Row

_stamp = struct.Struct("<d92x").pack  # 100 bytes that tell when they were made
clock = time.perf_counter


class _Nothing:
    async def write(self, _: bytes) -> None:
        return None


async def write(directory: Path, rounds: int) -> list[Row]:
    """What a write() costs in a tight loop, against an `async def` method that does nothing."""
    nothing = _Nothing().write

    payloads = [b"%0100d" % n for n in range(1000)]

    async def per_call(fn: Callable[[bytes], Awaitable[object]]) -> float:
        began = clock()
        for _ in range(200):
            for payload in payloads:
                await fn(payload)
        return (clock() - began) / 200_000

    rows = []
    keyring = Keyring({"a": Keyring.generate_key()})
    for what, options, target in (
        ("without spool", {"spool": None}, 2.0),
        ("with spool", {}, 5.0),
        ("with spool and encryption", {"encryption": keyring}, 25.0),
    ):
        ratios, costs = [], []
        name = "w" if "encryption" not in options else "sealed"
        given: dict[str, Any] = options
        async with aiocheckpoint.open(f"sqlite:{directory}/{name}.db", "key", **given) as cp:
            await per_call(cp.write)
            for _ in range(rounds):
                base = (await per_call(nothing) + await per_call(nothing)) / 2
                cost = await per_call(cp.write)
                ratios.append(cost / base)
                costs.append(cost)
        rows.append(
            Row(
                f"`await cp.write(b)`, 100 B, coalescing, {what}, against a no-op call",
                target,
                "at most",
                ratios,
                "times",
                f"{statistics.median(costs) * 1e9:.0f} ns a call, all that happens beside it"
                " included",
            )
        )
    return rows


async def steps(directory: Path, rounds: int) -> list[Row]:
    """Steps per second of a computing loop that writes at every step, against the bare loop."""

    def work(n: int) -> int:
        total = 0
        for i in range(n):
            total += i * i
        return total

    size = 1000
    began = clock()
    for _ in range(50):
        work(size)
    size = int(size * 200e-6 / ((clock() - began) / 50))

    async def nothing(_: bytes) -> None:
        return None

    async def rate(fn: Callable[[bytes], Awaitable[object]], seconds: float) -> float:
        count = 0
        began = clock()
        while (now := clock()) - began < seconds:
            work(size)
            await fn(_stamp(now))
            count += 1
        return count / (clock() - began)

    ratios = []
    async with aiocheckpoint.open(f"sqlite:{directory}/s.db", "key") as cp:
        for _ in range(rounds):
            # slices by turns: what else the machine does meanwhile falls on both alike
            bare, writing = [], []
            for _ in range(8):
                bare.append(await rate(nothing, 0.15))
                writing.append(await rate(cp.write, 0.15))
            ratios.append(statistics.median(writing) / statistics.median(bare))
    return [
        Row(
            "steps/s of 200 µs steps that write every step, defaults, against the bare loop",
            0.97,
            "at least",
            ratios,
            "%",
            "`sqlite:`, with spool",
        )
    ]


class _Watched:
    """A store that notes when each commit was durable."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.commits: list[tuple[float, float]] = []
        """Of each commit of a state: when it was made, when it was durable."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | aiocheckpoint.StoreError]:
        outcomes = await self._inner.commit(batch)
        now = clock()
        _, state = decode_record(batch[0].key, batch[0].record)
        if state:
            self.commits.append((struct.unpack_from("<d", state)[0], now))
        return outcomes


async def busy(directory: Path, rounds: int) -> list[Row]:
    """How old the stored state is while the loop computes and never yields."""
    medians = []
    notes = []
    for number in range(rounds):
        store = _Watched(open_store(f"file:{directory}/busy{number}"))
        async with Runtime(store, min_interval=0) as rt:  # type: ignore[arg-type]
            async with rt.open("key") as cp:
                await cp.write(_stamp(clock()))
                await cp.flush()
                store.commits.clear()
                until = clock() + 2
                while (now := clock()) < until:
                    cp.write_nowait(_stamp(now))
                    sum(i * i for i in range(200))
            done = store.commits[:]
        await anyio.lowlevel.checkpoint()
        ages = []
        for (made, durable), (_, following) in itertools.pairwise(done):
            at = durable
            while at < following:
                ages.append(at - made)
                at += 0.001
        medians.append(statistics.median(ages))
        notes.append(len(done) / 2)
    return [
        Row(
            "age of the stored state while a loop computes without yielding, `file:`, median",
            0.050,
            "at most",
            medians,
            "ms",
            f"`min_interval=0`; {statistics.median(notes):.0f} commits/s",
        )
    ]


async def cancel(directory: Path, rounds: int) -> list[Row]:
    """From the cancelling of a task to its newest state being stored, against one raw put."""
    rows = []
    for scheme, url in (
        ("file:", f"file:{directory}/cancel"),
        ("sqlite:", f"sqlite:{directory}/cancel.db"),
    ):
        ratios, stored, left = [], [], []
        store = _Watched(open_store(url))
        async with Runtime(store) as rt:  # type: ignore[arg-type]
            for _ in range(rounds):
                times: list[float] = []
                raws: list[float] = []
                for _ in range(20):
                    raws.append(await _raw_put(url))
                    cancelled, ended = await _cancel(rt)
                    times.append(store.commits[-1][1] - cancelled)
                    left.append(ended - cancelled)
                ratios.append(statistics.median(times) / statistics.median(raws))
                stored += times
        rows.append(
            Row(
                f"cancel to stored, `{scheme}`, against one raw store put",
                1.5,
                "at most",
                ratios,
                "times",
                f"{statistics.median(stored) * 1000:.2f} ms to stored,"
                f" {statistics.median(left) * 1000:.2f} ms to the task's end",
            )
        )
    return rows


_raw: dict[str, tuple[Store, Version]] = {}


async def _raw_put(url: str) -> float:
    """One commit of the same size by the store alone, timed on its own loop."""
    if url not in _raw:
        store = open_store(url)
        (version,) = await store.commit([Put("raw", None, os.urandom(350))])
        assert not isinstance(version, Exception)
        _raw[url] = store, version
    store, version = _raw[url]
    record = os.urandom(350)
    began = clock()
    (made,) = await store.commit([Put("raw", version, record)])
    took = clock() - began
    assert not isinstance(made, Exception)
    _raw[url] = store, made
    return took


async def _cancel(rt: Runtime) -> tuple[float, float]:
    """Cancel a task that has just written; when that was, and when its block had been left."""

    async def task() -> None:
        with scope:
            async with rt.open("key") as cp:
                await cp.write(_stamp(clock()))
                await cp.flush()
                await cp.write(_stamp(clock()))
                ready.set()
                await anyio.sleep_forever()

    ready = anyio.Event()
    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(task)
        await ready.wait()
        began = clock()
        scope.cancel()
    return began, clock()


async def many_keys(directory: Path, rounds: int) -> list[Row]:
    """Ten thousand dirty keys into SQLite, against a raw executemany of as many rows."""
    keys = [f"key/{n:05d}" for n in range(10_000)]
    ratios, rates = [], []
    raw = sqlite3.connect(directory / "raw.db", isolation_level=None)
    raw.execute("PRAGMA journal_mode=WAL")
    raw.execute("PRAGMA synchronous=FULL")
    raw.execute("CREATE TABLE raw(key TEXT PRIMARY KEY, value BLOB NOT NULL)")

    def upsert() -> float:
        rows = [(key, os.urandom(100)) for key in keys]
        began = clock()
        raw.execute("BEGIN IMMEDIATE")
        raw.executemany(
            "INSERT INTO raw VALUES(?, ?) ON CONFLICT(key) DO UPDATE SET value=excluded.value",
            rows,
        )
        raw.execute("COMMIT")
        return clock() - began

    async with Runtime(f"sqlite:{directory}/many.db") as rt, AsyncExitStack() as stack:
        began = clock()
        cps = await opened(rt, keys, stack)
        opening = clock() - began
        await first_states(rt, cps)
        upsert()
        for _ in range(rounds):
            for cp in cps:
                await cp.write(os.urandom(100))
            base = upsert()
            began = clock()
            await rt.flush()
            took = clock() - began
            ratios.append(base / took)
            rates.append(10_000 / took)
            assert all(cp.statistics().lag == 0 for cp in cps)
    raw.close()
    return [
        Row(
            "10,000 dirty keys of 100 B to `sqlite:`, against raw executemany",
            0.5,
            "at least",
            ratios,
            "%",
            f"{statistics.median(rates):,.0f} keys/s; opening them took {opening:.1f} s",
        )
    ]


ROWS = {
    "write": write,
    "steps": steps,
    "busy": busy,
    "cancel": cancel,
    "keys": many_keys,
}
