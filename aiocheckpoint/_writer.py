"""The writer: drains slots into a store. The only code that writes."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import deque
from concurrent.futures import Future

import msgspec

from ._calls import backoff, bounded
from ._commits import Commit, Commits, Outcome
from ._compression import WORTH, Compression
from ._deleting import delete_key
from ._errors import (
    CheckpointError,
    ClosedError,
    ConflictError,
    FencedError,
    StoreError,
    StoreUnavailableError,
)
from ._held import (
    Ended,
    Held,
    Taken,
    Waiter,
    departing,
    ended,
    lightened,
    report,
    report_failed,
    settle,
)
from ._outages import Outages
from ._records import INLINE_LIMIT, Record, decode_record, encode_record
from ._region import Moved, Tree
from ._rounds import Rounds
from ._saving import Saves
from ._slot import ALERT, Attention, Meta, Slot
from .abc import Put, Store

_PAUSE = 0.008  # seconds
_TIDYING = 2.0  # seconds that the end gives to what nobody waits for

_log = logging.getLogger("aiocheckpoint")


class Writer:
    """Commits what the slots of one store hold, newest first, as often as they may.

    One commit is under way and one state pending per key, so memory is bounded. All methods run
    on the I/O loop. State changes are plain methods; the coroutines only await the store.
    """

    def __init__(self, store: Store, compression: Compression = None) -> None:
        self.store = store
        self.commits = Commits(store, self._next_due, compression)
        self.holding: set[Held] = set()
        self.finishing = False
        self._loop = asyncio.get_running_loop()
        self.rounds = Rounds(self.woken, self._see_to, lambda: self.commits.waiting_since)
        self._due: deque[Held] = deque()
        self._outages = Outages(store.identity)
        self.saves = Saves(self.commits, self._outages)

    # Slots become due.

    def woken(self, held: Held) -> None:
        """A slot was written to, or somebody waits for it."""
        slot = held.slot
        if held not in self.holding or held.fenced:
            return
        if slot.idle:
            slot.idle = False
            if slot.alert:
                slot.attention = ALERT
            held.clean_until = held.clean_until or time.monotonic()
            self._look_at(held)
            self.rounds.begin()
        self._advance(held)

    def _look_at(self, held: Held) -> None:
        """See to an active slot again when its time has come, unless it is busy then."""
        if held in self.holding:
            self.rounds.look_at(held)

    def _see_to(self, held: Held) -> None:
        """Commit a slot or let it rest, as its time has come."""
        if held.busy or held.slot.idle:
            return  # a busy one is looked at when its commit has ended
        if self._loop.time() < held.next_at:
            self._look_at(held)
        elif held.slot.dirty:
            self._advance(held)
        else:
            self._rest(held)

    def _rest(self, held: Held) -> None:
        slot = held.slot
        held.clean_until = None
        self._idle(slot)
        if slot.dirty:  # staged after we looked, before it could see that we rest
            self.woken(held)

    def _idle(self, slot: Slot) -> None:
        if not slot.idle:
            slot.idle = True
            self.rounds.end()
        slot.attention = ALERT if slot.alert else Attention()

    def _advance(self, held: Held) -> None:
        """Commit now, if there is something to commit and nothing speaks against it."""
        if held.busy or held.due or held.deleted or not held.slot.dirty:
            return
        if held not in self.holding:
            return
        if self._loop.time() >= held.next_at or (held.urgent and not held.failures):
            held.due = True
            self._due.append(held)
            if held.urgent:
                self.commits.pump()  # a round of the loop is time that somebody waits
            else:
                self.commits.pump_soon()

    # Due slots become commits.

    def _next_due(self) -> Commit | None:
        while self._due:
            held = self._due.popleft()
            held.due = False
            if held.busy or held not in self.holding:
                continue
            if commit := self._compose(held):
                return commit
        return None

    def _compose(self, held: Held) -> Commit | None:
        """Take what the slot holds now. None if it must be compressed, or blobs be put first, which
        is then begun."""
        slot = held.slot
        meta = slot.meta
        staged = slot.newest()
        data = b"" if staged is None else staged.data
        held.busy = True
        record = held.record = held.next_record(staged, meta)
        held.taken = Taken(record.seq, meta, len(data), self._loop.time())
        if (
            len(data) > INLINE_LIMIT
            or (self.commits.compression is not None and len(data) >= WORTH)
            or held.keep > 1
            or not held.ledger.empty
            or slot.files is not None
        ):
            tree = None if staged is None else staged.tree
            self.commits.start(self._with_blobs(held, record, data, tree))
            return None
        return Put(slot.key, held.version, encode_record(record, data)), held

    async def _with_blobs(self, held: Held, record: Record, data: bytes, tree: Tree | None) -> None:
        key = record.key
        try:
            if isinstance(tree, Moved) and record.files is None:
                held.uploaded = await self.saves.upload(held, tree)
                record = msgspec.structs.replace(record, files=held.uploaded)
            if record.files is not None and record.files == held.forgotten:
                raise StoreError(
                    "the store went back in time, to before the files were in it: save them again",
                    op="save",
                    key=key,
                )
            put = held.ledger.put
            record, frame = await self.commits.put_blobs(record, data, put)
            if held.keep > 1:
                await self.commits.put_generation(record, frame, put)
        except StoreError as exc:
            held.settle(exc)
        except FencedError as exc:
            held.busy = False
            self._refused(held, exc)
        except Exception as exc:
            what = f"unexpected {type(exc).__name__}: {exc}"
            held.settle(StoreError(what, op="commit", key=key))
        else:
            held.record = record
            held.ledger.name(record)
            self.commits.send(Put(key, held.version, frame), held)

    # Commits end.

    def settled(self, held: Held, outcome: Outcome) -> None:
        """A commit has ended, well or not."""
        slot = held.slot
        held.busy = False
        if isinstance(outcome, StoreError):
            self._failed(held, outcome)
            return
        taken = held.taken
        held.version = outcome
        held.failures = 0
        self._outages.over(slot.key)
        if taken.seq != slot.stored:
            held.commits += 1
            held.bytes += taken.size
        slot.stored = taken.seq
        slot.stored_meta = taken.meta
        held.clean_until = taken.at
        held.next_at = taken.at + held.min_interval
        held.stored_tree = held.record.files
        self.saves.drop_moved(held, before=held.tree_number(held.stored_tree) + 1)
        if slot.error is not None:
            slot.error = None
            slot.attention = ALERT if slot.alert else Attention()
        if held.waiters:
            self._tell(held)
        if not held.ledger.empty:
            self.saves.collect(held)
        if self.rounds.knocking:
            self.rounds.hear()  # they go into the next batch
        if held in self.holding:  # not let go of just now
            self._look_at(held)
            self._advance(held)
        self.rounds.rest()

    def _tell(self, held: Held) -> None:
        waiters, held.waiters = held.waiters, []
        for waiter in waiters:
            if held.covers(waiter):
                waiter.ended(None)
            else:
                held.waiters.append(waiter)
        held.urgent = bool(held.waiters)

    def _failed(self, held: Held, error: StoreError) -> None:
        held.errors += 1
        held.last_error = lightened(error)
        if isinstance(error, ConflictError):
            held.busy = True
            self.commits.start(self._reconcile(held))
        elif isinstance(error, StoreUnavailableError):
            self._retry_later(held, error)
        else:
            self._refused(held, error)

    def _retry_later(self, held: Held, error: StoreUnavailableError) -> None:
        held.next_at = self._loop.time() + backoff(held.failures)
        held.failures += 1
        self._look_at(held)
        self._outages.begin(held.slot.key, error)

    def _refused(self, held: Held, error: CheckpointError) -> None:
        """What no retry mends: the next write(), the waiters and the exit raise it."""
        slot = held.slot
        held.last_error = error
        self._outages.over(slot.key)  # it did answer
        held.failures = 0
        slot.error = error
        held.urgent = False
        self._idle(slot)
        waiters, held.waiters = held.waiters, []
        for waiter in waiters:
            waiter.ended(error)
        if slot.newest_seq != held.taken.seq:
            self.woken(held)  # what was staged since may fare better

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
        fenced = held.fenced_by(theirs)
        if fenced is not None:
            held.busy = False
            self._refused(held, fenced)
            return
        assert head is not None
        assert theirs is not None
        if theirs.claim != mine.claim:
            _log.warning("%s went back in time; claiming %r again", self.store.identity, key)
        if (theirs.claim, theirs.commit) != (mine.claim, mine.commit):
            # blobs may have gone with what the store forgot
            held.record = msgspec.structs.replace(mine, blob=None)
            try:
                await self.saves.look_for_files(held)
            except StoreError as exc:
                held.busy = False
                self._failed(held, exc)
                return
        held.busy = False
        # not acknowledged yet even if it is our own state: what was read back may still be on its
        # way to the disk, so it is committed once more
        held.version = head.version
        held.next_at = 0.0
        self._look_at(held)
        self._advance(held)

    # Waiting, leaving.

    def flush(self, held: Held, seq: int, meta: Meta, ended: Ended) -> None:
        """Call `ended` once this much is stored, with None, or with the error that prevents it."""
        waiter = Waiter(seq, meta, ended)
        if held.fenced:
            ended(held.slot.error)
        elif held.covers(waiter):
            ended(None)
        elif held not in self.holding:
            ended(held.timed_out())
        else:
            held.waiters.append(waiter)
            held.urgent = True
            held.next_at = min(held.next_at, self._loop.time())
            self.woken(held)

    def flush_all(self, ended: Ended) -> None:
        """The same for all that is staged now in every open handle; the first error counts."""
        everything = list(self.holding)
        left = len(everything) + 1
        failed: BaseException | None = None

        def one(error: BaseException | None) -> None:
            nonlocal left, failed
            left -= 1
            failed = failed or error
            if not left:
                ended(failed)

        for held in everything:
            self.flush(held, held.slot.newest_seq, held.slot.meta, one)
        one(None)

    def leave(self, held: Held, timeout: float) -> None:
        """The handle is closed: store the rest, then let go. `held.leaving` says when and how.

        Past the time, `held.leaving` fails; the rest is stored all the same while the runtime
        lives, unless a later claim has taken it over.
        """
        leaving = held.leaving
        assert leaving is not None
        held.left = True
        departing[self.store.identity, held.slot.key] = held

        def late() -> None:
            held.last_error = held.timed_out()
            settle(leaving, held.last_error)

        def over(error: BaseException | None) -> None:
            timer.cancel()
            self._let_go(held, keep_spool=error is not None and not held.fenced)
            if isinstance(error, StoreError) and leaving.done():  # it was to go on being tried
                report(held, error)
            settle(leaving, error)

        timer = self._loop.call_later(timeout, late)
        self.flush(held, held.slot.newest_seq, held.slot.meta, over)

    def _let_go(self, held: Held, *, keep_spool: bool) -> None:
        """Have no more to do with it. Whoever still waits is told."""
        slot = held.slot
        self.holding.discard(held)
        self.rounds.forget_others(self.holding)
        self._outages.forget(slot.key)
        self._idle(slot)
        if departing.get(place := (self.store.identity, slot.key)) is held:
            del departing[place]
        waiters, held.waiters = held.waiters, []
        for waiter in waiters:
            waiter.ended(None if held.covers(waiter) else slot.error or held.timed_out())
        if slot.spool is not None and not keep_spool:
            if slot.spool.moved:  # what may take its time
                self.commits.start(asyncio.to_thread(slot.spool.remove))
            else:
                self._loop.call_soon(slot.spool.remove)
        if held.left and not slot.dirty:
            slot.release()

    async def delete(self, held: Held) -> None:
        """Delete a key that we hold. Waits for the commit under way, which names the version."""
        slot = held.slot
        while held.busy:  # noqa: ASYNC110 - rare, and not worth an event per key
            await asyncio.sleep(_PAUSE)
        if held.fenced:
            raise slot.error or held.timed_out()
        held.busy = True
        deleted_tree = held.tree_number(slot.files)
        try:
            await delete_key(self.store, slot.key, held.version)
            held.deleted = True
        except ConflictError:
            await self._reconcile(held)
            raise slot.error or StoreUnavailableError(
                "an earlier answer was lost; try again", op="delete", key=slot.key
            ) from None
        finally:
            held.busy = False
            self._advance(held)
        if names := held.ledger.abandoned():
            self.commits.collect(slot.key, names)
        self._outages.over(slot.key)
        slot.close(ClosedError(f"{slot.key!r} was deleted through this handle: open it again"))
        self.saves.set_aside(held, after=deleted_tree)
        self._let_go(held, keep_spool=False)

    async def finish(self, timeout: float) -> None:
        """Store what is held, in `timeout` seconds for handles that are still open and in what
        remains of their own time for closed ones; then let go of everything."""
        self.finishing = True
        for held in list(self.holding):
            if held.leaving is None:
                held.slot.close(ClosedError("the runtime is closed: open the key in a new one"))
                held.leaving = Future()
                held.leaving.add_done_callback(functools.partial(report_failed, held))
            if not held.left:
                self.leave(held, timeout)
        await ended(*(held.leaving for held in self.holding if held.leaving))
        unstored = list(self.holding)
        await self.commits.finish(0.0 if unstored else _TIDYING)
        for held in unstored:
            self._let_go(held, keep_spool=True)
