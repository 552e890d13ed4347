"""Mapped memory for regions: a file of its own, or a seat in one that many regions share.

A process may have some 65,000 mappings (`vm.max_map_count`), so small regions share a file. It has
no name of its own (O_TMPFILE): each region's name is a hard link to it, which says at which offset
the region lies. What a killed process leaves are these names; the file goes with the last of them.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import NamedTuple

SEAT = 1024
"""Bytes of the smallest seat. The others are twice as large, and so on."""
LARGEST_SEAT = 64 << 10
_SHARED = 1 << 20  # bytes of a shared file, of which those in use take room on the disk
_ELSEWHERE_AS_WELL = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE}


class Place(NamedTuple):
    """Where a region lies: the file's name, and its bytes."""

    path: Path
    view: memoryview
    seat: object
    """To be kept as long as anything may write to the view; None if the file is its own."""


def mapped(path: Path, header: bytes, size: int) -> Place:
    """Make and map room for a region of at least so many bytes, which begins with `header` and is
    zero behind it. A region that shares a file has its offset appended to its name.

    Raises:
        OSError: it cannot be made, or there is no room.
    """
    seat_size = max(SEAT, 1 << (size - 1).bit_length())
    base = path.parent.parent
    if seat_size <= LARGEST_SEAT and hasattr(os, "O_TMPFILE") and base not in _unshared:
        try:
            return _shared(path, header, base, seat_size)
        except FileNotFoundError:
            raise
        except OSError as exc:
            if exc.errno in _ELSEWHERE_AS_WELL:
                raise
            _unshared.add(base)
    return Place(path, _own(path, header, size), None)


def _shared(path: Path, header: bytes, base: Path, seat_size: int) -> Place:
    with _lock:  # else another might close the file in between
        seat = _take(base, seat_size)
        try:
            return _seated(path, header, seat)
        except FileNotFoundError:
            if seat.shared.named or not path.parent.is_dir():
                raise  # its last name has just gone, or the directory: the next try finds that
            raise OSError(errno.EOPNOTSUPP, "a file without a name cannot have one") from None
        finally:
            seat.shared.pending -= 1


def _seated(path: Path, header: bytes, seat: _Seat) -> Place:
    shared, start, size = seat.shared, seat.start, seat.shared.seat_size
    _reserve(shared.fd, start, size)
    view = shared.memory[start : start + size]
    view[:] = header.ljust(size, b"\0")  # first, so that nothing of an earlier region is left
    named = path.with_name(f"{path.name}.{start}")
    # see open(2) on O_TMPFILE; with a descriptor, as os.link follows symbolic links only then
    os.link(f"/proc/self/fd/{shared.fd}", named, src_dir_fd=shared.fd)
    shared.named = True
    return Place(named, view, seat)


def offset(path: Path) -> int:
    """Where in its file the region of that name begins."""
    _, _, place = path.name.partition(".")
    _, _, start = place.partition(".")
    return int(start or 0)


class _Shared:
    """One file, its memory, and the offsets of the seats that are free."""

    def __init__(self, base: Path, seat_size: int) -> None:
        self.base = base
        self.seat_size = seat_size
        self.fd = os.open(base, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            if not os.path.exists(f"/proc/self/fd/{self.fd}"):
                raise OSError(errno.ENOSYS, "no /proc")
            os.ftruncate(self.fd, _SHARED)
            self.memory = _map(self.fd, _SHARED)
        except BaseException:
            os.close(self.fd)
            raise
        self.free = deque(range(0, _SHARED, seat_size))
        self._seats = len(self.free)
        self.lock = _lock
        self.named = False
        """True once it has had a name."""
        self.pending = 0
        """Seats that were taken, and are to get their names. There is more than one only if a
        signal handler has come for another."""
        self._retired = False

    def seat(self) -> _Seat | None:
        """One that is free, if there is any and it may have a name: a file that once had names, and
        has no more, can have no new one."""
        if not self._retired and self.named and os.fstat(self.fd).st_nlink == 0:
            self._retire()
        try:
            seat = _Seat(self, self.free.popleft())
        except IndexError:
            return None
        if self._retired:  # just now, perhaps, by the garbage collector
            return None
        self.pending += 1
        return seat

    def back(self, start: int) -> None:
        """Nothing can write to this seat any more."""
        with self.lock:
            self.free.append(start)
            if len(self.free) == self._seats:
                self._retire()

    def _retire(self) -> None:
        """Give no more seats. Its memory, and what it takes on the disk, go with the last view and
        the last name."""
        if not self._retired:
            self._retired = True
            files = _files[self.base, self.seat_size]
            files.remove(self)
            if not files:
                del _files[self.base, self.seat_size]
        if self.fd >= 0 and not self.pending:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def forked(self) -> None:
        self.lock = threading.RLock()  # a thread that is not here may have held it
        self._retired = True
        fd, self.fd = self.fd, -1
        os.close(fd)


class _Seat:
    """A region's own part of a shared file."""

    __slots__ = ("shared", "start")

    def __init__(self, shared: _Shared, start: int) -> None:
        self.shared = shared
        self.start = start

    def __del__(self) -> None:
        self.shared.back(self.start)


_files: dict[tuple[Path, int], list[_Shared]] = {}
_unshared: set[Path] = set()
"""Bases in whose file systems no file can have names so."""
_lock = threading.RLock()  # the garbage collector may come back for it


def _take(base: Path, seat_size: int) -> _Seat:
    """A seat for a region in a directory below `base`. Call it with the lock.

    Raises:
        OSError: there can be none.
    """
    for shared in _files.get((base, seat_size), [])[::-1]:
        if seat := shared.seat():
            return seat
    shared = _Shared(base, seat_size)
    _files.setdefault((base, seat_size), []).append(shared)
    seat = shared.seat()
    assert seat is not None
    return seat


def _forked() -> None:
    """In a forked child: what is shared here is the parent's."""
    global _lock
    _lock = threading.RLock()
    for files in _files.values():
        for shared in files:
            shared.forked()
    _files.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _own(path: Path, header: bytes, size: int) -> memoryview:
    """Create and map a file. No descriptor stays open: mmap.mmap would keep one per region
    (until Python 3.13's `trackfd`), and ten thousand keys must fit under a limit of 1024."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        _reserve(fd, 0, size)
        os.pwrite(fd, header, 0)
        return _map(fd, size)
    finally:
        os.close(fd)


def _reserve(fd: int, start: int, size: int) -> None:
    """Have the blocks now: a write into mapped memory that finds no room kills the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, start, size)
        return
    block = bytes(1 << 16)  # macOS has no such call
    for done in range(0, size, len(block)):
        os.pwrite(fd, block[: size - done], start + done)


class _Memory(ctypes.c_char):
    """Only a base for the array type: its instances can be watched by weakref."""


def _map(fd: int, size: int) -> memoryview:
    libc = _libc()
    address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    memory = (_Memory * size).from_address(address)
    # unmapped when the last view is gone, so that a late stage() can never touch freed memory
    weakref.finalize(memory, libc.munmap, address, size).atexit = False
    return memoryview(memory).cast("B")


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
