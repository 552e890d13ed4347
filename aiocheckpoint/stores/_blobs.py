"""What the stores on a local disk share: threads to reach it, its errors translated, blob files."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from .._errors import StoreError, StoreUnavailableError

P = ParamSpec("P")
T = TypeVar("T")

CHUNK = 4 << 20
STALE_AFTER = 3600.0
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_SYNC_FLAG: int = getattr(os, "RWF_SYNC", 0)

_temp_token = os.urandom(8).hex()
_temp_count = itertools.count()
_BLOB_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,119}")
_PASSING = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space or have the quota raised",
    errno.EIO: "the disk fails; see the system log",
    errno.ESTALE: "the file server has lost the file; see whether the mount is healthy",
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "the machine has too many open files; raise `fs.file-max`",
    errno.ETIMEDOUT: "see whether the file server answers",
    errno.EAGAIN: "the machine is short of resources",
}
_LASTING = {
    errno.EACCES: "give this user permission to read and write it",
    errno.EPERM: "give this user permission, and use a file system that has hard links",
    errno.EOPNOTSUPP: "use a file system that has hard links",
    errno.EROFS: "mount the file system for writing",
    errno.ENOENT: "it was moved or deleted; put it back",
    errno.ENOTDIR: "a file stands where a directory should; move it away",
    errno.ELOOP: "a symbolic link stands where a file should; move it away",
    errno.EISDIR: "something else stands where a file should; move it away",
    errno.ENAMETOOLONG: "use a directory with a shorter path",
}


@contextmanager
def translated(
    op: str, key: str | None, path: Path, untouched: tuple[type[OSError], ...] = ()
) -> Iterator[None]:
    """The one place where what the operating system says becomes a store's error."""
    try:
        yield
    except untouched:
        raise
    except OSError as exc:
        number = exc.errno or 0
        kind = StoreUnavailableError if number in _PASSING else StoreError
        hint = _PASSING.get(number) or _LASTING.get(number) or "see the cause below"
        raise kind(f"{path}: {exc.strerror or exc}; {hint}", op=op, key=key) from exc


class Threads:
    """A few threads that do blocking calls for whichever loop awaits them.

    They start together at the first call, as none can start while the interpreter exits, and are
    daemons, so that a disk that hangs cannot hold the process up: whoever needs a call's end
    awaits it. A call that is cancelled before it began is not made.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._closed = False

    async def run(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn` in a thread."""
        return await self.run_tidying(lambda _: fn(*args, **kwargs))

    async def run_tidying(self, fn: Callable[[ExitStack], T]) -> T:
        """Call `fn` in a thread; what it leaves on the stack is done after it has been answered."""
        self.start()
        answer: Future[T] = Future()
        self._jobs.put((answer, fn))
        return await asyncio.wrap_future(answer)

    async def close(self) -> None:
        """Return when every thread is idle and ends. Does nothing the second time."""
        with self._lock:
            ends = self._end()
        await asyncio.gather(*map(asyncio.wrap_future, ends))

    def start(self) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("this store is closed")
            if self._pid is None:
                self._pid = os.getpid()
                for i in range(self._count):
                    threading.Thread(
                        target=_work, args=(self._jobs,), name=f"{self._name}-{i}", daemon=True
                    ).start()
            elif self._pid != os.getpid():
                raise RuntimeError("this store was used before a fork; open another one")

    def _end(self) -> list[Future[Any]]:
        ends = [Future[Any]() for _ in range(0 if self._closed or not self._pid else self._count)]
        self._closed = True
        for end in ends:
            self._jobs.put((end, None))
        return ends

    def __del__(self) -> None:
        self._end()


_Job = tuple[Future[Any], Callable[[ExitStack], Any] | None]


def _work(jobs: SimpleQueue[_Job]) -> None:
    while True:
        answer, fn = jobs.get()
        wanted = answer.set_running_or_notify_cancel()
        if fn is None:
            if wanted:
                answer.set_result(None)
            return
        if wanted:
            _do(answer, fn)
        del answer, fn  # an idle thread must not keep a record alive


def _do(answer: Future[T], fn: Callable[[ExitStack], T]) -> None:
    with suppress(BaseException), ExitStack() as after:  # the answer is given, the thread goes on
        try:
            result = fn(after)
        except BaseException as exc:
            answer.set_exception(exc)
            del answer, fn  # or the traceback would keep them, and they it
        else:
            answer.set_result(result)


class Descriptor:
    """An open file, closed when nobody refers to it any more.

    A read that was cancelled may still run in its thread: closing under it would let it read
    from whatever gets the number next.
    """

    def __init__(self, path: Path) -> None:
        self._number = os.open(path, READ_FLAGS)

    def read(self, size: int) -> bytes:
        return os.read(self._number, size)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._number)


def temp_name() -> str:
    return f".tmp-{_temp_token}-{os.getpid():x}-{next(_temp_count):x}"


def remove_stale(folder: Path, names: Sequence[str]) -> None:
    """Remove those of the names that are temporary files which a lost process has left."""
    for name in names:
        if name.startswith(".tmp-"):
            with suppress(OSError):
                if time.time() - os.lstat(folder / name).st_mtime > STALE_AFTER:
                    os.unlink(folder / name)


def write_durably(fd: int, data: bytes) -> None:
    """Write all of `data` to a new file and sync it, without a copy.

    In one call where the system can (Linux): between two, a computing loop keeps the interpreter
    lock for 5 ms. Once this has failed the file must not be synced again, the second time would
    succeed without the bytes: write another file.
    """
    rest = memoryview(data)
    if _SYNC_FLAG:
        try:
            while rest:
                rest = rest[os.pwritev(fd, [rest], len(data) - len(rest), _SYNC_FLAG) :]
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
        else:
            if data:
                return
    while rest:
        rest = rest[os.pwrite(fd, rest, len(data) - len(rest)) :]
    os.fsync(fd)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directories(base: Path, folder: Path) -> None:
    """Make what is missing between `base`, which must exist, and `folder`."""
    level = base
    for part in folder.relative_to(base).parts:
        level = level / part
        with suppress(FileExistsError):
            os.mkdir(level)


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all, durable on return."""
    temp = path.with_name(temp_name())
    fd = os.open(temp, WRITE_FLAGS, 0o666)
    try:
        write_durably(fd, data)
        os.rename(temp, path)
    except BaseException:
        _remove(temp)
        raise
    finally:
        os.close(fd)
    sync_directory(path.parent)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


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

    async def put(self, key: str, name: str, data: bytes) -> None:
        check_blob_name(name)
        await self._threads.run(self._put, key, name, data)

    async def open(self, key: str, name: str) -> AsyncIterator[bytes]:
        check_blob_name(name)
        path = self._folder(key) / name
        with translated("open_blob", key, path, untouched=(FileNotFoundError,)):
            file = await self._threads.run(Descriptor, path)
            while chunk := await self._threads.run(file.read, CHUNK):
                yield chunk

    async def names(self, key: str) -> list[str]:
        return await self._threads.run(self._names, key)

    async def delete(self, key: str, names: Sequence[str]) -> None:
        for name in names:
            check_blob_name(name)
        await self._threads.run(self._delete, key, names)

    def _put(self, key: str, name: str, data: bytes) -> None:
        folder = self._folder(key)
        with translated("put_blob", key, folder / name):
            for attempt in itertools.count():
                make_directories(self._base, folder)
                try:
                    replace_file(folder / name, data)
                    break
                except FileNotFoundError:  # a collector has removed the emptied folder
                    if attempt == 9:
                        raise
            # Always, as whoever made a directory may not have come as far as this.
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
                _remove(folder / name)
            remove_stale(folder, self._listed(key))
            with suppress(OSError):  # absent, or not empty
                os.rmdir(folder)

    def _listed(self, key: str) -> list[str]:
        try:
            return os.listdir(self._folder(key))
        except FileNotFoundError:
            os.stat(self._base)  # no folder is no blobs; no base is a disk that is not there
            return []
