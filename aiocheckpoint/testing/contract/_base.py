"""What the parts of the contract share: the two methods to write, and calls that assert."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from ..._errors import ConflictError, StoreError, StoreUnavailableError
from ...abc import Head, Put, Store, Version

T = TypeVar("T")


class Contract:
    """What a store's author writes."""

    @abstractmethod
    async def make_store(self) -> Store:
        """Another instance, over the same data for as long as the test runs.

        A store whose data are the instance itself may return the same one again.
        """

    @abstractmethod
    async def raw_head(self, store: Store, key: str) -> bytes | None:
        """The record that the key holds, read by other means than the store."""


async def put(store: Store, key: str, expect: Version | None, record: bytes) -> Version:
    """Commit one record; its version, or its error raised."""
    (answer,) = await store.commit([Put(key, expect, record)])
    if isinstance(answer, StoreError):
        raise answer
    return answer


async def race(store: Store, key: str, expect: Version | None, record: bytes) -> Version | None:
    """Commit one record, as often as the store is unavailable; None if somebody else did."""
    try:
        return await patiently(lambda: put(store, key, expect, record))
    except ConflictError:
        return None


async def close(*stores: Store) -> None:
    """Close each once."""
    for store in dict.fromkeys(stores):
        await store.aclose()


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Call it as often as the store is unavailable, which may be its answer to racing calls."""
    while True:
        try:
            return await call()
        except StoreUnavailableError:
            await asyncio.sleep(0.01)


async def loaded(store: Store, key: str) -> Head | None:
    return await patiently(lambda: store.load(key))


async def listed(store: Store, prefix: str = "") -> list[str]:
    return [key async for key in store.keys(prefix)]


async def chunked(chunks: list[bytes], error: Exception | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk
    if error is not None:
        raise error


async def read(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def refused(awaitable: Awaitable[Any], *errors: type[Exception]) -> None:
    """Assert that it raises one of `errors`, ConflictError if none is given."""
    wanted = errors or (ConflictError,)
    try:
        result = await awaitable
    except wanted:
        return
    raise AssertionError(f"{result!r} instead of an error")
