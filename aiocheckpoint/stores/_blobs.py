"""Blobs as files, for the stores on a local disk."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ..abc import Source
from ._disk import (
    READ_FLAGS,
    WRITE_FLAGS,
    make_directories,
    remove,
    remove_stale,
    replace_file,
    sync_directory,
    temp_name,
    translated,
)
from ._threads import Threads

T = TypeVar("T")

CHUNK = 4 << 20
_BLOB_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,119}")


class Descriptor:
    """An open file, closed when nobody refers to it any more.

    A read that was cancelled may still run in its thread: closing under it would let it read
    from whatever gets the number next.
    """

    def __init__(self, path: Path) -> None:
        self._number = os.open(path, READ_FLAGS)

    def read(self, size: int, at: int) -> bytes:
        return os.pread(self._number, size, at)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._number)


class GrowingFile:
    """A file that is written chunk by chunk under a temporary name, by one thread at a time.

    It is closed, and removed if it has no name yet, when nobody refers to it: a write that was
    cancelled may still run.
    """

    def __init__(self, key: str, path: Path) -> None:
        self.key = key
        self.path = path
        self._temp = path.with_name(temp_name())
        self._number = os.open(self._temp, WRITE_FLAGS, 0o666)
        self._size = 0
        self._named = False

    def write(self, data: bytes) -> None:
        with translated("put_blob", self.key, self.path):
            rest = memoryview(data)
            while rest:
                done = os.pwrite(self._number, rest, self._size)
                self._size += done
                rest = rest[done:]

    def finish(self) -> None:
        """Give it its name, durably."""
        with translated("put_blob", self.key, self.path):
            os.fsync(self._number)
            os.rename(self._temp, self.path)
            self._named = True
            sync_directory(self.path.parent)

    def discard(self) -> None:
        with suppress(OSError):
            os.unlink(self._temp)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._number)
            if not self._named:
                self.discard()


def check_blob_name(name: str) -> None:
    """Refuse what would leave the folder, or be taken for a temporary file."""
    if not _BLOB_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a blob name: 1 to 120 of A-Z a-z 0-9 . - _, no . first")


class BlobFiles:
    """Blobs as files: `folder(key)`, below `base`, holds one of each blob's name."""

    def __init__(self, threads: Threads, base: Path, folder: Callable[[str], Path]) -> None:
        self._threads = threads
        self._base = base
        self._folder = folder

    async def put(self, key: str, name: str, source: Source) -> None:
        check_blob_name(name)
        if not isinstance(source, bytes):
            first = await anext(source, b"")
            second = await anext(source, b"")
            if second:
                await self._put_chunks(key, name, first, second, source)
                return
            source = first
        await self._threads.run(self._put, key, name, source)

    async def _put_chunks(
        self, key: str, name: str, first: bytes, second: bytes, rest: AsyncIterator[bytes]
    ) -> None:
        run = self._threads.run
        file = await run(self._begin, key, name)
        try:
            for chunk in (first, second):
                await run(file.write, chunk)
            async for chunk in rest:
                await run(file.write, chunk)
            await run(self._finish, file)
        except BaseException:
            file.discard()  # now, as the error's traceback may keep it
            raise

    async def open(
        self, key: str, name: str, start: int = 0, size: int | None = None
    ) -> AsyncIterator[bytes]:
        check_blob_name(name)
        path = self._folder(key) / name
        with translated("open_blob", key, path, untouched=(FileNotFoundError,)):
            file = await self._threads.run(Descriptor, path)
            while size is None or size > 0:
                want = CHUNK if size is None else min(CHUNK, size)
                chunk = await self._threads.run(file.read, want, start)
                if not chunk:
                    return
                yield chunk
                start += len(chunk)
                size = None if size is None else size - len(chunk)

    async def names(self, key: str) -> list[str]:
        return await self._threads.run(self._names, key)

    async def delete(self, key: str, names: Sequence[str]) -> None:
        for name in names:
            check_blob_name(name)
        await self._threads.run(self._delete, key, names)

    def _put(self, key: str, name: str, data: bytes) -> None:
        folder = self._folder(key)
        with translated("put_blob", key, folder / name):
            self._within(folder, lambda: replace_file(folder / name, data))
            self._sync_above(folder)

    def _begin(self, key: str, name: str) -> GrowingFile:
        folder = self._folder(key)
        with translated("put_blob", key, folder / name):
            return self._within(folder, lambda: GrowingFile(key, folder / name))

    def _finish(self, file: GrowingFile) -> None:
        file.finish()
        with translated("put_blob", file.key, file.path):
            self._sync_above(file.path.parent)

    def _within(self, folder: Path, make: Callable[[], T]) -> T:
        """Make something in a folder that a collector may remove whenever it is empty."""
        for attempt in itertools.count():
            make_directories(self._base, folder)
            try:
                return make()
            except FileNotFoundError:
                if attempt == 9:
                    raise
        raise AssertionError("a count has no end")

    def _sync_above(self, folder: Path) -> None:
        """Always, as whoever made a directory may not have come as far as this."""
        while folder != self._base:
            folder = folder.parent
            sync_directory(folder)

    def _names(self, key: str) -> list[str]:
        with translated("list_blobs", key, self._folder(key)):
            return sorted(name for name in self._listed(key) if name[0] != ".")

    def _delete(self, key: str, names: Sequence[str]) -> None:
        folder = self._folder(key)
        with translated("delete_blobs", key, folder):
            for name in names:
                remove(folder / name)
            remove_stale(folder, self._listed(key))
            with suppress(OSError):  # absent, or not empty
                os.rmdir(folder)

    def _listed(self, key: str) -> list[str]:
        try:
            return os.listdir(self._folder(key))
        except FileNotFoundError:
            os.stat(self._base)  # no folder is no blobs; no base is a disk that is not there
            return []
