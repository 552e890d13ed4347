"""Blobs in PostgreSQL: pieces in one table, and in another the row that makes them a blob."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence

from ..abc import Source
from ._blobs import check_blob_name
from ._postgres_pool import Pool
from ._postgres_tables import Connection, Tables

PIECE = 1 << 20

DURABLY = (
    "SELECT set_config('synchronous_commit', 'on', true)"
    " WHERE current_setting('synchronous_commit') = 'off'"
)
"""For the transaction that it is in. All other settings, `local` too, wait for the disk."""


class Blobs:
    """A put copies the pieces in and names them last, all in one transaction.

    `put` tells the pieces of one put from those of another. A piece that belongs to no row of
    blobs, as seen in one snapshot, belongs to nothing: pieces still under way are in no snapshot.
    """

    def __init__(self, puts: Pool, others: Pool, tables: Tables) -> None:
        self._puts = puts
        self._others = others
        blobs, chunks = tables.blobs, tables.chunks
        self._copy = (
            f"COPY {chunks} (key, name, put, start, data) FROM STDIN (FORMAT BINARY)".encode()
        )
        self._name = (
            f"WITH durably AS ({DURABLY}), named AS ("
            f" INSERT INTO {blobs} (key, name, put, size) VALUES ($1, $2, $3, $4::bigint)"
            " ON CONFLICT (key, name) DO UPDATE SET put = excluded.put, size = excluded.size"
            " RETURNING 1) SELECT (SELECT count(*) FROM durably), (SELECT count(*) FROM named)"
        ).encode()
        self._sweep = (
            f"DELETE FROM {chunks} AS c WHERE c.key = $1 AND c.name = ANY($2::text[])"
            f" AND NOT EXISTS (SELECT FROM {blobs} AS b"
            " WHERE b.key = c.key AND b.name = c.name AND b.put = c.put)"
        ).encode()
        self._read = (
            f"SELECT b.put, b.size, c.piece FROM {blobs} AS b LEFT JOIN LATERAL ("
            "  SELECT substring(data FROM ($3::bigint - start + 1)::int FOR $4::int) AS piece"
            f" FROM (SELECT start, data FROM {chunks} AS c"
            "  WHERE c.key = b.key AND c.name = b.name AND c.put = b.put AND c.start <= $3::bigint"
            "  ORDER BY start DESC LIMIT 1) AS found"
            ") AS c ON true"
            " WHERE b.key = $1 AND b.name = $2 AND ($5::uuid IS NULL OR b.put = $5::uuid)"
        ).encode()
        self._list = f"SELECT name FROM {blobs} WHERE key = $1 ORDER BY name".encode()
        self._delete = f"DELETE FROM {blobs} WHERE key = $1 AND name = ANY($2::text[])".encode()

    async def put(self, key: str, name: str, source: Source) -> None:
        check_blob_name(name)

        async def put(connection: Connection) -> None:
            number, size = uuid.uuid4(), 0
            async with connection.transaction():
                async with connection.cursor().copy(self._copy) as copy:
                    copy.set_types(["bytea", "text", "uuid", "int8", "bytea"])
                    async for piece in _pieces(source):
                        await copy.write_row((key.encode(), name, number, size, piece))
                        size += len(piece)
                await connection.execute(self._name, [key.encode(), name, number, size])
                await connection.execute(self._sweep, [key.encode(), [name]])

        await self._puts.call("put_blob", key, put)

    async def open(
        self, key: str, name: str, start: int = 0, size: int | None = None
    ) -> AsyncIterator[bytes]:
        check_blob_name(name)
        want = PIECE if size is None else min(PIECE, size)
        number, whole, piece = await self._piece(key, name, start, want)
        end = whole if size is None else min(whole, start + size)
        while start < end:
            if not piece:
                raise FileNotFoundError(f"a piece of blob {name} of {key!r} is missing, at {start}")
            yield piece
            start += len(piece)
            if start < end:
                want = min(PIECE, end - start)
                _, _, piece = await self._piece(key, name, start, want, number)

    async def _piece(
        self, key: str, name: str, start: int, want: int, number: uuid.UUID | None = None
    ) -> tuple[uuid.UUID, int, bytes | None]:
        """What there is from `start` on; of the put of that number, if one is given."""

        async def read(connection: Connection) -> tuple[uuid.UUID, int, bytes | None]:
            query = [key.encode(), name, start, want, number]
            cursor = await connection.execute(self._read, query, binary=True)
            row: tuple[uuid.UUID, int, bytes | None] | None = await cursor.fetchone()
            if row is None:  # or it was replaced while it was read
                raise FileNotFoundError(f"no blob {name} of {key!r}")
            return row

        return await self._others.call("open_blob", key, read)

    async def names(self, key: str) -> list[str]:
        async def names(connection: Connection) -> list[str]:
            cursor = await connection.execute(self._list, [key.encode()])
            return [name for (name,) in await cursor.fetchall()]

        return await self._others.call("list_blobs", key, names)

    async def delete(self, key: str, names: Sequence[str]) -> None:
        for name in names:
            check_blob_name(name)

        async def delete(connection: Connection) -> None:
            async with connection.transaction():
                await connection.execute(self._delete, [key.encode(), list(names)])
                await connection.execute(self._sweep, [key.encode(), list(names)])

        await self._others.call("delete_blobs", key, delete)


async def _pieces(source: Source) -> AsyncIterator[memoryview | bytes]:
    if isinstance(source, bytes):
        source = _once(source)
    async for chunk in source:
        if len(chunk) <= PIECE:
            if chunk:
                yield chunk
        else:
            view = memoryview(chunk)
            for at in range(0, len(view), PIECE):
                yield view[at : at + PIECE]


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
