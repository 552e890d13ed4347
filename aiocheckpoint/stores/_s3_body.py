"""The body of a large request, for botocore to sign and aiohttp to send, without a copy."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence

_BITE = 256 << 10


class Body:
    """Buffers one after the other, seen as a file by botocore and as a stream by aiohttp.

    As bytes aiohttp would warn of them, as a file it would read them in a thread, 64 KiB a hop.
    """

    def __init__(self, buffers: Sequence[bytes | memoryview]) -> None:
        self._bites = [
            memoryview(buffer)[at : at + _BITE]
            for buffer in buffers
            for at in range(0, len(buffer), _BITE)
        ]
        self._size = sum(map(len, buffers))
        self._next = 0

    def __len__(self) -> int:
        return self._size

    def read(self, size: int = -1) -> bytes | memoryview:
        """The next bytes, some at a time."""
        if self._next == len(self._bites):
            return b""
        self._next += 1
        return self._bites[self._next - 1]

    def tell(self) -> int:
        return sum(map(len, itertools.islice(self._bites, self._next)))

    def seek(self, offset: int, whence: int = 0) -> int:
        """To the beginning or the end; nobody needs more."""
        if offset or whence == 1:
            raise ValueError("only whole bodies are read")
        self._next = len(self._bites) if whence == 2 else 0
        return self.tell()

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for bite in self._bites:
            yield bite
