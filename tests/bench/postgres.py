"""Ten thousand keys to PostgreSQL, against the raw driver doing the same on the same server."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from aiocheckpoint import Runtime
from aiocheckpoint.abc import Put, Version
from aiocheckpoint.stores.postgres import PostgresStore

from ..postgresql import Admin, some_server
from ._handles import first_states, opened
from ._measure import Row, progress

clock = time.perf_counter
KEYS = [f"key/{n:05d}" for n in range(10_000)]
_UPSERT = "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
_Rows = Sequence[tuple[str, bytes]]


def _rows() -> _Rows:
    return [(key, os.urandom(100)) for key in KEYS]


def _copied(connection: psycopg.Connection[Any], rows: _Rows) -> None:
    """COPY into a temporary table, and from there into the one that counts."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE new (key text, value bytea) ON COMMIT DROP")
        with cursor.copy("COPY new FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["text", "bytea"])
            for row in rows:
                copy.write_row(row)
        cursor.execute(f"INSERT INTO raw SELECT * FROM new {_UPSERT}")


def _one_by_one(connection: psycopg.Connection[Any], rows: _Rows) -> None:
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO raw VALUES (%s, %b) {_UPSERT}", rows)


WAYS: dict[str, Callable[[psycopg.Connection[Any], _Rows], None]] = {
    "COPY": _copied,
    "executemany": _one_by_one,
}


class _Raw:
    """The raw driver's two ways; the faster one is the yardstick."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        connection.execute("DROP TABLE IF EXISTS raw")
        connection.execute("CREATE TABLE raw (key text PRIMARY KEY, value bytea NOT NULL)")
        self.times: dict[str, list[float]] = {way: [] for way in WAYS}

    def upsert(self, *, into_empty: bool) -> float:
        """Seconds that the faster way takes."""
        for way, upsert in WAYS.items():
            if into_empty:
                self._connection.execute("TRUNCATE raw")
            rows = _rows()
            began = clock()
            upsert(self._connection, rows)
            self.times[way].append(clock() - began)
        return min(times[-1] for times in self.times.values())

    def __str__(self) -> str:
        medians = {way: statistics.median(times) for way, times in self.times.items()}
        return ", ".join(f"{way} {median * 1000:.0f} ms" for way, median in medians.items())


async def keys(directory: Path, rounds: int) -> list[Row]:
    """A batch of 10,000 keys of 100 B: created, replaced, and through a runtime."""
    try:
        with some_server() as server, server.database() as admin, admin.connect() as connection:
            return [
                await _batch(admin, connection, rounds, into_empty=True),
                await _batch(admin, connection, rounds, into_empty=False),
                await _runtime(admin, connection, rounds, directory / "spool"),
            ]
    except (pytest.skip.Exception, pytest.fail.Exception) as exc:
        progress(f"  {exc}")
        return []


async def _batch(
    admin: Admin, connection: psycopg.Connection[Any], rounds: int, *, into_empty: bool
) -> Row:
    store = PostgresStore.from_url(f"{admin.url}?table=batch")
    raw = _Raw(connection)
    versions: Sequence[Any] = await store.commit(_puts([None] * len(KEYS)))
    ratios, times = [], []
    for number in range(rounds + 2):
        if into_empty:
            connection.execute("TRUNCATE batch")
        puts = _puts([None] * len(KEYS) if into_empty else versions)
        base = raw.upsert(into_empty=into_empty)
        began = clock()
        versions = await store.commit(puts)
        took = clock() - began
        assert not any(isinstance(version, Exception) for version in versions)
        if number >= 2:  # the first ones plan, and prepare
            ratios.append(base / took)
            times.append(took)
    await store.aclose()
    connection.execute("DROP TABLE batch, batch_blobs, batch_chunks, batch_schema")
    what = "created" if into_empty else "replaced"
    return Row(
        f"10,000 keys of 100 B {what} in one batch of `postgresql:`, against a raw upsert",
        0.5,
        "at least",
        ratios,
        "%",
        f"{statistics.median(times) * 1000:.0f} ms; raw: {raw}",
    )


def _puts(versions: Sequence[Version | None]) -> list[Put]:
    return [Put(key, version, os.urandom(100)) for key, version in zip(KEYS, versions, strict=True)]


async def _runtime(
    admin: Admin, connection: psycopg.Connection[Any], rounds: int, spool: Path
) -> Row:
    """The same through handles: slots, frames of some 350 B, answers to each."""
    raw = _Raw(connection)
    ratios, rates = [], []
    async with Runtime(admin.url, spool=spool) as rt, AsyncExitStack() as stack:
        began = clock()
        cps = await opened(rt, KEYS, stack)
        opening = clock() - began
        await first_states(rt, cps)
        raw.upsert(into_empty=False)
        for _ in range(rounds):
            for cp in cps:
                await cp.write(os.urandom(100))
            base = raw.upsert(into_empty=False)
            began = clock()
            await rt.flush()
            took = clock() - began
            ratios.append(base / took)
            rates.append(len(KEYS) / took)
            assert all(cp.statistics().lag == 0 for cp in cps)
    return Row(
        "10,000 dirty keys of 100 B to `postgresql:`, against a raw upsert",
        0.5,
        "at least",
        ratios,
        "%",
        f"{statistics.median(rates):,.0f} keys/s; opening them took {opening:.1f} s; raw: {raw}",
    )


ROWS = {"postgres": keys}
