"""Commits on their way to the store: in batches if it has transactions, else side by side."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec
import xxhash

from ._calls import PUTS_AT_ONCE, bounded
from ._compression import QUICK, WORTH, Compression, compress
from ._errors import StoreError, StoreUnavailableError
from ._heads import generation_name, state_name
from ._records import INLINE_LIMIT, Blob, Record, encode_record
from .abc import Put, Store, Version

Outcome = Version | StoreError


class Sender(Protocol):
    """Whoever has one put on its way."""

    def settle(self, outcome: Outcome, /) -> None:
        """Told the outcome, once."""


Commit = tuple[Put, Sender]


class _Waiting:
    """Turns an outcome into a future's."""

    def __init__(self, future: asyncio.Future[Outcome]) -> None:
        self._future = future

    def settle(self, outcome: Outcome, /) -> None:
        if not self._future.done():
            self._future.set_result(outcome)


_AT_ONCE = 64
"""Commits under way at a time, in stores without transactions."""
_log = logging.getLogger("aiocheckpoint")


class Commits:
    """Sends puts to a store and hands each its outcome. Lives on the I/O loop.

    `next_due` gives a commit that was not sent here yet, made at that moment of what is newest
    then, or None.
    """

    def __init__(
        self,
        store: Store,
        next_due: Callable[[], Commit | None],
        compression: Compression = None,
    ) -> None:
        self.store = store
        self.compression = compression
        self._next_due = next_due
        self._loop = asyncio.get_running_loop()
        self._ready: deque[Commit] = deque()
        self._running = 0
        self._moved = 0.0  # when a commit last began or ended
        self._pumping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._large = asyncio.Semaphore(PUTS_AT_ONCE)

    @property
    def waiting_since(self) -> float:
        """Since when the store has had commits and answered none, by the loop's time; infinity if
        it has none."""
        return self._moved if self._running else math.inf

    def send(self, put: Put, sender: Sender) -> None:
        self._ready.append((put, sender))
        self.pump_soon()

    async def outcome(self, put: Put) -> Version:
        """Send one put and wait; its version, or its error raised."""
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self.send(put, _Waiting(future))
        outcome = await future
        if isinstance(outcome, StoreError):
            raise outcome
        return outcome

    def pump_soon(self) -> None:
        """Start what may, once all that happens now has happened: it makes one batch."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self.pump)

    def pump(self) -> None:
        """Start what may start."""
        self._pumping = False
        most = 1 if self.store.transactional else _AT_ONCE
        while self._running < most and (batch := self._batch()):
            self._running += 1
            self._moved = self._loop.time()
            self.start(self._commit(batch))

    def _batch(self) -> list[Commit]:
        batch: list[Commit] = []
        keys: set[str] = set()
        while commit := self._ready.popleft() if self._ready else self._next_due():
            key = commit[0].key
            if key in keys:  # claimed anew while an earlier handle's last commit still waits
                self._ready.appendleft(commit)
                break
            keys.add(key)
            batch.append(commit)
            if not self.store.transactional:
                break
        return batch

    async def _commit(self, batch: list[Commit]) -> None:
        puts = [put for put, _ in batch]
        outcomes: list[Outcome]
        try:
            key = puts[0].key if len(puts) == 1 else None
            outcomes = list(await bounded(self.store.commit(puts), "commit", key))
            if len(outcomes) != len(puts):
                answers = f"{len(outcomes)} answers to {len(puts)} puts: mend the store"
                raise StoreError(answers, op="commit", key=key)
        except StoreError as exc:
            outcomes = [exc] * len(puts)
        finally:
            self._running -= 1
            self._moved = self._loop.time()
        for (_, sender), outcome in zip(batch, outcomes, strict=True):
            sender.settle(outcome)
        self.pump()

    async def put_blobs(
        self, record: Record, data: bytes, about_to_put: Callable[[str], object] = str
    ) -> tuple[Record, bytes]:
        """Store what must be durable before the head; the header that names it, and its frame.

        `about_to_put` is told the name of each blob: one may be there although its put has failed.
        """
        key = record.key
        if record.blob is not None:  # the state has been put before
            return record, encode_record(record, b"")
        if self.compression is not None and (small := await _compressed(data)) is not None:
            record = msgspec.structs.replace(record, compression=self.compression, size=len(data))
            data = small
        if len(data) > INLINE_LIMIT:
            name = state_name(record)
            about_to_put(name)
            digesting = asyncio.ensure_future(
                asyncio.to_thread(xxhash.xxh3_128_digest, data)
            )  # beside the disk, which takes longer
            async with self._large:
                put = self.store.put_blob(key, name, data)
                await bounded(put, "put_blob", key, size=len(data))
            blob = Blob(name, len(data), await digesting)
            record = msgspec.structs.replace(record, blob=blob)
            data = b""
        return record, encode_record(record, data)

    async def put_generation(
        self, record: Record, frame: bytes, about_to_put: Callable[[str], object] = str
    ) -> None:
        """Store a copy of a record, to stand in for a damaged head."""
        name = generation_name(record)
        about_to_put(name)
        put = self.store.put_blob(record.key, name, frame)
        await bounded(put, "put_blob", record.key, size=len(frame))

    def collect(
        self, key: str, names: list[str], left: Callable[[str], object] | None = None
    ) -> None:
        """Delete blobs that nothing names any more, in the background. `left` is told the names
        of those to try again; without it they are left for the next claim."""
        self.start(self._delete_blobs(key, names, left))

    async def _delete_blobs(
        self, key: str, names: list[str], left: Callable[[str], object] | None
    ) -> None:
        try:
            await bounded(self.store.delete_blobs(key, names), "delete_blobs", key)
        except StoreError as exc:
            if left is not None and isinstance(exc, StoreUnavailableError):
                for name in names:
                    left(name)
            else:
                many = len(names)
                _log.info("%d old blobs of %r are left for the next claim: %s", many, key, exc)

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something beside the commits, known to `finish`."""
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, timeout: float) -> None:
        """Give what is under way, and nobody waits for, that many seconds; then cut it short."""
        until = self._loop.time() + timeout
        while self._tasks and (left := until - self._loop.time()) > 0:
            await asyncio.wait(self._tasks, timeout=left)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


async def _compressed(data: bytes) -> bytes | None:
    if len(data) < WORTH:
        return None
    return compress(data) if len(data) <= QUICK else await asyncio.to_thread(compress, data)
