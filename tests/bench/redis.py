"""Ten thousand keys into Redis, by the store and by a runtime, against a raw pipeline."""

from __future__ import annotations

import os
import secrets
import statistics
import time
from contextlib import AsyncExitStack
from pathlib import Path

from redis import asyncio as redis

import aiocheckpoint
from aiocheckpoint import Runtime, StoreError
from aiocheckpoint.abc import Put, Version
from aiocheckpoint.stores.redis import RedisStore

from ._handles import first_states, opened
from ._measure import Row

clock = time.perf_counter
KEYS = [f"key/{n:05d}" for n in range(10_000)]


class _Raw:
    """redis-py itself: one pipeline, no transaction, of an HSET of the same two fields a key."""

    def __init__(self, url: str, prefix: str) -> None:
        self.client = redis.Redis.from_url(url)
        self._prefix = prefix

    async def put(self, records: list[bytes]) -> float:
        began = clock()
        async with self.client.pipeline(transaction=False) as pipeline:
            for key, record in zip(KEYS, records, strict=True):
                items: list[str | bytes] = ["version", b"%020d" % len(record), "record", record]
                pipeline.hset(f"{self._prefix}-raw/head/{key}", items=items)
            await pipeline.execute()
        return clock() - began

    async def clean(self) -> None:
        some: list[bytes] = []
        async for key in self.client.scan_iter(f"{self._prefix}*", count=5000):
            some.append(key)
            if len(some) == 5000:
                await self.client.unlink(*some)
                some.clear()
        if some:
            await self.client.unlink(*some)
        await self.client.aclose()


def _records() -> list[bytes]:
    return [os.urandom(100) for _ in KEYS]


async def batches(directory: Path, rounds: int) -> list[Row]:
    """10,000 records of 100 B to the Redis that runs here (REDIS_URL, else this machine's)."""
    url = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")
    prefix = f"bench-{secrets.token_hex(6)}"
    raw = _Raw(url, prefix)
    try:
        async with AsyncExitStack() as stack:
            rt = await stack.enter_async_context(
                Runtime(RedisStore(url, prefix=f"{prefix}-rt"), spool=directory)
            )
            cps = await opened(rt, KEYS, stack)
            await first_states(rt, cps)
            store = RedisStore(url, prefix=prefix)
            stack.push_async_callback(store.aclose)
            return await _measure(raw, store, rt, cps, rounds)
    finally:
        await raw.clean()


async def _measure(
    raw: _Raw,
    store: RedisStore,
    rt: Runtime,
    cps: list[aiocheckpoint.Checkpointer[bytes]],
    rounds: int,
) -> list[Row]:
    commits, flushes, rates = [], [], []
    versions: list[Version | None] = [None] * len(KEYS)
    for number in range(rounds + 1):
        base = await raw.put(_records())
        puts = [Put(*put) for put in zip(KEYS, versions, _records(), strict=True)]
        began = clock()
        answers = await store.commit(puts)
        took = clock() - began
        versions = [answer for answer in answers if not isinstance(answer, StoreError)]
        assert len(versions) == len(KEYS)
        for cp in cps:
            await cp.write(os.urandom(100))
        base = (base + await raw.put(_records())) / 2
        began = clock()
        await rt.flush()
        flushed = clock() - began
        if number:  # the first makes the keys
            commits.append(base / took)
            flushes.append(base / flushed)
            rates.append((len(KEYS) / base, len(KEYS) / took, len(KEYS) / flushed))
    each = [f"{statistics.median(rate):,.0f}" for rate in zip(*rates, strict=True)]
    what = "10,000 {} to `redis:`, against a raw redis-py pipeline of as many HSETs"
    note = f"{{}} keys/s; the pipeline {each[0]}"
    return [
        Row(
            what.format("records of 100 B in one commit"),
            0.7,
            "at least",
            commits,
            "%",
            note.format(each[1]),
        ),
        Row(
            what.format("dirty keys of 100 B"), 0.7, "at least", flushes, "%", note.format(each[2])
        ),
    ]


ROWS = {"redis": batches}
