"""Pieces: a stream of bytes, cut anew."""

from __future__ import annotations

from collections.abc import AsyncIterator


class Pieces:
    """A stream of bytes that comes in pieces of any size, taken in sizes that are wanted."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self._rest = memoryview(b"")

    async def take(self, size: int) -> memoryview:
        """So many bytes; fewer at the end of the stream."""
        parts = []
        while size:
            if not self._rest:
                if (piece := await anext(self._source, None)) is None:
                    break
                self._rest = memoryview(piece)
                continue
            part, self._rest = self._rest[:size], self._rest[size:]
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    async def aclose(self) -> None:
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()
