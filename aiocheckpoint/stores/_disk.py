"""What the stores on a local disk share: durable files, and what their errors mean."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .._errors import StoreError, StoreUnavailableError

STALE_AFTER = 3600.0
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_SYNC_FLAG: int = getattr(os, "RWF_SYNC", 0)

_temp_token = os.urandom(8).hex()
_temp_count = itertools.count()
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
        remove(temp)
        raise
    finally:
        os.close(fd)
    sync_directory(path.parent)


def remove(path: Path) -> None:
    """Remove a file that may be gone already."""
    with suppress(FileNotFoundError):
        os.unlink(path)
