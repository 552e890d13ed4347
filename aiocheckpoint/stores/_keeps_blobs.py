"""The store's calls about blobs, for stores whose blobs are kept by something of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from ..abc import Source


class Blobs(Protocol):
    """What keeps the blobs; each method as the store's."""

    async def put(self, key: str, name: str, source: Source) -> None: ...
    def open(
        self, key: str, name: str, start: int = 0, size: int | None = None
    ) -> AsyncIterator[bytes]: ...
    async def names(self, key: str) -> list[str]: ...
    async def delete(self, key: str, names: Sequence[str]) -> None: ...


class KeepsBlobs:
    """Passes the calls on to `_blobs`."""

    _blobs: Blobs

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        await self._blobs.put(key, name, source)

    def open_blob(
        self, key: str, name: str, start: int = 0, size: int | None = None
    ) -> AsyncIterator[bytes]:
        return self._blobs.open(key, name, start, size)

    async def list_blobs(self, key: str) -> list[str]:
        return await self._blobs.names(key)

    async def delete_blobs(self, key: str, names: Sequence[str]) -> None:
        await self._blobs.delete(key, names)
