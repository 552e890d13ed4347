"""Store calls as the core makes them: each ends within a time, with an error of our tree."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Awaitable
from typing import TypeVar

import xxhash

from ._errors import CheckpointError, CorruptCheckpointError, StoreError, StoreUnavailableError
from ._records import Blob
from .abc import Store

T = TypeVar("T")

OP_TIMEOUT = 30.0
"""Seconds after which a store call is given up, its outcome unknown."""
_RETRY_FIRST, _RETRY_MOST = 0.05, 2.0
_SLOWEST = 1 << 19  # bytes a second that a large blob may take on top
PUTS_AT_ONCE = 4
"""Large states under way at a time, and saves: more would share the link until none is in time."""
AHEAD = 64 << 20
"""Bytes of a blob that a store may ask for side by side before it has the first of them."""


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures before."""
    # https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    return min(_RETRY_MOST, _RETRY_FIRST * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)


async def bounded(call: Awaitable[T], op: str, key: str | None = None, size: int = 0) -> T:
    """Await a store call that moves `size` bytes.

    Raises:
        StoreUnavailableError: it failed in a way that may pass, or took too long.
        StoreError: it failed for good, or with an error that no store should raise.
        FileNotFoundError: there is no such blob (of `open_blob` only).
        CorruptCheckpointError, CodecError: it is sealed and cannot be opened (of `open_blob` only).
    """
    try:
        async with asyncio.timeout(OP_TIMEOUT + size / _SLOWEST):
            return await call
    except CheckpointError:
        raise
    except TimeoutError as exc:
        raise StoreUnavailableError("no answer in time", op=op, key=key) from exc
    except Exception as exc:
        if op == "open_blob" and isinstance(exc, FileNotFoundError):
            raise
        raise StoreError(f"unexpected {type(exc).__name__}: {exc}", op=op, key=key) from exc


async def read_checked(store: Store, key: str, blob: Blob, what: str) -> bytes:
    """A whole blob that a record names.

    Raises:
        CorruptCheckpointError: it is missing, cut short or damaged. `what` says what that is.
        StoreError: it cannot be read.
    """
    try:
        data = await read_blob(store, key, blob.name, blob.size)
    except FileNotFoundError:
        raise CorruptCheckpointError(f"{what} of {key!r} is missing: no {blob.name}") from None
    if len(data) != blob.size:
        raise CorruptCheckpointError(
            f"{what} of {key!r} is cut short: {len(data)} of {blob.size} bytes in {blob.name}"
        )
    if await asyncio.to_thread(xxhash.xxh3_128_digest, data) != blob.digest:
        raise CorruptCheckpointError(f"{what} of {key!r} is damaged: {blob.name}")
    return data


async def read_blob(store: Store, key: str, name: str, size: int) -> bytes:
    """A whole blob, gathered without one large copy under the interpreter lock."""

    async def gather() -> bytes:
        buffer = io.BytesIO()
        async for chunk in store.open_blob(key, name):
            buffer.write(chunk)
        return buffer.getvalue()

    return await bounded(gather(), "open_blob", key, size)
