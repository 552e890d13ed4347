"""Blobs on their way to an object service and back: in parts side by side where they are large."""

from __future__ import annotations

import asyncio
import io
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from .._errors import StoreUnavailableError
from ..abc import Source
from ._object_client import PART, PARTS_AT_ONCE, TIMEOUT, ObjectClient, Piece

T = TypeVar("T")


class Ask(Protocol):
    """Awaits a call of the client, and translates its errors; not what a source raises."""

    async def __call__(self, call: Awaitable[T], /) -> T: ...


async def send(
    client: ObjectClient,
    name: str,
    source: Source,
    ask: Ask,
    start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
) -> None:
    """Put what a source gives. Whoever fails or is cancelled leaves nothing of a large blob:
    `start` runs the tidying up."""
    size: int | None
    chunks: AsyncIterator[bytes] | AsyncIterator[memoryview]
    if isinstance(source, bytes):
        if len(source) <= PART:
            await ask(client.put(name, source))
            return
        size, chunks = len(source), _slices(source)
    else:
        first, whole = await _beginning(source)
        if whole:
            await ask(client.put(name, joined(first)))
            return
        size, chunks = None, _chain(first, source)
    upload = client.upload(name, size)
    try:
        async for chunk in chunks:
            await ask(upload.write(chunk))
        await ask(upload.finish())
    except BaseException as exc:
        tidying = start(_in_time(upload.abort()))
        if isinstance(exc, Exception):
            await asyncio.shield(tidying)
        raise


async def _in_time(tidying: Awaitable[None]) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(TIMEOUT):
            await tidying


async def pieces(
    client: ObjectClient, key: str, name: str, start: int, size: int | None
) -> AsyncIterator[bytes]:
    """The bytes of a key's object, a few pieces ahead of the reader; all of one content."""
    want = PART if size is None else min(PART, max(size, 1))
    first = await _piece(client, name, start, start + want, None)
    if first is None or size == 0:
        return
    if first.data:
        yield first.data
    end = first.total if size is None else min(first.total, start + size)
    at = start + len(first.data)
    tag = first.tag
    del first
    ahead: deque[asyncio.Task[Piece | None]] = deque()
    try:
        while at < end or ahead:
            while at < end and len(ahead) < PARTS_AT_ONCE:
                stop = min(at + PART, end)
                ahead.append(asyncio.ensure_future(_piece(client, name, at, stop, tag)))
                at = stop
            piece = await ahead[0]
            ahead.popleft()
            if piece is None:
                what = f"{name} was replaced while it was read; read it again"
                raise StoreUnavailableError(what, op="open_blob", key=key)
            yield piece.data
            del piece
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


async def _piece(
    client: ObjectClient, name: str, start: int, stop: int, tag: str | None
) -> Piece | None:
    """None if the object ends before, or has not that tag."""
    try:
        return await client.get_piece(name, start, stop, tag)
    except Exception as exc:
        answer = client.explain(exc)
        if answer is None or answer.absent or not (answer.past_the_end or answer.refused):
            raise
        return None


async def _slices(data: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(data)
    for at in range(0, len(view), PART):
        yield view[at : at + PART]


async def _beginning(source: AsyncIterator[bytes]) -> tuple[list[bytes], bool]:
    """The first chunks, more than a part or all there are; whether that is all."""
    first: list[bytes] = []
    size = 0
    async for chunk in source:
        first.append(chunk)
        size += len(chunk)
        if size > PART:
            return first, False
    return first, True


async def _chain(first: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while first:
        yield first.pop(0)
    async for chunk in rest:
        yield chunk


def joined(chunks: list[bytes]) -> bytes:
    """One after the other: a single large copy would keep the interpreter lock too long."""
    if len(chunks) == 1:
        return chunks[0]
    buffer = io.BytesIO()
    for chunk in chunks:
        buffer.write(chunk)
    return buffer.getvalue()
