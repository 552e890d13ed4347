"""`file:DIR`: a directory that a person can read, one subdirectory a key.

A key's directory holds immutable files, `head.000000000042` and the like; the highest number is
the head, and the number is its version. A commit that replaces n links its file to n+1, which
only one can do, and then looks whether anything is higher. Three invariants carry the rest:

- The head is never removed: a number goes only after a higher one was seen. So numbers never
  fall, and are never used again; a deleted key keeps a file that says so.
- A commit counts if, after its link, its number is the highest and the one that it replaces is
  there. Then n+1 had never been made before. A process that was paused, and wakes when n+1 has
  long come and gone, can make it anew, but sees something higher and has changed nothing.
- What has been the highest is never taken back: somebody may have read it.
- A file has its name as a head only when its bytes are durable.

Nobody ever waits for a lock: there is none.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import stat
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from .._errors import ConflictError, StoreError, StoreUnavailableError
from .._keys import key_of, store_name
from ..abc import Head, Put, Version
from ._blobs import BlobFiles
from ._disk import (
    READ_FLAGS,
    WRITE_FLAGS,
    make_directories,
    remove_stale,
    replace_file,
    sync_directory,
    temp_name,
    translated,
    write_durably,
)
from ._keeps_blobs import KeepsBlobs
from ._threads import Threads

_DELETED = b"aiocheckpoint: this key was deleted\n"
_HEAD = re.compile(r"head\.([0-9]{12,})")
_KEY_FILE = "key"
_PAGE = 256
_ROUNDS = 50
_THREADS = 16


class FileStore(KeepsBlobs):
    """Keeps records as files below a directory, which is made if its parent exists.

    The file system must have hard links (ext4, xfs, btrfs, NFS and the like do, FAT does not).

    Raises:
        StoreError: the directory cannot be there, or not be written.
    """

    transactional = False
    min_interval = 0.1

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        root = Path(directory).resolve()
        self._root = root
        self.identity = f"file:{root}"
        self.spool_dir: Path | None = root / ".spool"
        with translated("open", None, root):
            if not root.parent.is_dir():
                raise StoreError(f"{root.parent} is no directory; create it first", op="open")
            with suppress(FileExistsError):
                os.mkdir(root)
            if not root.is_dir():
                raise StoreError(f"{root} is a file, not a directory; name another", op="open")
            if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
                raise StoreError(f"{root} cannot be written; give this user permission", op="open")
            with suppress(PermissionError):  # a parent that cannot be read cannot be synced
                sync_directory(root.parent)
        self._threads = Threads(_THREADS, "aiocheckpoint-file")
        self._blobs = BlobFiles(self._threads, root, lambda key: self._directory(key) / "blobs")

    async def load(self, key: str) -> Head | None:
        return await self._threads.run(self._load, key)

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        return await asyncio.gather(*map(self._commit, batch))

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        keys = await self._threads.run(self._known_keys, prefix)
        for start in range(0, len(keys), _PAGE):
            for key in await self._threads.run(self._having_head, keys[start : start + _PAGE]):
                yield key

    async def delete(self, key: str, expect: Version) -> None:
        await self._threads.run_tidying(partial(self._replace, "delete", key, expect, _DELETED))

    async def aclose(self) -> None:
        await self._threads.close()

    def _directory(self, key: str) -> Path:
        return self._root / store_name(key)

    async def _commit(self, put: Put) -> Version | StoreError:
        if put.record == _DELETED:
            return StoreError("this record means a deleted key", op="commit", key=put.key)
        replace = partial(self._replace, "commit", put.key, put.expect, put.record)
        try:
            return await self._threads.run_tidying(replace)
        except StoreError as exc:
            return exc

    def _replace(
        self, op: str, key: str, expect: Version | None, data: bytes, after: ExitStack
    ) -> int:
        """Link `data` to the number after `expect`.

        Every system call before the return may wait its turn for the interpreter lock, 5 ms if
        the user's loop is busy, so there are as few as can be; cleaning comes `after`.
        """
        directory = self._directory(key)
        with translated(op, key, directory):
            try:
                if expect is None:
                    self._make(key, directory)
                dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                os.stat(self._root)
                raise _conflict(op, key) from None
            # One descriptor for all of it: a directory that is moved away or replaced meanwhile
            # never gets half of a commit.
            after.callback(os.close, dir_fd)
            try:
                return self._link_next(op, key, expect, data, dir_fd, after)
            except FileNotFoundError as exc:
                raise StoreUnavailableError(
                    f"{directory}: somebody removed files in mid-{op}", op=op, key=key
                ) from exc

    def _link_next(
        self,
        op: str,
        key: str,
        expect: Version | None,
        data: bytes,
        dir_fd: int,
        after: ExitStack,
    ) -> int:
        last = self._vacant(key, dir_fd) if expect is None else expect
        if not isinstance(last, int):
            raise _conflict(op, key)
        number = last + 1
        name, temp = _head_name(number), temp_name()
        fd = os.open(temp, WRITE_FLAGS, 0o666, dir_fd=dir_fd)
        after.callback(os.close, fd)
        after.callback(os.unlink, temp, dir_fd=dir_fd)
        write_durably(fd, data)
        try:
            os.link(temp, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except FileExistsError:
            raise _conflict(op, key) from None
        names = os.listdir(dir_fd)
        numbers = _numbers(names)
        if numbers[-1:] != [number]:
            # Late, or somebody has read this one and built upon it: then it must stay. Whoever
            # commits next removes it.
            raise _conflict(op, key)
        if last and last not in numbers:
            # The directory was put back to an older state under a running process: the lone
            # exception to 'the head is never removed', as nobody was told of this one.
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=dir_fd)
            raise _conflict(op, key)
        os.fsync(dir_fd)
        deleted = data is _DELETED
        for old in reversed(numbers):  # the stack turns it round
            # n stays until n+2, for whoever is about to read it; a deleted one does not.
            if old < last or (deleted and old == last):
                after.callback(os.unlink, _head_name(old), dir_fd=dir_fd)
        # not ours, if another process, whose clock is wrong, has not taken it for stale already
        others = [each for each in names if each != temp]
        after.callback(remove_stale, self._directory(key), others)
        return number

    def _make(self, key: str, directory: Path) -> None:
        make_directories(self._root, directory)
        if key_of(directory.name) is None and not (directory / _KEY_FILE).exists():
            replace_file(directory / _KEY_FILE, key.encode())
        sync_directory(self._root)  # always: whoever made it may not have come as far as this

    def _vacant(self, key: str, dir_fd: int) -> int:
        """The number after which a key without a head goes on; ConflictError if it has one."""
        numbers = _numbers(os.listdir(dir_fd))
        if not numbers:
            return 0
        if _read(_head_name(numbers[-1]), dir_fd) != _DELETED:
            raise _conflict("commit", key)
        return numbers[-1]

    def _load(self, key: str) -> Head | None:
        directory = self._directory(key)
        with translated("load", key, directory):
            for _ in range(_ROUNDS):
                with suppress(FileNotFoundError):  # replaced twice since we listed
                    number = self._highest(directory)
                    record = None if number is None else _read(directory / _head_name(number))
                    # A second look, as not every file system lists a directory in one instant.
                    if self._highest(directory) == number:
                        if number is None or record is None or record == _DELETED:
                            return None
                        return Head(record, number)
        raise StoreUnavailableError(
            f"{directory}: others commit faster than it can be read", op="load", key=key
        )

    def _highest(self, directory: Path) -> int | None:
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            with translated("load", None, self._root):
                os.stat(self._root)  # a disk that is not there is not a key that is not there
            return None
        return max(_numbers(names), default=None)

    def _known_keys(self, prefix: str) -> list[str]:
        with translated("keys", None, self._root):
            keys = map(self._key_of_directory, os.listdir(self._root))
            return sorted(key for key in keys if key is not None and key.startswith(prefix))

    def _key_of_directory(self, name: str) -> str | None:
        """The key that has this directory; None if it is none of ours."""
        if name.startswith("."):
            return None
        try:
            key = key_of(name)
            if key is None:
                key = _read(self._root / name / _KEY_FILE).decode()
            return key if key and store_name(key) == name else None
        except (ValueError, FileNotFoundError, NotADirectoryError):
            return None

    def _having_head(self, keys: Sequence[str]) -> list[str]:
        return [key for key in keys if self._has_head(key)]

    def _has_head(self, key: str) -> bool:
        directory = self._directory(key)
        with translated("keys", key, directory):
            try:
                number = self._highest(directory)
                size = -1 if number is None else os.lstat(directory / _head_name(number)).st_size
                if number is None or size != len(_DELETED):
                    return number is not None
            except NotADirectoryError:
                return False
            except FileNotFoundError:
                pass
        return self._load(key) is not None


def _head_name(number: int) -> str:
    return f"head.{number:012d}"


def _numbers(names: Iterable[str]) -> list[int]:
    return sorted(int(match[1]) for match in map(_HEAD.fullmatch, names) if match)


def _read(path: str | Path, dir_fd: int | None = None) -> bytes:
    fd = os.open(path, READ_FLAGS, dir_fd=dir_fd)
    with open(fd, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EISDIR, "not a regular file")
        return file.readall()


def _conflict(op: str, key: str) -> ConflictError:
    return ConflictError("another version is the head", op=op, key=key)
