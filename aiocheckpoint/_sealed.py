"""A store whose contents are sealed: a wrapper around any other.

Records and blobs are sealed as they go in and opened as they come out, whole or by the segment,
so neither the core nor the store inside knows of it. Keys, the names and sizes of blobs, and
times are the inner store's, and in clear.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path

from ._errors import CodecError, CorruptCheckpointError, StoreError
from ._keyring import Keyring
from ._pieces import Pieces
from ._records import Unreadable
from ._sealing import HEAD, SEGMENT, TAG, Place, Sealed, begun, new, seal, unseal
from .abc import Head, Put, Source, Store, Version

_AT_ONCE = 2  # segments that one hop to a thread seals
_QUICK = 64 << 10  # bytes that are sealed sooner than a thread is reached
_FEW = 16  # records of which that is true


class SealedStore:
    """Keeps in `store` what only the keyring opens. Closing it closes the store."""

    def __init__(self, store: Store, keyring: Keyring) -> None:
        self._store = store
        self._keyring = keyring

    @property
    def transactional(self) -> bool:
        return self._store.transactional

    @property
    def min_interval(self) -> float:
        return self._store.min_interval

    @property
    def identity(self) -> str:
        return self._store.identity

    @property
    def spool_dir(self) -> Path | None:
        return self._store.spool_dir

    async def load(self, key: str) -> Head | None:
        head = await self._store.load(key)
        if head is None:
            return None
        record, place = head.record, Place("record", key)
        try:
            if len(record) <= _QUICK:
                return Head(unseal(self._keyring, place, record), head.version)
            plain = await asyncio.to_thread(unseal, self._keyring, place, record)
            return Head(plain, head.version)
        except (CorruptCheckpointError, CodecError) as exc:
            # the version is known all the same: a generation may stand in, and it can be deleted
            return Head(Unreadable.because(exc), head.version)

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        if len(batch) <= _FEW and sum(len(put.record) for put in batch) <= _QUICK:
            return await self._store.commit(self._seal(batch))
        return await self._store.commit(await asyncio.to_thread(self._seal, batch))

    def _seal(self, batch: Sequence[Put]) -> list[Put]:
        return [
            Put(key, expect, seal(self._keyring, Place("record", key), record))
            for key, expect, record in batch
        ]

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        place = Place("blob", key, name)
        if isinstance(source, bytes) and len(source) <= SEGMENT:
            if len(source) <= _QUICK:
                sealed = seal(self._keyring, place, source)
            else:
                sealed = await asyncio.to_thread(seal, self._keyring, place, source)
            await self._store.put_blob(key, name, sealed)
            return
        pieces = Pieces(_one(source) if isinstance(source, bytes) else source)
        async with aclosing(_sealed(new(self._keyring, place), pieces)) as chunks:
            await self._store.put_blob(key, name, chunks)

    async def open_blob(
        self, key: str, name: str, start: int = 0, size: int | None = None
    ) -> AsyncIterator[bytes]:
        first = start // SEGMENT
        end = None if size is None else start + size
        read = self._store.open_blob
        head = b""
        if first or end == start:
            head = b"".join([chunk async for chunk in read(key, name, 0, HEAD)])
        at = HEAD + first * (SEGMENT + TAG) if head else 0
        # one byte more than is wanted says whether there is more, which each segment must know
        wanted = None if end is None else HEAD + -(-end // SEGMENT) * (SEGMENT + TAG) + 1 - at
        async with aclosing(Pieces(read(key, name, at, wanted))) as pieces:
            sealed = begun(self._keyring, Place("blob", key, name), head or await pieces.take(HEAD))
            if end == start:
                return
            async with aclosing(_opened(sealed, pieces, first, end)) as segments:
                async for number, plain in segments:
                    first = 0
                    since = max(0, start - number * SEGMENT)
                    until = SEGMENT if end is None else end - number * SEGMENT
                    if part := plain[since:until]:
                        yield part
        if first:  # it ended before the first segment that is wanted: is that its end?
            async for _ in self.open_blob(key, name):
                pass

    async def list_blobs(self, key: str) -> list[str]:
        return await self._store.list_blobs(key)

    async def delete_blobs(self, key: str, names: Sequence[str]) -> None:
        await self._store.delete_blobs(key, names)

    def keys(self, prefix: str) -> AsyncIterator[str]:
        return self._store.keys(prefix)

    async def delete(self, key: str, expect: Version) -> None:
        await self._store.delete(key, expect)

    async def aclose(self) -> None:
        await self._store.aclose()


async def _one(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


async def _sealed(sealed: Sealed, pieces: Pieces) -> AsyncGenerator[bytes, None]:
    """The chunks of an object; the next is sealed while somebody is busy with the one before."""

    def seal(number: int, parts: list[memoryview], last: bool) -> bytes:
        done = [] if number else [sealed.head]
        for n, part in enumerate(parts, start=number):
            done.append(sealed.seal(n, part, last=last and n == number + len(parts) - 1))
        return b"".join(done)

    under_way: list[asyncio.Future[bytes]] = []
    number = 0
    ahead = await pieces.take(SEGMENT)
    try:
        more = True
        while more:
            parts: list[memoryview] = []
            while more and len(parts) < _AT_ONCE:
                parts.append(ahead)
                ahead = await pieces.take(SEGMENT)
                more = len(ahead) > 0
            work = asyncio.to_thread(seal, number, parts, not more)
            under_way.append(asyncio.ensure_future(work))
            number += len(parts)
            if len(under_way) > 1:
                yield await under_way.pop(0)
        yield await under_way.pop(0)
    finally:
        await asyncio.gather(*under_way, return_exceptions=True)


async def _opened(
    sealed: Sealed, pieces: Pieces, first: int, end: int | None
) -> AsyncGenerator[tuple[int, bytes], None]:
    """The segments from the `first` on, as far as byte `end`; none if there is no such one."""
    number = first
    data = await pieces.take(SEGMENT + TAG)
    while data or not number:
        ahead = await pieces.take(SEGMENT + TAG)
        if len(data) <= _QUICK:
            plain = sealed.open(number, data, last=not ahead)
        else:
            plain = await asyncio.to_thread(sealed.open, number, data, last=not ahead)
        yield number, plain
        number += 1
        if not ahead or (end is not None and end <= number * SEGMENT):
            return
        data = ahead
