"""Records what a program does to the files below a directory, by standing in for functions of `os`.

The recorder holds a lock during each call, so that the order of the record is the order of the
calls. What goes past `os` it does not see: tracing the same program with strace shows that.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from ._nameless import shown, with_names
from ._torn import Op

_STORES = f"{os.sep}aiocheckpoint{os.sep}stores{os.sep}"
_BETWEEN = {"<lambda>", "_do", "_work", "_within", "_replace"}  # leads to more than one place
_RWF_SYNC: int = getattr(os, "RWF_SYNC", 0)

_real = {
    name: getattr(os, name)
    for name in (
        "open",
        "write",
        "pwrite",
        "pwritev",
        "ftruncate",
        "truncate",
        "posix_fallocate",
        "fsync",
        "fdatasync",
        "rename",
        "replace",
        "link",
        "symlink",
        "unlink",
        "remove",
        "mkdir",
        "rmdir",
    )
    if hasattr(os, name)
}


def under(root: str, path: str) -> str | None:
    """The path below the root; None if it is not there."""
    path = os.path.normpath(path)
    if path == root:
        return ""
    return path[len(root) + 1 :] if path.startswith(f"{root}/") else None


class Recorder:
    """While it is entered, `ops` has every operation on what is below `root`, in every thread."""

    def __init__(self, root: Path) -> None:
        self._root = str(root.resolve())
        self._lock = threading.RLock()  # the garbage collector may close files in the middle
        self._mapped: dict[str, bytes] = {}
        self._ops: list[Op] = []

    def __enter__(self) -> Recorder:
        for name in _real:
            setattr(os, name, getattr(self, f"_{name}"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name, function in _real.items():
            setattr(os, name, function)

    @property
    def ops(self) -> list[Op]:
        return list(with_names(self._ops))

    def mark(self, kind: str, number: int) -> None:
        """Note what the program was about to stage, or what was acknowledged."""
        with self._lock:
            self._look_at_maps()
            self._ops.append(Op(kind, at=number))

    def _look_at_maps(self) -> None:
        """What was written through memory: the spool's regions, as far as they have changed."""
        for path in Path(self._root).glob("**/.spool/*/*.*[0-9]"):
            name = str(path.relative_to(self._root))
            data = path.read_bytes()
            if data != self._mapped.get(name):
                self._mapped[name] = data
                self._ops.append(Op("mapped", name, data=data))

    def _place(self, path: Any, dir_fd: int | None = None) -> str | None:
        name = os.fsdecode(path)
        if name.startswith("/proc/self/fd/"):
            return self._of(int(name.rpartition("/")[2]))
        above = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
        return under(self._root, os.path.join(above, name))

    def _of(self, fd: int) -> str | None:
        return under(self._root, shown(os.readlink(f"/proc/self/fd/{fd}")))

    def _note(self, kind: str, place: str | None, **about: Any) -> None:
        if place is not None:
            self._ops.append(Op(kind, place, **about))

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        with self._lock:
            place = self._place(path, dir_fd) if flags & (os.O_CREAT | os.O_TRUNC) else None
            existed = place is None or os.path.lexists(f"{self._root}/{place}")
            fd: int = _real["open"](path, flags, mode, dir_fd=dir_fd)
            if not existed:
                self._note("create", place)
            elif flags & os.O_TRUNC:
                self._note("truncate", place)
            return fd

    def _write(self, fd: int, data: Any) -> int:
        with self._lock:
            place = self._of(fd)
            at = 0 if place is None else os.lseek(fd, 0, os.SEEK_CUR)
            done: int = _real["write"](fd, data)
            self._note("write", place, at=at, data=_start(data, done, place))
            return done

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        with self._lock:
            done: int = _real["pwrite"](fd, data, offset)
            place = self._of(fd)
            self._note("write", place, at=offset, data=_start(data, done, place))
            return done

    def _pwritev(self, fd: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
        with self._lock:
            done: int = _real["pwritev"](fd, buffers, offset, flags)
            place = self._of(fd)
            self._note("write", place, at=offset, data=_start(b"".join(buffers), done, place))
            if flags & _RWF_SYNC:
                self._note("sync", place, site=site_of(sys._getframe(1)))
            return done

    def _ftruncate(self, fd: int, size: int) -> None:
        with self._lock:
            _real["ftruncate"](fd, size)
            self._note("truncate", self._of(fd), at=size)

    def _truncate(self, path: Any, size: int) -> None:
        with self._lock:
            _real["truncate"](path, size)
            self._note("truncate", self._place(path), at=size)

    def _posix_fallocate(self, fd: int, offset: int, size: int) -> None:
        with self._lock:
            _real["posix_fallocate"](fd, offset, size)
            self._note("reserve", self._of(fd), at=offset + size)

    def _fsync(self, fd: int) -> None:
        with self._lock:
            _real["fsync"](fd)
            self._note("sync", self._of(fd), site=site_of(sys._getframe(1)))

    def _fdatasync(self, fd: int) -> None:
        with self._lock:
            _real["fdatasync"](fd)
            self._note("sync", self._of(fd), site=site_of(sys._getframe(1)))

    def _rename(
        self,
        src: Any,
        dst: Any,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        with self._lock:
            _real["rename"](src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            to = self._place(dst, dst_dir_fd)
            self._note("rename", self._place(src, src_dir_fd), to=to)

    _replace = _rename

    def _link(
        self,
        src: Any,
        dst: Any,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        with self._lock:
            fds = {"src_dir_fd": src_dir_fd, "dst_dir_fd": dst_dir_fd}
            _real["link"](src, dst, **fds, follow_symlinks=follow_symlinks)
            to = self._place(dst, dst_dir_fd)
            self._note("link", self._place(src, src_dir_fd), to=to)

    def _symlink(
        self, src: Any, dst: Any, is_dir: bool = False, *, dir_fd: int | None = None
    ) -> None:
        with self._lock:
            _real["symlink"](src, dst, is_dir, dir_fd=dir_fd)
            self._note("symlink", self._place(dst, dir_fd), to=os.fsdecode(src))

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        with self._lock:
            _real["unlink"](path, dir_fd=dir_fd)
            self._note("unlink", self._place(path, dir_fd))

    _remove = _unlink

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        with self._lock:
            _real["mkdir"](path, mode, dir_fd=dir_fd)
            self._note("mkdir", self._place(path, dir_fd))

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        with self._lock:
            _real["rmdir"](path, dir_fd=dir_fd)
            self._note("rmdir", self._place(path, dir_fd))


def _start(data: Any, size: int, place: str | None) -> bytes:
    return b"" if place is None else bytes(memoryview(data)[:size])


def site_of(frame: FrameType | None) -> str:
    """The functions of the stores that led to a call, innermost first."""
    names = []
    while frame is not None:
        code = frame.f_code
        if _STORES in code.co_filename and code.co_name not in _BETWEEN:
            names.append(code.co_qualname)
            if code.co_name == "__init__":
                break
        frame = frame.f_back
    return " < ".join(names)
