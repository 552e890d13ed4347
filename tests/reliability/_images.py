"""Real ext4 and xfs file systems in small images, and a power cut of them.

A file system is shut down by the ioctl that its own tests use: nothing more reaches the image, the
log is not flushed, and what is only in memory is gone when it is unmounted. Needs root.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import itertools
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import pytest

KINDS = "ext4", "xfs"

_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32): XFS_IOC_GOINGDOWN, and ext4 has the same
_NO_LOG_FLUSH = 2
_SIZES = {"ext4": 256 << 20, "xfs": 320 << 20}  # xfs is not made smaller than 300 MB
_MAKE = {
    # all of it now, as a thread of the kernel would write to it later
    "ext4": ["mkfs.ext4", "-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q"],
}
_OPTIONS = {
    # no commit of the journal but those that somebody asks for (xfs flushes its log by itself
    # only after 30 seconds)
    "ext4": b"commit=300",
    "xfs": b"",
}
_PACKAGES = {"ext4": "e2fsprogs", "xfs": "xfsprogs"}
_BUSY = 30.0  # seconds after which a mount that cannot be undone is an error


class Volume:
    """A mounted file system in an image of its own."""

    def __init__(self, kind: str, device: str, root: Path) -> None:
        self.kind = kind
        self.root = root
        self._device = device
        self._numbers = itertools.count()

    def mount(self) -> None:
        flags, data = 0, _OPTIONS[self.kind]
        arguments = [os.fsencode(each) for each in (self._device, self.root, self.kind)]
        if _libc().mount(*arguments, flags, data) != 0:
            raise _last_error(f"mount {self.kind}")

    def unmount(self) -> None:
        until = time.monotonic() + _BUSY
        while _libc().umount2(os.fsencode(self.root), 0) != 0:
            error = _last_error(f"unmount {self.kind}")
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise error
            gc.collect()  # garbage of this process may have a region mapped
            time.sleep(0.001)

    def sync(self) -> None:
        """Have all of it on the disk."""
        with self._descriptor() as fd:
            if _libc().syncfs(fd) != 0:
                raise _last_error("syncfs")

    def cut(self) -> None:
        """Cut the power, as far as this file system goes: what its disk does not have is lost."""
        with self._descriptor() as fd:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))

    def boot(self) -> None:
        """Mount it again, which recovers it, once nobody uses it any more."""
        self.unmount()
        self.mount()

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """A new directory, which is durable."""
        path = self.root / f"case{next(self._numbers)}"
        path.mkdir()
        self.sync()
        try:
            yield path
        finally:
            shutil.rmtree(path)

    @contextmanager
    def _descriptor(self) -> Iterator[int]:
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)


@contextmanager
def volume(kind: str) -> Iterator[Volume]:
    """A fresh file system of this kind, mounted; where none can be, the test skips and says why."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    for program in (_MAKE[kind][0], "losetup"):
        if shutil.which(program) is None:
            package = _PACKAGES[kind] if program != "losetup" else "mount"
            pytest.skip(f"no {program} here: apt-get install {package}")
    with ExitStack() as stack:
        above = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=_place(_SIZES[kind])))
        stack.callback(shutil.rmtree, above)
        image, root = above / "image", above / "root"
        root.mkdir()
        image.touch()
        os.truncate(image, _SIZES[kind])
        _run(*_MAKE[kind], image)
        device = _run("losetup", "--find", "--show", image)
        stack.callback(_run, "losetup", "--detach", device)
        made = Volume(kind, device, root)
        try:
            made.mount()
        except OSError as exc:
            pytest.skip(f"{kind} cannot be mounted here: {exc}")
        stack.callback(made.unmount)
        yield made


def _place(size: int) -> str | None:
    """Memory, if it has plenty of room: how fast the disk is does not matter here."""
    try:
        found = os.statvfs("/dev/shm")
    except FileNotFoundError:
        return None
    return "/dev/shm" if found.f_bavail * found.f_frsize > 4 * size else None


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{command[0]} does not work here: {done.stderr.strip()}")
    return done.stdout.strip()


def _last_error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
