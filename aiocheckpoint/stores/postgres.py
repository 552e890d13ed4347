"""`postgresql://...`: four tables in a PostgreSQL database that many machines may share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from operator import attrgetter

from .._errors import ConflictError, StoreError, StoreUnavailableError
from ..abc import Head, Put, Version
from ._keeps_blobs import KeepsBlobs
from ._postgres_arrays import bigints, byteas
from ._postgres_blobs import DURABLY, Blobs
from ._postgres_pool import Pool, blames_the_data
from ._postgres_tables import Connection, Tables
from ._postgres_url import Settings, parse_url
from ._remote import spool_place

_PAGE = 1000
_STATEMENT = 8 << 20
"""Bytes of records in one statement. Joining them stops every thread for a millisecond or two."""
_BATCH_TIME = 20.0
"""Seconds after which no further statement of a batch is begun: the core gives up after 30."""
_key = attrgetter("key")
_MAX_RECORD = 256 << 20  # PostgreSQL's own limit is 1 GiB a message


class PostgresStore(KeepsBlobs):
    """Keeps records in a table of a PostgreSQL database, blobs in two more beside it.

    The tables are made on first use; nothing is connected before that.
    """

    transactional = True
    min_interval = 0.1

    def __init__(self, settings: Settings) -> None:
        self.identity = settings.identity
        self.spool_dir = spool_place(settings.identity)
        tables = Tables(settings.table, settings.identity)
        # Apart, as a put of a blob lasts as long as its source: it holds up no look-up, which are
        # all short, and neither holds up a commit.
        others = settings.pool_size - 1
        self._commits = Pool(settings, tables, 1)
        self._lookups = Pool(settings, tables, others // 2)
        self._blob_puts = Pool(settings, tables, others - others // 2)
        self._blobs = Blobs(self._blob_puts, self._lookups, tables)
        heads = tables.heads
        self._load = f"SELECT record, version FROM {heads} WHERE key = $1".encode()
        self._swap = _SWAP.format(heads=heads, durably=DURABLY).encode()
        self._delete = (
            f"WITH durably AS ({DURABLY}), gone AS ("
            f" DELETE FROM {heads} WHERE key = $1 AND version = $2::bigint RETURNING 1)"
            " SELECT (SELECT count(*) FROM durably), (SELECT count(*) FROM gone)"
        ).encode()
        self._keys = (
            f"SELECT key FROM {heads} WHERE key > $1 AND key >= $2"
            f" AND ($3::bytea IS NULL OR key < $3::bytea) ORDER BY key LIMIT {_PAGE}"
        ).encode()

    @classmethod
    def from_url(cls, url: str) -> PostgresStore:
        """The store of a libpq URL, with `table`, `pool_size` and `prepare_threshold` besides.

        Raises:
            ValueError: the URL says something that cannot be.
        """
        return cls(parse_url(url))

    def __repr__(self) -> str:
        return f"<PostgresStore {self.identity}>"

    async def load(self, key: str) -> Head | None:
        async def load(connection: Connection) -> Head | None:
            cursor = await connection.execute(self._load, [key.encode()], binary=True)
            row = await cursor.fetchone()
            return None if row is None else Head(*row)

        return await self._lookups.call("load", key, load)

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        until = asyncio.get_running_loop().time() + _BATCH_TIME
        # In the order of keys, so that batches that meet rarely wait for each other in a circle.
        puts = sorted((put for put in batch if len(put.record) <= _MAX_RECORD), key=_key)
        answers: dict[str, Version | StoreError] = {}
        if len(puts) < len(batch):
            answers = {put.key: _too_large(put) for put in batch if len(put.record) > _MAX_RECORD}
        failed: StoreError | None = None
        for first, end in _statements(puts):
            if failed is None and first and asyncio.get_running_loop().time() > until:
                failed = StoreUnavailableError("its turn in the batch came too late", op="commit")
            if failed is None:
                try:
                    await self._commit(puts[first:end], answers)
                    continue
                except StoreError as exc:
                    failed = exc
            answers.update((put.key, failed) for put in puts[first:end])
        return [answers[put.key] for put in batch]

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        first, after, end = prefix.encode(), b"", _successor(prefix.encode())

        async def page(connection: Connection) -> list[bytes]:
            cursor = await connection.execute(self._keys, [after, first, end], binary=True)
            return [key for (key,) in await cursor.fetchall()]

        while found := await self._lookups.call("keys", None, page):
            for key in found:
                yield key.decode()
            after = found[-1]

    async def delete(self, key: str, expect: Version) -> None:
        async def delete(connection: Connection) -> bool:
            cursor = await connection.execute(self._delete, [key.encode(), expect])
            row = await cursor.fetchone()
            return row is not None and row[1] == 1

        if not await self._lookups.call("delete", key, delete):
            raise ConflictError("another version is the head", op="delete", key=key)

    async def aclose(self) -> None:
        for pool in (self._commits, self._lookups, self._blob_puts):
            await pool.close()

    async def _commit(self, puts: list[Put], answers: dict[str, Version | StoreError]) -> None:
        """Answer each of some puts that are one statement, or raise what fails them all."""
        # Random, as a counter would count again what it had counted before a backup was put back.
        # One will do for the statement, as its keys are distinct.
        version = int.from_bytes(os.urandom(8), "big") >> 1
        new = [put for put in puts if put.expect is None]
        old = [put for put in puts if put.expect is not None]
        arguments = [
            version,
            byteas([put.key.encode() for put in new]),
            byteas([put.record for put in new]),
            byteas([put.key.encode() for put in old]),
            bigints([put.expect for put in old]),
            byteas([put.record for put in old]),
        ]

        async def swap(connection: Connection) -> tuple[int, int, list[bytes] | None]:
            cursor = await connection.execute(self._swap, arguments, binary=True)
            row: tuple[int, int, list[bytes] | None] | None = await cursor.fetchone()
            assert row is not None
            return row

        key = puts[0].key if len(puts) == 1 else None
        try:
            _, count, done = await self._commits.call("commit", key, swap)
        except StoreError as exc:
            if not blames_the_data(exc):
                raise
            if len(puts) == 1:
                answers[puts[0].key] = exc
                return
            half = len(puts) // 2
            for part in (puts[:half], puts[half:]):
                await self._commit(part, answers)
            return
        if count == len(puts):
            answers.update(dict.fromkeys([put.key for put in puts], version))
            return
        swapped = {key.decode() for key in done or ()}
        for put in puts:
            answers[put.key] = (
                version
                if put.key in swapped
                else ConflictError("another version is the head", op="commit", key=put.key)
            )


# The count alone is the answer nearly always: the keys are gathered only if some were refused.
_SWAP = """
WITH durably AS ({durably}),
created AS (
    INSERT INTO {heads} AS h (key, version, record)
    SELECT n.key, $1::bigint, n.record FROM unnest($2::bytea[], $3::bytea[]) AS n (key, record)
    ON CONFLICT DO NOTHING RETURNING h.key
), replaced AS (
    UPDATE {heads} AS h SET version = $1::bigint, record = o.record
    FROM unnest($4::bytea[], $5::bigint[], $6::bytea[]) AS o (key, version, record)
    WHERE h.key = o.key AND h.version = o.version RETURNING h.key
), done AS (SELECT key FROM created UNION ALL SELECT key FROM replaced)
SELECT (SELECT count(*) FROM durably), (SELECT count(*) FROM done),
    CASE WHEN (SELECT count(*) FROM done) < cardinality($2::bytea[]) + cardinality($4::bytea[])
    THEN ARRAY(SELECT key FROM done) END
"""


def _too_large(put: Put) -> StoreError:
    size = f"{len(put.record)} bytes, {_MAX_RECORD} at most"
    return StoreError(f"the record is too large: {size}", op="commit", key=put.key)


def _statements(puts: list[Put]) -> Iterator[tuple[int, int]]:
    """Where each statement of a batch begins and ends. None is empty."""
    first, size = 0, 0
    for at, put in enumerate(puts):
        size += len(put.record)
        if size > _STATEMENT and at > first:
            yield first, at
            first, size = at, len(put.record)
    if puts:
        yield first, len(puts)


def _successor(prefix: bytes) -> bytes | None:
    """The least string of bytes above all that begin with a prefix; None if there is none."""
    return prefix[:-1] + bytes([prefix[-1] + 1]) if prefix else None  # no byte of UTF-8 is 255
