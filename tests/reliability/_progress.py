"""What a process that is meant to be killed says of itself, in memory that outlives it."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path

RING = 1 << 18
"""Of the newest so many states it is known when they were staged."""


class Progress(ctypes.Structure):
    """Whole numbers in a mapped file, each of them stored in one step."""

    started: int
    """1 once the process runs."""
    opened: int
    """1 once it has read what was there, ..."""
    found: int
    """... which was this state."""
    begun: int
    """The newest state that it has begun to stage."""
    staged: int
    """The newest whose `write()` or `save()` has returned."""
    first: int
    """The number of its first state."""
    safe: int
    """The newest that must not be lost."""
    ended: int
    """1 once it has left well."""
    commit_began: int
    """When the commit under way began, in ns; 0: none is."""
    commit_took: int
    """How long the last one took, in ns."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("started", "opened", "found", "begun", "staged")),
        *(
            (name, ctypes.c_uint64)
            for name in ("first", "safe", "ended", "commit_began", "commit_took")
        ),
        ("times", ctypes.c_uint64 * RING),
    ]
    times: ctypes.Array[ctypes.c_uint64]

    @classmethod
    def at(cls, path: Path) -> Progress:
        """The file's; it is made if it is not there."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, ctypes.sizeof(cls))
            return cls.from_buffer(mmap.mmap(fd, ctypes.sizeof(cls)))
        finally:
            os.close(fd)

    def has_staged(self, number: int) -> None:
        self.times[number % RING] = time.monotonic_ns()
        self.staged = number

    def staged_at(self, number: int) -> int:
        return int(self.times[number % RING])
