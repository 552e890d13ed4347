"""Unpacking: from a manifest and packs to a tree on the disk."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import shutil
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import aiofiles
import xxhash

from ._errors import CorruptCheckpointError
from ._trees import Chunk, Entry, Manifest, make_removable

P = ParamSpec("P")
T = TypeVar("T")

Read = Callable[[str, int, int], AsyncIterator[bytes]]
"""Gives that many bytes of a pack of that name, from there on."""

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SMALL = 256 << 10  # files up to here are written many at a time
_BATCH_BYTES, _BATCH_ENTRIES = 1 << 20, 256


async def unpack(key: str, manifest: Manifest, target: Path, read: Read) -> None:
    """Make the tree at `target`, whole or not at all.

    It grows beside the target under a temporary name, and is checked on the way.

    Raises:
        FileExistsError: something is there already, other than an empty directory for a tree.
        CorruptCheckpointError: a pack is damaged or cut short.
        OSError: it cannot be written there.
    """
    temp = target.with_name(f".{target.name[:80]}.restoring-{os.urandom(8).hex()}")
    try:
        await _hop(_begin, target, temp, manifest.entries[0])
        async with aclosing(_contents(key, manifest, read)) as contents:
            await _fill(os.fsencode(temp), manifest, contents)
        await _hop(_finish, temp, target, manifest)
    except BaseException as exc:
        await _hop(_discard, temp)
        exc.add_note(f"aiocheckpoint: the files of {key!r} were not restored to {target}")
        raise


async def _hop(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `fn` in a thread, and do not go on, cancelled or not, while it runs."""
    call = asyncio.ensure_future(asyncio.to_thread(fn, *args, **kwargs))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise


async def _fill(top: bytes, manifest: Manifest, contents: AsyncIterator[memoryview]) -> None:
    batch: list[tuple[Entry, bytes]] = []
    size = 0
    for entry in manifest.entries:
        if entry.size > _SMALL:
            await _hop(_make, top, batch)
            batch, size = [], 0
            await _write_large(_path(top, entry), entry, contents)
            continue
        data = b"".join([await anext(contents) for _ in entry.chunks])
        batch.append((entry, data))
        size += len(data)
        if size >= _BATCH_BYTES or len(batch) == _BATCH_ENTRIES:
            await _hop(_make, top, batch)
            batch, size = [], 0
    await _hop(_make, top, batch)


async def _write_large(path: bytes, entry: Entry, contents: AsyncIterator[memoryview]) -> None:
    async with aiofiles.open(path, "wb", buffering=0, opener=_opener) as file:
        for _ in entry.chunks:
            rest = await anext(contents)
            while rest:
                rest = rest[await file.write(rest) :]
        await _hop(_stamp, file.fileno(), entry)


def _begin(target: Path, temp: Path, root: Entry) -> None:
    """Refuse what is there already; make the root under its temporary name."""
    if os.path.lexists(target):
        if root.kind == "file":
            raise FileExistsError(
                errno.EEXIST, "is there already: restore the file to a new name", str(target)
            )
        if not stat.S_ISDIR(target.lstat().st_mode) or any(target.iterdir()):
            raise FileExistsError(
                errno.EEXIST,
                "is not an empty directory: restore the files to a new one",
                str(target),
            )
    if root.kind == "directory":
        os.mkdir(temp, 0o700)


def _make(top: bytes, batch: list[tuple[Entry, bytes]]) -> None:
    """Make entries, in order. Nothing is followed and nothing replaced: all is new in `top`."""
    for entry, data in batch:
        path = _path(top, entry)
        if entry.kind == "directory":
            if entry.path:
                os.mkdir(path, 0o700)
        elif entry.kind == "link":
            os.symlink(entry.target, path)
        else:
            fd = _opener(path, 0)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(fd, rest) :]
                _stamp(fd, entry)
            finally:
                os.close(fd)


def _finish(temp: Path, target: Path, manifest: Manifest) -> None:
    """Close the directories, innermost first, and give the tree its name."""
    top = os.fsencode(temp)
    for entry in reversed(manifest.entries):
        if entry.kind == "directory":
            os.chmod(_path(top, entry), entry.mode)
    if manifest.entries[0].kind == "directory":
        os.rename(temp, target)  # onto nothing, or an empty directory; anything else is refused
        return
    try:
        os.link(temp, target)  # unlike a rename it replaces nothing
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.rename(temp, target)
    else:
        os.unlink(temp)


def _discard(temp: Path) -> None:
    with suppress(OSError):
        if stat.S_ISDIR(temp.lstat().st_mode):
            make_removable(temp)
            shutil.rmtree(temp)
        else:
            temp.unlink()


class _Run(NamedTuple):
    """Chunks that lie one after the other in a pack."""

    pack: str
    start: int
    chunks: list[Chunk]


def _runs(manifest: Manifest) -> Iterator[_Run]:
    """All chunks of a tree, in its order."""
    run: _Run | None = None
    end = 0
    for chunk in itertools.chain.from_iterable(entry.chunks for entry in manifest.entries):
        pack = manifest.packs[chunk.pack].name
        if run is None or pack != run.pack or chunk.start != end:
            if run is not None:
                yield run
            run = _Run(pack, chunk.start, [])
        run.chunks.append(chunk)
        end = chunk.start + chunk.size
    if run is not None:
        yield run


async def _contents(key: str, manifest: Manifest, read: Read) -> AsyncGenerator[memoryview, None]:
    """The chunks' bytes in the order of the tree, each checked."""
    for run in _runs(manifest):
        wanted = sum(chunk.size for chunk in run.chunks)
        async with aclosing(_Pieces(read(run.pack, run.start, wanted))) as pieces:
            for chunk in run.chunks:
                data = await pieces.take(chunk.size)
                if len(data) < chunk.size:
                    raise CorruptCheckpointError(
                        f"the files of {key!r} are cut short: {run.pack} ends too early"
                    )
                if xxhash.xxh3_128_digest(data) != chunk.digest:
                    raise CorruptCheckpointError(f"the files of {key!r} are damaged: {run.pack}")
                yield data


class _Pieces:
    """A stream of bytes that comes in pieces of any size, taken in sizes that are wanted."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self._rest = memoryview(b"")

    async def take(self, size: int) -> memoryview:
        """So many bytes; fewer at the end of the stream."""
        parts = []
        while size:
            if not self._rest:
                self._rest = memoryview(await anext(self._source, b""))
                if not self._rest:
                    break
            part, self._rest = self._rest[:size], self._rest[size:]
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    async def aclose(self) -> None:
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()


def _stamp(fd: int, entry: Entry) -> None:
    os.fchmod(fd, entry.mode)
    os.utime(fd, ns=(entry.mtime, entry.mtime))


def _opener(path: str | bytes, _: int) -> int:
    return os.open(path, _FLAGS, 0o600)


def _path(top: bytes, entry: Entry) -> bytes:
    return os.path.join(top, entry.path) if entry.path else top
