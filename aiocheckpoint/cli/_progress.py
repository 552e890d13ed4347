"""Progress of long work: one line on stderr, if that is a terminal."""

from __future__ import annotations

import sys
import time

from ._text import counted, size_text

_EVERY = 0.2


class Progress:
    """Counts keys and bytes, and says so now and then. Silent unless somebody can see it."""

    def __init__(self, what: str, *, quiet: bool) -> None:
        self._what = what
        self._keys = 0
        self._size = 0
        self._next = time.monotonic() + _EVERY
        self._on = not quiet and sys.stderr.isatty()
        self._shown = 0

    def key(self) -> None:
        """One more key is done."""
        self._keys += 1
        self._show()

    def bytes(self, size: int) -> None:
        """So many bytes more have been moved."""
        self._size += size
        self._show()

    def clear(self) -> None:
        """Make way for another line."""
        if self._shown:
            sys.stderr.write("\r" + " " * self._shown + "\r")
            sys.stderr.flush()
            self._shown = 0

    def _show(self) -> None:
        if not self._on or (now := time.monotonic()) < self._next:
            return
        self._next = now + _EVERY
        size = f", {size_text(self._size)}" if self._size else ""
        text = f"{self._what}: {counted(self._keys, 'key')}{size}"
        sys.stderr.write("\r" + text.ljust(self._shown))
        sys.stderr.flush()
        self._shown = len(text)
