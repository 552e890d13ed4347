"""Regions: files of mapped memory that hold the newest staged state of a claim.

A region is mapped and pre-allocated, and belongs to one claim. It is a file, or, if it is small, a
part of one that it shares with others, at the offset that its name says:

    header (256): magic, size, MessagePack of RegionHeader, XXH3-64 of all before
    half 0, half 1: payload (capacity) | size (u64) | seq (u64) | XXH3-64 of payload, seed seq

Of an encrypted store the payloads are sealed, and sizes and checksums are those of what is sealed.
States go to the halves in turn, so that one of them is whole at every instant. The trailer is
written after the payload; its checksum makes a half that was cut off, or that a live writer laps
while it is read, recognisable. Nothing is ever synced: the page cache outlives the process but
not the boot, hence the boot id.
"""

from __future__ import annotations

import functools
import itertools
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import xxhash

from ._mapped import LARGEST_SEAT, SEAT, Place, mapped, offset
from ._records import Files
from ._sealing import Staging, StagingKey

SPOOL_LIMIT = 4 << 20
"""States over this many bytes are covered by the store alone."""

_MAGIC = b"AIOCKSP1"
_HEAD = 256
_TRAILER = struct.Struct("<QQQ")
_LAPPED = 0.2  # seconds to look again and again while a live writer laps us
_ONE_PACK = 16 << 10  # up to here, zero-filling a half costs less than a second call
_hash = xxhash.xxh3_64_intdigest

Stage = Callable[[int, bytes], object]


class Moved(NamedTuple):
    """A tree that was taken by rename, and lies in the spool until it is stored."""

    id: str
    path: Path


Tree = Files | Moved


class Staged(NamedTuple):
    """A staged state with the files that it goes with; the codec is empty if it is files alone."""

    seq: int
    data: bytes
    codec: str
    tree: Tree | None = None

    @property
    def tree_id(self) -> str:
        return "" if self.tree is None else self.tree.id


class RegionHeader(msgspec.Struct, frozen=True, array_like=True):
    claim: bytes
    boot: str
    codec: str
    capacity: int
    tree: str = ""
    sealed: StagingKey | None = None


class Region(NamedTuple):
    """One mapped file: what it takes, and the call that stages into it.

    All that it holds is of one codec, and goes with the files of one tree ("": with none).
    """

    path: Path
    codec: str
    tree: str
    capacity: int
    stage: Stage


@functools.cache
def boot_id() -> str:
    """Names this boot of this machine; OSError where that cannot be told."""
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def make_region(
    path: Path,
    claim: bytes,
    codec: str,
    tree: str,
    size: int,
    overflow: Stage,
    staging: Staging | None = None,
) -> Region:
    """Make and map a region for states of up to `size` bytes, sealed by `staging` if that is given.

    Its `stage` hands what does not fit to `overflow`.

    Raises:
        OSError: it cannot be made, or there is no room.
    """
    more, sealed = (0, None) if staging is None else (staging.ROOM, staging.under)
    capacity = _capacity(size, more)
    header = _encode_header(RegionHeader(claim, boot_id(), codec, capacity, tree, sealed))
    place = mapped(path, header, _HEAD + 2 * (capacity + _TRAILER.size))
    stage = _stager(place, capacity, overflow)
    if staging is not None:
        stage = _sealed_stager(stage, staging.sealer(codec, tree), capacity - more, overflow)
    return Region(place.path, codec, tree, capacity - more, stage)


def _capacity(size: int, more: int) -> int:
    """Of each half, for states of this size that are stored in `more` bytes more: what a seat
    takes, or, above that, the next power of two."""
    whole = 1 << (_HEAD + 2 * (size + more + _TRAILER.size) - 1).bit_length()
    if whole <= LARGEST_SEAT:
        return (max(whole, SEAT) - _HEAD) // 2 - _TRAILER.size
    return (1 << (size - 1).bit_length()) + more


def _encode_header(header: RegionHeader) -> bytes:
    body = msgspec.msgpack.encode(header)
    block = (_MAGIC + struct.pack("<I", len(body)) + body).ljust(_HEAD - 8, b"\0")
    return block + struct.pack("<Q", _hash(block))


def _decode_header(block: bytes) -> RegionHeader:
    if len(block) < _HEAD or block[:8] != _MAGIC:
        raise ValueError("not a spool region")
    if struct.unpack("<Q", block[-8:])[0] != _hash(block[:-8]):
        raise ValueError("the header's checksum does not match")
    (size,) = struct.unpack_from("<I", block, 8)
    try:
        header = msgspec.msgpack.decode(block[12 : 12 + size], type=RegionHeader)
    except msgspec.MsgspecError as exc:
        raise ValueError(f"its header makes no sense ({exc})") from exc
    if not 0 <= header.capacity <= SPOOL_LIMIT + Staging.ROOM:
        raise ValueError("a capacity that no region has")
    return header


class Recovered(NamedTuple):
    """What a region held: a state, without its tree, and the id of that."""

    staged: Staged
    tree_id: str
    path: Path
    sealed: StagingKey | None
    """What the state's data are sealed under; None if they are plain."""


def read_region(path: Path, claim: bytes) -> Recovered | None:
    """The newest whole state of a region, None if it is of another claim or boot, or unused: as
    long as it is being made, or if a power cut came before it got to the disk, it is zeros.

    A live writer may lap us, half by half; then we look again until what is whole is no older
    than what had been staged when we came.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("not a regular file")
        begin = offset(path)
        block = os.pread(fd, _HEAD, begin)
        if not any(block) and _is_blank(fd, begin):
            return None
        header = _decode_header(block)
        if header.claim != claim or header.boot != boot_id():
            return None
        until = time.monotonic() + _LAPPED
        last: list[bytes] = []
        required: int | None = None
        while True:
            looks = [_look(fd, header, begin, half) for half in (0, 1)]
            trailers = [trailer for trailer, _ in looks]
            best = max((staged for _, staged in looks if staged is not None), default=None)
            if required is None:
                required = max(_TRAILER.unpack(trailer)[1] for trailer in trailers)
            if best is not None and best.seq >= required:
                return Recovered(best, header.tree, path, header.sealed)
            if trailers == last or time.monotonic() > until:
                break  # nobody writes: this is how a kill, or damage, left it
            last = trailers
        if best is None and any(map(any, trailers)):
            raise ValueError("no half of it is whole")
        return None if best is None else Recovered(best, header.tree, path, header.sealed)
    finally:
        os.close(fd)


def _is_blank(fd: int, begin: int) -> bool:
    """True if there are only zeros, as many as a region may have."""
    size = os.fstat(fd).st_size
    if begin:
        return not any(os.pread(fd, SEAT, begin))
    if size > _HEAD + 2 * (SPOOL_LIMIT + Staging.ROOM + _TRAILER.size):
        return False
    chunk = 1 << 16
    return not any(os.pread(fd, chunk, start).strip(b"\0") for start in range(0, size, chunk))


def _look(fd: int, header: RegionHeader, begin: int, half: int) -> tuple[bytes, Staged | None]:
    """A half's trailer, and its state if that is whole."""
    capacity = header.capacity
    start = begin + _HEAD + half * (capacity + _TRAILER.size)
    # in one call, where it is small: that is the least time for a live writer to come between
    block = os.pread(fd, capacity + _TRAILER.size, start) if capacity <= _ONE_PACK else b""
    trailer = block[capacity:] or os.pread(fd, _TRAILER.size, start + capacity)
    if len(trailer) < _TRAILER.size:
        raise ValueError("cut short")
    size, seq, digest = _TRAILER.unpack(trailer)
    if size > capacity:
        return trailer, None
    data = block[:size] or os.pread(fd, size, start)
    whole = len(data) == size and _hash(data, seq) == digest
    return trailer, Staged(seq, data, header.codec) if whole else None


def _stager(place: Place, capacity: int, overflow: Stage) -> Stage:
    """A function that stages bytes into one region, and keeps its place.

    Each pack is one C call under the interpreter lock, so a half changes in one step as far as
    other threads can see.
    """
    view = place.view
    turn = itertools.cycle((_HEAD, _HEAD + capacity + _TRAILER.size))

    if capacity <= _ONE_PACK:
        whole = _packer(capacity)

        def stage(seq: int, data: bytes, _: object = place.seat) -> None:
            size = len(data)
            if size > capacity:
                overflow(seq, data)
            else:
                whole(view, next(turn), data, size, seq, _hash(data, seq))

        return stage

    trail = _TRAILER.pack_into

    def stage_large(seq: int, data: bytes, _: object = place.seat) -> None:
        size = len(data)
        if size > capacity:
            overflow(seq, data)
        else:
            start = next(turn)
            view[start : start + size] = data
            trail(view, start + capacity, size, seq, _hash(data, seq))

    return stage_large


@functools.cache
def _packer(capacity: int) -> Callable[..., None]:
    return struct.Struct(f"<{capacity}sQQQ").pack_into


def _sealed_stager(
    stage: Stage, seal: Callable[[int, bytes], bytes], capacity: int, overflow: Stage
) -> Stage:
    def sealed(seq: int, data: bytes) -> None:
        if len(data) > capacity:
            overflow(seq, data)
        else:
            stage(seq, seal(seq, data))

    return sealed
