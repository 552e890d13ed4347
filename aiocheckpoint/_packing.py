"""Packing: from a tree on the disk to the bytes of a pack and a manifest."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import aiofiles
import xxhash

from ._trees import CHUNK, Chunk, Found, Manifest, Pack

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SMALL = 256 << 10  # files up to here are read many at a time
_BATCH_BYTES, _BATCH_FILES = 1 << 20, 256


class Packing:
    """One tree on its way into a store.

    A chunk whose like is at the same place of the same file in `base`, the tree that was saved
    last, stays where it is; the others make up one new pack, in the order of the tree.
    """

    def __init__(self, root: Path, found: list[Found], base: Manifest | None, pack: str) -> None:
        """`pack` is the name of the new pack, should there be one."""
        self._root = os.fsencode(root)
        self._found = found
        self._new = pack
        self._size = 0
        self._packs = {} if base is None else {old.name: old.size for old in base.packs}
        self._before = {} if base is None else _known(base)
        self._placed: dict[bytes, list[tuple[str, int, int, bytes]]] = {}
        self.failure: OSError | None = None
        """What went wrong with the tree, as opposed to the store."""

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The bytes of the new pack; none if nothing has changed."""
        try:
            small: list[Found] = []
            size = 0
            for found in self._found:
                if found.kind != "file":
                    continue
                if found.identity.size > _SMALL:
                    async with aclosing(self._large(found)) as large:
                        async for chunk in large:
                            yield chunk
                    continue
                small.append(found)
                size += found.identity.size
                if size >= _BATCH_BYTES or len(small) == _BATCH_FILES:
                    if batch := await asyncio.to_thread(self._read_small, small):
                        yield batch
                    small, size = [], 0
            if small and (batch := await asyncio.to_thread(self._read_small, small)):
                yield batch
        except OSError as exc:
            self.failure = exc
            raise

    def manifest(self) -> Manifest:
        """The tree, once all its chunks have been taken."""
        used = {place[0] for places in self._placed.values() for place in places}
        sizes = {**self._packs, self._new: self._size}  # in the order of their age
        packs = [Pack(name, size) for name, size in sizes.items() if name in used]
        numbers = {pack.name: number for number, pack in enumerate(packs)}
        entries = []
        for found in self._found:
            places = self._placed.get(found.path, [])
            chunks = tuple(
                Chunk(numbers[name], start, size, digest) for name, start, size, digest in places
            )
            entries.append(found.entry(chunks))
        return Manifest(tuple(packs), tuple(entries))

    async def _large(self, found: Found) -> AsyncGenerator[bytes, None]:
        """Chunk by chunk; the next is read while somebody is busy with the one before."""
        path = self._path(found)
        async with aiofiles.open(path, "rb", buffering=0, opener=_opener) as file:
            found.check(os.fstat(file.fileno()))
            ahead = asyncio.ensure_future(_read_chunk(file.read))
            try:
                number = 0
                while chunk := await asyncio.shield(ahead):
                    ahead = asyncio.ensure_future(_read_chunk(file.read))
                    if self._place(found, number, chunk, xxhash.xxh3_128_digest(chunk)):
                        yield chunk
                    number += 1
            finally:  # no file is closed while a thread reads from it
                await asyncio.gather(ahead, return_exceptions=True)
            found.check(os.fstat(file.fileno()))

    def _read_small(self, batch: list[Found]) -> bytes:
        """What of these files is new."""
        new = []
        for found in batch:
            fd = _opener(self._path(found), 0)
            try:
                found.check(os.fstat(fd))
                data = b""
                while part := os.read(fd, _SMALL + 1 - len(data)):
                    data += part
                found.check(os.fstat(fd))
            finally:
                os.close(fd)
            if data and self._place(found, 0, data, xxhash.xxh3_128_digest(data)):
                new.append(data)
        return b"".join(new)

    def _place(self, found: Found, number: int, data: bytes, digest: bytes) -> bool:
        """Give a chunk its place; whether that is in the new pack."""
        places = self._placed.setdefault(found.path, [])
        before = self._before.get((found.path, number))
        if before is not None and before[2:] == (len(data), digest):
            places.append(before)
            return False
        places.append((self._new, self._size, len(data), digest))
        self._size += len(data)
        return True

    def _path(self, found: Found) -> bytes:
        return os.path.join(self._root, found.path) if found.path else self._root


def _known(base: Manifest) -> dict[tuple[bytes, int], tuple[str, int, int, bytes]]:
    """Where the chunks of a tree lie, by path and number: those in packs that are to stay."""
    stay = lasting(base)
    return {
        (entry.path, number): (base.packs[chunk.pack].name, chunk.start, chunk.size, chunk.digest)
        for entry in base.entries
        for number, chunk in enumerate(entry.chunks)
        if chunk.pack in stay
    }


def lasting(manifest: Manifest) -> set[int]:
    """The packs that the next tree may go on using.

    A pack goes once less than half of it is in use, or once it is smaller than all newer ones
    together: so garbage is bounded, a tree's packs are few (their number grows with the logarithm
    of its size), and a chunk that never changes is moved only so often.
    """
    used: Counter[int] = Counter()
    for entry in manifest.entries:
        for chunk in entry.chunks:
            used[chunk.pack] += chunk.size
    stay = set()
    newer = 0
    for number in sorted(used, reverse=True):
        if 2 * used[number] >= manifest.packs[number].size and used[number] >= newer:
            stay.add(number)
        newer += used[number]
    return stay


async def _read_chunk(read: Callable[[int], Awaitable[bytes]]) -> bytes:
    chunk = await read(CHUNK)
    while 0 < len(chunk) < CHUNK and (more := await read(CHUNK - len(chunk))):
        chunk += more
    return chunk


def _opener(path: str | bytes, _: int) -> int:
    """Never follow a link, nor wait for whoever writes to a FIFO, that has taken a file's place."""
    return os.open(path, _FLAGS)
