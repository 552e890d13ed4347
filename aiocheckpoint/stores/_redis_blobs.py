"""Blobs in Redis: chunks under an id of their own, then one field that names them all."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from .._errors import StoreError, StoreUnavailableError
from ..abc import Source
from ._blobs import check_blob_name
from ._redis_link import Link
from ._redis_scripts import DELETE_BLOBS, OPEN_BLOB, PUT_BLOB

CHUNK = 4 << 20
_UNNAMED = 4 * 3600
"""Seconds after which chunks vanish whose blob was never finished."""
_TIDYING = 2.0
_NAMES = 500  # deleted in one step


class RedisBlobs:
    """A blob is there from the moment that its name leads to all its chunks."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._prefix = link.place.prefix

    async def put(self, key: str, name: str, source: Source) -> None:
        check_blob_name(name)
        chunks = _chunks(source)
        first = await anext(chunks, b"")
        second = await anext(chunks, None)
        blob = secrets.token_hex(16)
        if second is None:
            await self._name(key, name, blob, [len(first)], first)
            return
        sizes: list[int] = []
        try:
            for chunk in (first, second):
                await self._stage(key, blob, sizes, chunk)
            async for chunk in chunks:
                await self._stage(key, blob, sizes, chunk)
        except BaseException:
            # else they expire: the server is gone, or the store was closed meanwhile
            with suppress(StoreError, TimeoutError, RuntimeError):
                async with asyncio.timeout(_TIDYING):
                    places = [self._place(blob, n) for n in range(len(sizes) + 1)]
                    await self._link.call("put_blob", key, "UNLINK", *places)
            raise
        # From here on nothing is tidied: if the answer is lost, the chunks may be the blob.
        await self._name(key, name, blob, sizes)

    async def open(
        self, key: str, name: str, start: int = 0, size: int | None = None
    ) -> AsyncIterator[bytes]:
        check_blob_name(name)
        meta = await self._meta(key, name)
        blob, _, sizes = meta.split(" ")
        end = None if size is None else start + size
        at = 0
        for n, length in enumerate(map(int, sizes.split(","))):
            low = max(0, start - at)
            high = length if end is None else min(length, end - at)
            if low < high:
                place = self._place(blob, n)
                if high - low == length:
                    chunk = await self._link.call("open_blob", key, "GET", place)
                else:
                    command = ("GETRANGE", place, low, high - 1)
                    chunk = await self._link.call("open_blob", key, *command)
                if chunk is None or len(chunk) != high - low:
                    if await self._meta(key, name) == meta:
                        raise FileNotFoundError(f"chunk {n} of blob {name} of {key!r} is missing")
                    raise StoreUnavailableError(
                        "replaced while it was read", op="open_blob", key=key
                    )
                yield chunk
            at += length

    async def names(self, key: str) -> list[str]:
        names = await self._link.call("list_blobs", key, "HKEYS", self._blobs(key))
        return sorted(name.decode() for name in names)

    async def delete(self, key: str, names: Sequence[str]) -> None:
        for name in names:
            check_blob_name(name)
        for at in range(0, len(names), _NAMES):
            some = names[at : at + _NAMES]
            await self._link.script("delete_blobs", key, DELETE_BLOBS, self._blobs(key), some)

    async def _stage(
        self, key: str, blob: str, sizes: list[int], chunk: bytes | memoryview
    ) -> None:
        place = self._place(blob, len(sizes))
        await self._link.call("put_blob", key, "SET", place, chunk, "EX", _UNNAMED)
        sizes.append(len(chunk))

    async def _name(
        self, key: str, name: str, blob: str, sizes: list[int], *data: bytes | memoryview
    ) -> None:
        meta = f"{blob} {len(sizes)} {','.join(map(str, sizes))}"
        args = (key, name, meta, *data)
        answer = await self._link.script("put_blob", key, PUT_BLOB, self._blobs(key), args)
        if answer == 0:
            raise StoreUnavailableError("the server has lost a part", op="put_blob", key=key)
        if answer != 1:
            raise self._link.answered(answer, "put_blob", key)

    async def _meta(self, key: str, name: str) -> str:
        args = (key, name)
        meta = await self._link.script("open_blob", key, OPEN_BLOB, self._blobs(key), args)
        if meta is None:
            raise FileNotFoundError(f"no blob {name} of {key!r}")
        return str(meta, "ascii")

    def _blobs(self, key: str) -> str:
        return f"{self._prefix}/blobs/{key}"

    def _place(self, blob: str, number: int) -> str:
        return f"{self._prefix}/chunk/{blob}/{number}"


async def _chunks(source: Source) -> AsyncIterator[bytes | memoryview]:
    """The source in chunks of a few MiB: large ones are cut, not copied, small ones gathered."""
    if isinstance(source, bytes):
        for part in _cut(source):
            yield part
        return
    small: list[bytes] = []
    size = 0
    async for piece in source:
        if small and size + len(piece) > CHUNK:
            yield b"".join(small)
            small, size = [], 0
        if len(piece) > CHUNK:
            for part in _cut(piece):
                yield part
        elif piece:
            small.append(piece)
            size += len(piece)
    if small:
        yield b"".join(small)


def _cut(data: bytes) -> Sequence[bytes | memoryview]:
    if len(data) <= CHUNK:
        return [data]
    view = memoryview(data)
    return [view[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
