"""The writer: drains slots into a store. The only code that writes."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import msgspec

from ._calls import bounded
from ._errors import (
    CheckpointError,
    ClosedError,
    ConflictError,
    FencedError,
    StoreError,
    StoreUnavailableError,
)
from ._heads import digest, generation_name, state_name
from ._held import Held, Waiter, departing, ended, report
from ._records import INLINE_LIMIT, Blob, Record, decode_record, encode_record
from ._slot import ALERT, IDLE, Meta, Slot
from .abc import Put, Store, Version

Outcome = Version | StoreError
Done = Callable[[Outcome], object]

_TICK = 0.005
"""Seconds between two looks at the active slots; with the wait for the interpreter lock of a
computing thread (5 ms) it makes a tight loop yield about every 10 ms."""
_AT_ONCE = 64
"""Commits under way at a time, in stores without transactions."""
_RETRY_FIRST, _RETRY_MOST = 0.05, 2.0

_log = logging.getLogger("aiocheckpoint")


class Writer:
    """Commits what the slots of one store hold, newest first, as often as they may.

    One commit is under way and one state pending per key, so memory is bounded. All methods run
    on the I/O loop. State changes are plain methods; the coroutines only await the store.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.holding: set[Held] = set()
        self._loop = asyncio.get_running_loop()
        self._active: set[Held] = set()  # those whose slots are not idle
        self._due: dict[Held, None] = {}
        self._prepared: deque[tuple[Put, Done]] = deque()
        self._running = 0
        self._ticking = False
        self._launching = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._failing: set[str] = set()
        self._outage_began = 0.0

    # Slots become due.

    def woken(self, held: Held) -> None:
        """A slot was written to, or somebody waits for it."""
        slot = held.slot
        if held not in self.holding or held.fenced:
            return
        if slot.idle:
            slot.idle = False
            slot.attention = ALERT if slot.error or slot.stopping else object()
            held.clean_until = held.clean_until or time.monotonic()
            self._active.add(held)
            if not self._ticking:
                self._ticking = True
                self._loop.call_later(_TICK, self._tick)
        self._advance(held)

    def _tick(self) -> None:
        """Let the tasks of active slots yield, find slots whose time has come, rest the others."""
        now = self._loop.time()
        token = object()
        for held in list(self._active):
            slot = held.slot
            if slot.attention is not ALERT:
                slot.attention = token
            if held.busy or now < held.next_at:
                continue
            if slot.dirty:
                self._due[held] = None
            else:
                self._rest(held)
        if self._due:
            self._launch()
        self._ticking = bool(self._active)
        if self._ticking:
            self._loop.call_later(_TICK, self._tick)

    def _rest(self, held: Held) -> None:
        slot = held.slot
        slot.idle = True
        if slot.attention is not ALERT:
            slot.attention = IDLE
        held.clean_until = None
        self._active.discard(held)
        if slot.dirty:  # staged after we looked, before it could see that we rest
            self.woken(held)

    def _advance(self, held: Held) -> None:
        """Commit now, if there is something to commit and nothing speaks against it."""
        if held.busy or not held.slot.dirty:
            return
        now = self._loop.time()
        if now >= held.next_at or (held.urgent and not held.failures):
            self._due[held] = None
            if not self._launching:
                self._launching = True
                self._loop.call_soon(self._launch)

    # Due slots become commits.

    def submit(self, put: Put) -> asyncio.Future[Version]:
        """Send a commit of a claim or of a prepared record along with the others'."""
        future: asyncio.Future[Version] = self._loop.create_future()

        def done(outcome: Outcome) -> None:
            if future.done():
                return
            if isinstance(outcome, StoreError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self._prepared.append((put, done))
        self._launch()
        return future

    def _launch(self) -> None:
        self._launching = False
        limit = 1 if self.store.transactional else _AT_ONCE
        while self._running < limit and (self._due or self._prepared):
            batch = self._next_batch()
            if batch:
                self._running += 1
                self._start(self._commit(batch))

    def _next_batch(self) -> list[tuple[Put, Done]]:
        """All that is ready, for a transactional store; else the first."""
        batch: list[tuple[Put, Done]] = []
        while self._prepared:
            batch.append(self._prepared.popleft())
            if not self.store.transactional:
                return batch
        while self._due:
            held = next(iter(self._due))
            del self._due[held]
            commit = self._compose(held)
            if commit is not None:
                batch.append(commit)
                if not self.store.transactional:
                    break
        return batch

    def _compose(self, held: Held) -> tuple[Put, Done] | None:
        """Take what the slot holds now. None if blobs must be put first, which is then begun."""
        slot = held.slot
        meta = slot.meta
        staged = slot.newest()
        data = b"" if staged is None else staged.data
        held.busy = True
        record = held.record = held.next_record(staged, meta)
        started = self._loop.time()
        done = functools.partial(self._settle, held, record, meta, len(data), started)
        if len(data) > INLINE_LIMIT or held.keep > 1 or held.blobs:
            self._start(self._prepare(held, record, data, done))
            return None
        return Put(slot.key, held.version, encode_record(record, data)), done

    async def _prepare(self, held: Held, record: Record, data: bytes, done: Done) -> None:
        try:
            record, frame = await self.put_blobs(record, data, held.keep)
        except StoreError as exc:
            done(exc)
            return
        held.record = record
        held.note_blobs(record)
        self._prepared.append((Put(record.key, held.version, frame), done))
        self._launch()

    async def put_blobs(self, record: Record, data: bytes, keep: int) -> tuple[Record, bytes]:
        """Store what must be durable before the head; the header that names it, and its frame."""
        key = record.key
        if len(data) > INLINE_LIMIT:
            if record.blob is None:
                name = state_name(record)
                await bounded(
                    self.store.put_blob(key, name, data), "put_blob", key, size=len(data)
                )
                blob = Blob(name, len(data), await asyncio.to_thread(digest, data))
                record = msgspec.structs.replace(record, blob=blob)
            data = b""
        frame = encode_record(record, data)
        if keep > 1:
            name = generation_name(record)
            await bounded(self.store.put_blob(key, name, frame), "put_blob", key)
        return record, frame

    async def _commit(self, batch: list[tuple[Put, Done]]) -> None:
        puts = [put for put, _ in batch]
        outcomes: list[Outcome]
        try:
            key = puts[0].key if len(puts) == 1 else None
            outcomes = list(await bounded(self.store.commit(puts), "commit", key))
        except StoreError as exc:
            outcomes = [exc] * len(puts)
        self._running -= 1
        for (_, done), outcome in zip(batch, outcomes, strict=True):
            done(outcome)
        self._launch()

    # Commits end.

    def _settle(
        self, held: Held, record: Record, meta: Meta, size: int, started: float, outcome: Outcome
    ) -> None:
        slot = held.slot
        held.busy = False
        if isinstance(outcome, StoreError):
            self._failed(held, outcome)
            return
        held.version = outcome
        held.failures = 0
        if self._failing:
            self._recovered(slot.key)
        if record.seq != slot.stored:
            held.commits += 1
            held.bytes += size
        slot.stored = record.seq
        slot.stored_meta = meta
        held.clean_until = started
        held.next_at = started + held.min_interval
        if slot.error is not None:
            slot.error = None
            slot.attention = ALERT if slot.stopping else object()
        if held.waiters:
            self._tell(held)
        if held.blobs and (names := held.superfluous()):
            self.collect(slot.key, names)
        self._advance(held)

    def _tell(self, held: Held) -> None:
        slot = held.slot
        waiting = []
        for waiter in held.waiters:
            if waiter.seq <= slot.stored and waiter.meta is slot.stored_meta:
                _set(waiter.future)
            else:
                waiting.append(waiter)
        held.waiters = waiting
        held.urgent = bool(waiting)

    def _failed(self, held: Held, error: StoreError) -> None:
        held.errors += 1
        held.last_error = error
        if isinstance(error, ConflictError):
            held.busy = True
            self._start(self._reconcile(held))
        elif isinstance(error, StoreUnavailableError):
            self._retry_later(held, error)
        else:
            self._refused(held, error)

    def _retry_later(self, held: Held, error: StoreUnavailableError) -> None:
        # https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        wait = min(_RETRY_MOST, _RETRY_FIRST * 2.0 ** min(held.failures, 10))
        held.failures += 1
        held.next_at = self._loop.time() + wait * random.uniform(0.5, 1.0)
        if not self._failing:
            self._outage_began = time.monotonic()
            _log.warning("%s is unavailable (%s); retrying", self.store.identity, error)
        self._failing.add(held.slot.key)

    def _recovered(self, key: str) -> None:
        self._failing.discard(key)
        if not self._failing:
            lasted = time.monotonic() - self._outage_began
            _log.warning("%s is available again after %.1f s", self.store.identity, lasted)

    def _refused(self, held: Held, error: CheckpointError) -> None:
        """What no retry mends: the next write(), the waiters and the exit raise it."""
        slot = held.slot
        held.last_error = error
        self._failing.discard(slot.key)
        held.failures = 0
        slot.error = error
        slot.attention = ALERT
        slot.idle = True
        held.urgent = False
        self._active.discard(held)
        waiters, held.waiters = held.waiters, []
        for waiter in waiters:
            _set(waiter.future, error)

    async def _reconcile(self, held: Held) -> None:
        """After a conflict: is the head ours (an answer was lost), older (the store went back in
        time), or somebody's who claimed the key after us?"""
        key, mine = held.slot.key, held.record
        try:
            head = await bounded(self.store.load(key), "load", key)
            theirs = None if head is None else decode_record(key, head.record)[0]
        except StoreUnavailableError as exc:
            held.busy = False
            self._retry_later(held, exc)
            return
        except CheckpointError as exc:
            held.busy = False
            self._refused(held, exc)
            return
        held.busy = False
        if head is None or theirs is None:
            self._refused(held, FencedError(f"{key!r} was deleted while it was open here"))
        elif theirs.run != mine.run or (
            theirs.claim != mine.claim and theirs.epoch >= mine.epoch
        ):
            self._refused(
                held,
                FencedError(
                    f"{key!r} was claimed by a newer attempt: epoch {theirs.epoch}, ours is"
                    f" {mine.epoch}"
                ),
            )
        else:
            if theirs.claim != mine.claim:
                _log.warning("%s went back in time; claiming %r again", self.store.identity, key)
                held.record = msgspec.structs.replace(mine, blob=None)
            # not acknowledged yet even if it is our own state: what was read back may still be
            # on its way to the disk, so it is committed once more
            held.version = head.version
            held.next_at = 0.0
            self._advance(held)

    # Waiting, leaving.

    def flush(self, held: Held, seq: int, meta: Meta, future: Future[None]) -> None:
        """Have `future` done once this much is stored; its error is what prevents that."""
        slot = held.slot
        if held.fenced:
            _set(future, slot.error)
        elif held not in self.holding:
            _set(future, held.timed_out())
        elif slot.stored >= seq and slot.stored_meta is meta:
            _set(future)
        else:
            held.waiters.append(Waiter(seq, meta, future))
            held.urgent = True
            held.next_at = min(held.next_at, self._loop.time())
            self.woken(held)

    def leave(self, held: Held, timeout: float) -> None:
        """The handle is closed: store the rest, then let go. `held.leaving` says when and how.

        Past the time, `held.leaving` fails; the rest is stored all the same while the runtime
        lives, unless a later claim has taken it over.
        """
        leaving = held.leaving
        assert leaving is not None
        rest: Future[None] = Future()

        def over(_: Future[None]) -> None:
            timer.cancel()
            error = rest.exception()
            self._let_go(held, keep_spool=error is not None and not held.fenced)
            _set(leaving, error)

        def late() -> None:
            held.last_error = held.timed_out()
            _set(leaving, held.last_error)

        timer = self._loop.call_later(timeout, late)
        rest.add_done_callback(over)
        self.flush(held, held.slot.newest_seq, held.slot.meta, rest)

    def _let_go(self, held: Held, *, keep_spool: bool) -> None:
        self.holding.discard(held)
        if departing.get(place := (self.store.identity, held.slot.key)) is held:
            del departing[place]
        self._active.discard(held)
        self._due.pop(held, None)
        if held.slot.spool is not None and not keep_spool:
            held.slot.spool.remove()

    async def delete(self, held: Held) -> None:
        """Delete a key that we hold. Waits for the commit under way, which names the version."""
        slot = held.slot
        while held.busy:
            await asyncio.sleep(_TICK)
        if held.fenced:
            raise slot.error or held.timed_out()
        held.busy = True
        try:
            await self.delete_head(slot.key, held.version)
        except ConflictError:
            await self._reconcile(held)
            raise slot.error or StoreUnavailableError(
                "an earlier answer was lost; try again", op="delete", key=slot.key
            ) from None
        finally:
            held.busy = False
        slot.close(ClosedError(f"{slot.key!r} was deleted through this handle: open it again"))
        self._let_go(held, keep_spool=False)

    async def delete_head(self, key: str, version: Version) -> None:
        """Delete a head of this version, and the blobs that were there before."""
        names = await bounded(self.store.list_blobs(key), "list_blobs", key)
        await bounded(self.store.delete(key, version), "delete", key)
        if names:
            await bounded(self.store.delete_blobs(key, names), "delete_blobs", key)

    def collect(self, key: str, names: list[str]) -> None:
        """Delete blobs that nothing names any more, in the background."""
        self._start(self._delete_blobs(key, names))

    async def _delete_blobs(self, key: str, names: list[str]) -> None:
        try:
            await bounded(self.store.delete_blobs(key, names), "delete_blobs", key)
        except StoreError as exc:
            _log.info("%d old blobs of %r are left for the next claim: %s", len(names), key, exc)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, timeout: float) -> None:
        """Store what is held, in `timeout` seconds for handles that are still open and in what
        remains of their own time for closed ones; then let go of everything."""
        for held in list(self.holding):
            if held.leaving is None:
                held.leaving = Future()
                held.leaving.add_done_callback(functools.partial(_report, held))
                self.leave(held, timeout)
        await ended(*(held.leaving for held in self.holding if held.leaving))
        unstored = list(self.holding)
        if unstored:
            for task in list(self._tasks):
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for held in unstored:
            self._let_go(held, keep_spool=True)


def _set(future: Future[None], error: BaseException | None = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _report(held: Held, future: Future[None]) -> None:
    if error := future.exception():
        report(held, error)
