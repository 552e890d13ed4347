"""What a record needs besides itself: its blobs, streamed, with every byte that is used checked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import NamedTuple

import xxhash

from ._calls import AHEAD, bounded
from ._compression import decompress
from ._errors import CodecError, CorruptCheckpointError
from ._files import read_manifest
from ._records import Record
from ._trees import gently
from .abc import Store

Tick = Callable[[int], object]
"""Told how many bytes more were read."""


class Piece(NamedTuple):
    """A part of a pack that some file is made of."""

    start: int
    size: int
    """As it lies there."""
    digest: bytes
    """Of the file's bytes."""
    plain: int = 0
    """How many these are, if it is compressed."""


class Part(NamedTuple):
    """A blob that records name, and what is known of its bytes."""

    name: str
    what: str
    size: int | None = None
    digest: bytes | None = None
    """Of all of it."""
    pieces: frozenset[Piece] = frozenset()

    @property
    def known(self) -> bool:
        """False if any bytes would do."""
        return self.size is not None or self.digest is not None

    def joined(self, other: Part) -> Part:
        """The same blob, as two records know it."""
        return self._replace(pieces=self.pieces | other.pieces)


class Check:
    """Compares a blob with what is known of it, piece by piece as it comes."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._whole = None if part.digest is None else xxhash.xxh3_128()
        self._pieces = sorted(part.pieces, reverse=True)  # the next one is the last
        self._open: list[tuple[Piece, xxhash.xxh3_128 | _Compressed]] = []
        self._at = 0
        self._damaged = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        view = memoryview(data)
        at, end = self._at, self._at + len(data)
        if self._whole is not None:
            self._whole.update(data)
        while self._pieces and self._pieces[-1].start < end:
            piece = self._pieces.pop()
            self._open.append((piece, _Compressed(piece) if piece.plain else xxhash.xxh3_128()))
        still = []
        for piece, digest in self._open:
            until = piece.start + piece.size
            digest.update(view[max(piece.start, at) - at : min(until, end) - at])
            if until > end:
                still.append((piece, digest))
            elif digest.digest() != piece.digest:
                self._damaged = True
        self._open = still
        self._at = end

    @property
    def surplus(self) -> bool:
        """True if there is more than there may be."""
        return self._part.size is not None and self._at > self._part.size

    def fault(self) -> str | None:
        """After the last bytes: what is wrong, or None."""
        size = self._part.size
        if size is not None and self._at < size:
            return f"is cut short: {self._at} of {size} bytes"
        if self.surplus:
            return f"is longer than {size} bytes"
        if self._pieces or self._open:
            return f"is cut short: {self._at} bytes"
        if self._damaged or (self._whole is not None and self._whole.digest() != self._part.digest):
            return "is damaged: its checksum does not match"
        return None


class _Compressed:
    """The digest of what a piece decompresses to."""

    def __init__(self, piece: Piece) -> None:
        self._plain = piece.plain
        self._data = bytearray()

    def update(self, data: memoryview) -> None:
        self._data += data

    def digest(self) -> bytes:
        try:
            return xxhash.xxh3_128_digest(decompress(memoryview(self._data), self._plain))
        except ValueError:
            return b""


class Stream:
    """A blob on its way, checked. `fault` says afterwards what is wrong with it, if anything.

    Whoever stores what comes must not keep it if `chunks` raises.
    """

    def __init__(self, store: Store, key: str, part: Part, tick: Tick) -> None:
        self._store = store
        self._key = key
        self._part = part
        self._tick = tick
        self.fault: str | None = None

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The bytes.

        Raises:
            CorruptCheckpointError: it is missing or damaged; at the latest at its end.
            StoreError: it cannot be read.
        """
        check = Check(self._part)
        source = self._store.open_blob(self._key, self._part.name)
        try:
            while chunk := await self._next(source):
                check.feed(chunk)
                if check.surplus:
                    break
                self._tick(len(chunk))
                yield chunk
        except FileNotFoundError:
            self.fault = "is missing"
        else:
            self.fault = self.fault or check.fault()
        finally:
            if isinstance(source, AsyncGenerator):
                await source.aclose()
        if self.fault is not None:
            name = self._part.name
            raise CorruptCheckpointError(f"{self._part.what} of {self._key!r} {self.fault}: {name}")

    async def _next(self, source: AsyncIterator[bytes]) -> bytes:
        try:
            return await bounded(anext(source, b""), "open_blob", self._key, AHEAD)
        except (CorruptCheckpointError, CodecError) as exc:  # it is sealed
            self.fault = f"cannot be opened ({exc})"
            return b""

    async def read(self) -> str | None:
        """Read all and keep nothing; what is wrong."""
        async with aclosing(self.chunks()) as chunks:
            try:
                async for _ in chunks:
                    pass
            except CorruptCheckpointError:
                return self.fault
        return None


async def parts_of(store: Store, key: str, record: Record) -> dict[str, Part]:
    """The blobs that a record names, by name; the list of its files is read for that.

    Raises:
        CorruptCheckpointError: the list of its files is missing or damaged.
        CodecError: it is of a later format.
        StoreError: it cannot be read.
    """
    parts = {}
    if blob := record.blob:
        parts[blob.name] = Part(blob.name, "the state", blob.size, blob.digest)
    if files := record.files:
        manifest = await read_manifest(store, key, files)
        pieces: list[set[Piece]] = [set() for _ in manifest.packs]
        for entry in gently(manifest.entries):
            for chunk in entry.chunks:
                plain = chunk.size if chunk.compressed else 0
                pieces[chunk.pack].add(Piece(chunk.start, chunk.stored, chunk.digest, plain))
        packs = {name: Part(name, "a pack of files") for name in files.packs}
        for pack, wanted in zip(manifest.packs, pieces, strict=True):
            packs[pack.name] = Part(
                pack.name, "a pack of files", pack.size, pieces=frozenset(wanted)
            )
        listed = files.manifest
        parts |= packs
        parts[listed.name] = Part(listed.name, "the list of files", listed.size, listed.digest)
    return parts
