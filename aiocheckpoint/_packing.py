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
from msgspec.structs import replace

from ._compression import Compression, compress
from ._hops import hop, settled
from ._trees import CHUNK, Chunk, Entry, Found, Manifest, Pack, Walk, gently

_SMALL = 256 << 10  # files up to here are read many at a time
_BATCH_BYTES, _BATCH_ENTRIES = 1 << 20, 256


class Packing:
    """One tree on its way into a store.

    A chunk whose like is at the same place of the same file in `base`, the tree that was saved
    last, stays where it is; the others make up one new pack, in the order of the tree.

    Only of the same file: the digests tell accidents apart, not forgeries, and who can write one
    file must not decide what another one becomes.
    """

    def __init__(
        self,
        root: Path,
        found: list[Found],
        base: Manifest | None,
        pack: str,
        compression: Compression = None,
    ) -> None:
        """`pack` is the name of the new pack, should there be one."""
        self._compression = compression
        self._compressed = "" if base is None else base.compression
        self._root = os.fsencode(root)
        self._found = found
        self._packs = [] if base is None else list(base.packs)
        self._stay = set() if base is None else lasting(base)
        self._before = {} if base is None else {old.path: old for old in gently(base.entries)}
        self._walk: Walk | None = None
        self._new = pack
        self._size = 0
        self._entries: list[Entry] = []  # whose chunks count on from the old packs to the new one
        self.failure: OSError | None = None
        """What went wrong with the tree, as opposed to the store."""

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The bytes of the new pack; none if nothing has changed."""
        try:
            batch: list[Found] = []
            size = 0
            for found in self._found:
                large = found.kind == "file" and found.size > _SMALL
                if not large:
                    batch.append(found)
                    size += found.size
                if batch and (large or size >= _BATCH_BYTES or len(batch) == _BATCH_ENTRIES):
                    if new := await hop(self._take, batch):
                        yield new
                    batch, size = [], 0
                if large:
                    async with aclosing(self._take_large(found)) as parts:
                        async for part in parts:
                            yield part
            if batch and (new := await hop(self._take, batch)):
                yield new
        except OSError as exc:
            self.failure = exc
            if not exc.filename:  # of a tree that is one file
                exc.filename = os.fsdecode(self._root)
            raise

    def manifest(self) -> Manifest:
        """The tree, once all its chunks have been taken."""
        used = {chunk.pack for entry in gently(self._entries) for chunk in entry.chunks}
        packs = [*self._packs, Pack(self._new, self._size)]
        if len(used) == len(packs):
            return Manifest(tuple(packs), tuple(self._entries), self._compressed)
        number = {old: new for new, old in enumerate(sorted(used))}
        entries = []
        for entry in gently(self._entries):
            chunks = tuple([replace(chunk, pack=number[chunk.pack]) for chunk in entry.chunks])
            entries.append(replace(entry, chunks=chunks))
        packs = [packs[old] for old in sorted(used)]
        return Manifest(tuple(packs), tuple(entries), self._compressed)

    async def _take_large(self, found: Found) -> AsyncGenerator[bytes, None]:
        """Chunk by chunk; the next is read while somebody is busy with the one before."""
        chunks: list[Chunk] = []
        fd = await settled(asyncio.to_thread(self._open, found), os.close)
        try:
            found.check(os.fstat(fd))
            async with aiofiles.open(fd, "rb", buffering=0, closefd=False) as file:
                ahead = asyncio.ensure_future(_read_chunk(file.read))
                try:
                    while data := await asyncio.shield(ahead):
                        ahead = asyncio.ensure_future(_read_chunk(file.read))
                        if self._compression is None:
                            chunk, new = self._place(found, len(chunks), data)
                        else:
                            chunk, new = await hop(self._place, found, len(chunks), data)
                        chunks.append(chunk)
                        if new:
                            yield new
                finally:  # no file is closed while a thread reads from it
                    await asyncio.gather(ahead, return_exceptions=True)
            found.check(os.fstat(fd))
        finally:
            os.close(fd)
        self._entries.append(found.entry(tuple(chunks)))

    def _take(self, batch: list[Found]) -> bytes:
        """Read small files, in a thread; what of them is new."""
        new = []
        for found in batch:
            data = self._read(found) if found.kind == "file" else b""
            if not data:
                self._entries.append(found.entry())
                continue
            chunk, stored = self._place(found, 0, data)
            self._entries.append(found.entry((chunk,)))
            new.append(stored)
        return b"".join(new)

    def _read(self, found: Found) -> bytes:
        # each system call may have to win the interpreter lock back from a busy loop: as few as
        # can be
        fd = self._open(found)
        try:
            data = os.read(fd, found.size + 1)
            while len(data) < found.size and (more := os.read(fd, found.size - len(data))):
                data += more
            found.check(os.fstat(fd))
        finally:
            os.close(fd)
        return data[: found.size]

    def _place(self, found: Found, number: int, data: bytes) -> tuple[Chunk, bytes]:
        """Give a chunk its place; and what of it comes into the new pack, if anything does."""
        digest = xxhash.xxh3_128_digest(data)
        before = self._before.get(found.path)
        if before is not None and number < len(before.chunks):
            old = before.chunks[number]
            if old.pack in self._stay and (old.size, old.digest) == (len(data), digest):
                return old, b""
        place, size, compressed = self._size, len(data), 0
        if self._compression is not None and (small := compress(data)) is not None:
            data, compressed = small, len(small)
            self._compressed = self._compression
        self._size += len(data)
        return Chunk(len(self._packs), place, size, digest, compressed), data

    def _open(self, found: Found) -> int:
        if not found.path:
            return os.open(self._root, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if self._walk is None:
            self._walk = Walk(self._root)
        return self._walk.open(found.path, os.O_RDONLY)

    def close(self) -> None:
        """Let go of the tree."""
        if self._walk is not None:
            self._walk.close()


def lasting(manifest: Manifest) -> set[int]:
    """The packs that the next tree may go on using.

    A pack goes once less than half of it is in use, or once it is smaller than all newer ones
    together: so garbage is bounded, a tree's packs are few (their number grows with the logarithm
    of its size), and a chunk that never changes is moved only so often.
    """
    used: Counter[int] = Counter()
    for entry in gently(manifest.entries):
        for chunk in entry.chunks:
            used[chunk.pack] += chunk.stored
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
