"""`memory:`: a dict, for tests."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from uuid import uuid4

from .._errors import ConflictError, StoreError
from ..abc import Head, Put, Source, Version
from ._blobs import CHUNK, check_blob_name


class MemoryStore:
    """Keeps everything in this object, for as long as somebody holds it.

    `aclose()` drops nothing, so that what one runtime wrote the next one reads. Several runtimes
    may use it at the same time.
    """

    transactional = True
    min_interval = 0.1
    spool_dir: Path | None = None

    def __init__(self) -> None:
        self.identity = f"memory:{uuid4().hex}"
        self._lock = threading.Lock()
        self._heads: dict[str, Head] = {}
        self._blobs: dict[str, dict[str, bytes]] = {}
        self._versions = itertools.count(1)

    @classmethod
    def from_url(cls, url: str) -> MemoryStore:
        if url.partition(":")[2] not in ("", "//"):
            raise ValueError(f"{url!r}: the store in memory has no path; use 'memory:'")
        return cls()

    async def load(self, key: str) -> Head | None:
        with self._lock:
            return self._heads.get(key)

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        with self._lock:
            return [self._replace(put) for put in batch]

    def _replace(self, put: Put) -> Version | StoreError:
        head = self._heads.get(put.key)
        if (head and head.version) != put.expect:
            return ConflictError("another version is the head", op="commit", key=put.key)
        version = next(self._versions)
        self._heads[put.key] = Head(bytes(put.record), version)
        return version

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        check_blob_name(name)
        if isinstance(source, bytes):
            data = source
        else:
            buffer = io.BytesIO()
            async for chunk in source:
                buffer.write(chunk)
            data = buffer.getvalue()
        with self._lock:
            self._blobs.setdefault(key, {})[name] = data

    async def open_blob(
        self, key: str, name: str, start: int = 0, size: int | None = None
    ) -> AsyncIterator[bytes]:
        check_blob_name(name)
        with self._lock:
            data = self._blobs.get(key, {}).get(name)
        if data is None:
            raise FileNotFoundError(f"no blob {name!r} under {key!r}")
        end = len(data) if size is None else min(len(data), start + size)
        for at in range(start, end, CHUNK):
            yield data[at : min(end, at + CHUNK)]

    async def list_blobs(self, key: str) -> list[str]:
        with self._lock:
            return sorted(self._blobs.get(key, ()))

    async def delete_blobs(self, key: str, names: Sequence[str]) -> None:
        for name in names:
            check_blob_name(name)
        with self._lock:
            blobs = self._blobs.get(key, {})
            for name in names:
                blobs.pop(name, None)
            if not blobs:
                self._blobs.pop(key, None)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        with self._lock:
            keys = sorted(key for key in self._heads if key.startswith(prefix))
        for key in keys:
            yield key

    async def delete(self, key: str, expect: Version) -> None:
        with self._lock:
            head = self._heads.get(key)
            if head is None or head.version != expect:
                raise ConflictError("another version is the head", op="delete", key=key)
            del self._heads[key]

    async def aclose(self) -> None:
        """Drops nothing: the object is the store."""
