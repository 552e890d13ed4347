"""Stops a process at its n-th call that changes or syncs a file, by seccomp notifications.

The process installs a filter, which its threads inherit; from then on each such call waits until
the one that follows it, in another process, lets it go on, answers for it, or kills the process.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import struct
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest

_CALLS = {  # numbers of x86-64
    "write": 1,
    "open": 2,
    "pwrite64": 18,
    "writev": 20,
    "msync": 26,
    "sendfile": 40,
    "fsync": 74,
    "fdatasync": 75,
    "truncate": 76,
    "ftruncate": 77,
    "rename": 82,
    "mkdir": 83,
    "rmdir": 84,
    "creat": 85,
    "link": 86,
    "unlink": 87,
    "symlink": 88,
    "chmod": 90,
    "fchmod": 91,
    "sync": 162,
    "openat": 257,
    "mkdirat": 258,
    "unlinkat": 263,
    "renameat": 264,
    "linkat": 265,
    "symlinkat": 266,
    "fchmodat": 268,
    "sync_file_range": 277,
    "fallocate": 285,
    "pwritev": 296,
    "syncfs": 306,
    "renameat2": 316,
    "copy_file_range": 326,
    "pwritev2": 328,
}
_NAMES = {number: name for name, number in _CALLS.items()}
_OPENS = {"open": 1, "openat": 2}  # which argument has the flags: only what makes files counts
_BY_DESCRIPTOR = {"fsync", "fdatasync", "write", "pwrite64", "pwritev", "pwritev2", "ftruncate"}

_X86_64 = 0xC000003E
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_LOAD, _EQUALS, _HAS, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: ld w abs, jeq k, jset k, ret k
_AT_NUMBER, _AT_ARCHITECTURE, _AT_ARGUMENTS = 0, 4, 16

_SECCOMP, _SET_FILTER, _NEW_LISTENER = 317, 1, 1 << 3
_NO_NEW_PRIVILEGES = 38
_NOTICE = struct.Struct("<QIIiIQ6Q")
_ANSWER = struct.Struct("<QqiI")
_RECEIVE = 0xC0002100 | _NOTICE.size << 16
_SEND = 0xC0002101 | _ANSWER.size << 16
_GO_ON = 1
_LATE = 40.0  # seconds without a call after which the process hangs


class Call(NamedTuple):
    """A call that waits."""

    number: int
    """Its place among all of them, from 1."""
    name: str
    process: int
    descriptor: int

    def path(self) -> str:
        """Of the file whose descriptor the call is given; empty if it is given none."""
        if self.name not in _BY_DESCRIPTOR:
            return ""
        try:
            return os.readlink(f"/proc/{self.process}/fd/{self.descriptor}")
        except FileNotFoundError:
            return ""


def check_platform() -> None:
    """Skip the test where the numbers above are not those of this machine."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("stops at system calls only on Linux on x86-64")


def install() -> int:
    """From now on the calls of this process wait; the descriptor to follow them by.

    Its threads must start later.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    program = _program()
    code = ctypes.create_string_buffer(b"".join(program))
    header = struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(code))
    listener = -1
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0:
        listener = libc.syscall(_SECCOMP, _SET_FILTER, _NEW_LISTENER, header)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "no seccomp notifications")
    return int(listener)


def _program() -> list[bytes]:
    """The filter."""

    def step(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("<HBBI", code, yes, no, k)

    steps = [
        step(_LOAD, _AT_ARCHITECTURE),
        step(_EQUALS, _X86_64, 1),
        step(_RETURN, _ALLOW),
    ]
    for name, number in _CALLS.items():
        steps += [step(_LOAD, _AT_NUMBER)]
        if name in _OPENS:
            flags = _AT_ARGUMENTS + 8 * _OPENS[name]
            steps += [
                step(_EQUALS, number, 0, 4),
                step(_LOAD, flags),
                step(_HAS, os.O_CREAT | os.O_TRUNC, 0, 1),
                step(_RETURN, _NOTIFY),
                step(_RETURN, _ALLOW),
            ]
        else:
            steps += [step(_EQUALS, number, 0, 1), step(_RETURN, _NOTIFY)]
    return [*steps, step(_RETURN, _ALLOW)]


def follow(listener: int, at: Callable[[Call], bool | None]) -> int:
    """Ask `at` about call after call until the process is gone; how many there were.

    True lets it go on, and False answers that it is done, although it is not. None ends the
    following, with the call still waiting: the process must be killed then.
    """
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    number = 0
    heard = time.monotonic()
    while True:
        ready = poll.poll(1000)
        if not ready:
            assert time.monotonic() - heard < _LATE, "the process hangs"
            continue
        if not ready[0][1] & select.POLLIN:  # all who could call are gone
            return number
        heard = time.monotonic()
        notice = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, notice)
            ticket, process, _, system_call, _, _, first, *_ = _NOTICE.unpack(notice)
            number += 1
            decision = at(Call(number, _NAMES[system_call], process, first & 0xFFFFFFFF))
            if decision is None:
                return number
            answer = _ANSWER.pack(ticket, 0, 0, _GO_ON if decision else 0)
            fcntl.ioctl(listener, _SEND, bytearray(answer))
        except OSError as exc:
            if exc.errno != errno.ENOENT:  # it was killed meanwhile
                raise
