"""Unpacking: from a manifest and packs to a tree on the disk."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import itertools
import os
import shutil
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import NamedTuple

import xxhash

from ._compression import QUICK, decompress
from ._errors import CodecError, CorruptCheckpointError
from ._hops import hop, settled
from ._pieces import Pieces
from ._trees import Chunk, Entry, Manifest, Walk, gently, make_removable

Read = Callable[[str, int, int], AsyncIterator[bytes]]
"""Gives that many bytes of a pack of that name, from there on."""

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_SMALL = 256 << 10  # files up to here are written many at a time
_BATCH_BYTES, _BATCH_ENTRIES = 1 << 20, 256


async def unpack(key: str, manifest: Manifest, target: Path, read: Read) -> None:
    """Make the tree at `target`, which is absolute.

    It grows under a hidden name beside the target, or within it if that is an empty directory
    (which may be a mount), and is checked on the way.

    Raises:
        FileExistsError: something is there already, other than an empty directory for a tree.
        CorruptCheckpointError: a pack is damaged or cut short.
        CodecError: they are compressed in a way that is not at hand.
        OSError: it cannot be written there.
    """
    if manifest.compression not in ("", "zstd"):
        raise CodecError(
            f"the files of {key!r} are compressed by {manifest.compression!r}: upgrade"
            " aiocheckpoint"
        )
    place: _Place | None = None
    try:
        place = await hop(_Place, target, manifest.entries[0].kind == "directory")
        await hop(place.begin)
        async with aclosing(_contents(key, manifest, read)) as contents:
            await _fill(place, manifest, contents)
        await hop(place.finish, manifest)
    except BaseException as exc:
        exc.add_note(f"aiocheckpoint: the files of {key!r} were not restored to {target}")
        raise
    finally:
        if place is not None:
            await hop(place.end)


async def _fill(place: _Place, manifest: Manifest, contents: AsyncIterator[memoryview]) -> None:
    batch: list[tuple[Entry, bytes]] = []
    size = 0
    for entry in manifest.entries:
        if entry.size <= _SMALL:
            data = b"".join([await anext(contents) for _ in entry.chunks])
            batch.append((entry, data))
            size += len(data)
            if size < _BATCH_BYTES and len(batch) < _BATCH_ENTRIES:
                continue
        await hop(place.make, batch)
        batch, size = [], 0
        if entry.size > _SMALL:
            fd = await settled(asyncio.to_thread(place.open, entry), os.close)
            try:
                for _ in entry.chunks:
                    await hop(_write, fd, await anext(contents))
                await hop(_stamp, fd, entry)
            finally:
                os.close(fd)
    await hop(place.make, batch)


class _Place:
    """Where a tree grows: a hidden directory, locked while we live, so that what a process has
    left that was killed can be told and removed."""

    def __init__(self, target: Path, is_tree: bool) -> None:
        self._target = target
        self._within = False
        if os.path.lexists(target):
            if not is_tree:
                raise _taken(target, "is there already: restore the file to a new name")
            if not stat.S_ISDIR(target.lstat().st_mode):
                raise _taken(target, "is no directory: restore the files to a new name")
            self._within = True
        base = target if self._within else target.parent
        name = hashlib.blake2b(os.fsencode(target.name), digest_size=8).hexdigest()
        mine = f".restoring-{name}-"
        others = [path for path in base.iterdir() if not _removed(path, mine)]
        if self._within and others:
            raise _taken(target, "is not an empty directory: restore the files to a new one")
        self._temp = base / f"{mine}{os.urandom(4).hex()}"
        self._tree = self._temp / "tree"
        self._is_tree = is_tree
        self._lock = -1
        self._walk: Walk | None = None

    def begin(self) -> None:
        os.mkdir(self._temp, 0o700)
        self._lock = _locked(self._temp)
        if self._is_tree:
            os.mkdir(self._tree, 0o700)
            self._walk = Walk(os.fsencode(self._tree))

    def open(self, entry: Entry) -> int:
        """Make a file that is not there yet."""
        if self._walk is None:
            return os.open(self._tree, _FLAGS | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        return self._walk.open(entry.path, _FLAGS, 0o600)

    def make(self, batch: list[tuple[Entry, bytes]]) -> None:
        """Make entries, in order. Nothing is followed and nothing replaced."""
        for entry, data in batch:
            above, _, name = entry.path.rpartition(b"/")
            if entry.kind == "file":
                fd = self.open(entry)
                try:
                    _write(fd, memoryview(data))
                    _stamp(fd, entry)
                finally:
                    os.close(fd)
            elif entry.path:
                assert self._walk is not None
                here = self._walk.directory(above)
                if entry.kind == "link":
                    os.symlink(entry.target, name, dir_fd=here)
                else:
                    os.mkdir(name, 0o700, dir_fd=here)

    def finish(self, manifest: Manifest) -> None:
        """Give the tree its name. Directories get their permissions innermost first; those that
        are moved get them last, as who may not write to one may not move it either."""
        directories = [e for e in reversed(manifest.entries) if e.kind == "directory"]
        moved = [e for e in directories if not e.path or (self._within and b"/" not in e.path)]
        self._permit(entry for entry in gently(directories) if entry not in moved)
        if self._within:
            for name in os.listdir(self._tree):
                os.rename(self._tree / name, self._target / name)
        elif self._is_tree:
            os.rename(self._tree, self._target)  # onto nothing; what came meanwhile is refused
        else:
            _put_file(self._tree, self._target)
        if self._walk is not None:
            self._walk.close()
            self._walk = Walk(os.fsencode(self._target))
            self._permit(iter(moved))

    def _permit(self, directories: Iterator[Entry]) -> None:
        for entry in directories:
            assert self._walk is not None
            here = self._walk.directory(entry.path)
            if self._within and not entry.path:
                with suppress(PermissionError):  # a mount may be another's
                    os.fchmod(here, entry.mode)
            else:
                os.fchmod(here, entry.mode)

    def end(self) -> None:
        """Remove what is left; nothing, if all went well."""
        if self._walk is not None:
            self._walk.close()
        if self._lock != -1:
            _remove_all(self._temp)
            os.close(self._lock)


def _taken(target: Path, why: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, why, str(target))


def _locked(path: Path) -> int:
    """A descriptor that locks a directory; OSError if another process, or restore, has it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _removed(path: Path, prefix: str) -> bool:
    """Remove it if a restore to the same target left it that was killed; whether it was that."""
    if not path.name.startswith(prefix):
        return False
    try:
        fd = _locked(path)
    except OSError:
        return False
    try:
        _remove_all(path)
    finally:
        os.close(fd)
    return True


def _remove_all(path: Path) -> None:
    with suppress(OSError):
        make_removable(path)
        shutil.rmtree(path)


def _put_file(temp: Path, target: Path) -> None:
    try:
        os.link(temp, target)  # unlike a rename it replaces nothing
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.rename(temp, target)


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
        end = chunk.start + chunk.stored
    if run is not None:
        yield run


async def _contents(key: str, manifest: Manifest, read: Read) -> AsyncGenerator[memoryview, None]:
    """The chunks' bytes in the order of the tree, each checked."""
    for run in _runs(manifest):
        wanted = sum(chunk.stored for chunk in run.chunks)
        async with aclosing(Pieces(read(run.pack, run.start, wanted))) as pieces:
            for chunk in run.chunks:
                data = await pieces.take(chunk.stored)
                if len(data) < chunk.stored:
                    raise CorruptCheckpointError(
                        f"the files of {key!r} are cut short: {run.pack} ends too early"
                    )
                if chunk.compressed:
                    data = await _decompressed(key, run.pack, data, chunk.size)
                if xxhash.xxh3_128_digest(data) != chunk.digest:
                    raise CorruptCheckpointError(f"the files of {key!r} are damaged: {run.pack}")
                yield data


async def _decompressed(key: str, pack: str, data: memoryview, size: int) -> memoryview:
    try:
        if size <= QUICK:
            return memoryview(decompress(data, size))
        return memoryview(await hop(decompress, data, size))
    except ValueError as exc:
        raise CorruptCheckpointError(
            f"the files of {key!r} are damaged: {pack} cannot be decompressed ({exc})"
        ) from exc
    except CodecError as exc:
        raise CodecError(f"the files of {key!r}: {exc}") from exc.__cause__


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _stamp(fd: int, entry: Entry) -> None:
    os.fchmod(fd, entry.mode)
    os.utime(fd, ns=(entry.mtime, entry.mtime))
