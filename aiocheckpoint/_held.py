"""What the I/O thread knows of one open key."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

import msgspec

from ._errors import FencedError, FlushTimeoutError, StoreError
from ._ledger import Ledger
from ._records import Files, Record, Statistics
from ._region import Moved, Staged, Tree
from ._slot import Meta, Slot
from .abc import Version

E = TypeVar("E", bound=BaseException)

_log = logging.getLogger("aiocheckpoint")


Ended = Callable[[BaseException | None], object]
"""Told once that a wait is over: with None, or with the error that ended it."""


class Waiter(NamedTuple):
    """Somebody who waits until this much is stored."""

    seq: int
    meta: Meta
    ended: Ended


class Taken(msgspec.Struct, frozen=True, gc=False):
    """What was newest in a slot when a commit was made."""

    seq: int
    meta: Meta
    size: int
    at: float
    """The loop's time."""


class Held:
    """A claimed key: its slot, its place in the store, its commit under way.

    Touched on the I/O thread only, but for `slot` and `statistics()`.
    """

    def __init__(
        self,
        slot: Slot,
        record: Record,
        version: Version,
        settled: Callable[[Held, Version | StoreError], None],
        *,
        keep: int,
        min_interval: float,
    ) -> None:
        self.slot = slot
        self._settled = settled
        self.record = record
        """The newest header that was put to the store, whether it is known to have arrived."""
        self.version = version
        self.keep = keep
        self.min_interval = min_interval
        self.busy = False
        """True iff a commit, or the reading back after one, is under way."""
        self.due = False
        """True iff it waits for its turn to be committed."""
        self.taken = Taken(slot.first, slot.meta, 0, 0.0)
        """What the newest commit was made of."""
        self.urgent = False
        """True while somebody waits: the interval between commits does not count."""
        self.next_at = 0.0
        """The loop's time before which no commit begins, unless it is urgent."""
        self.awaited: float | None = None
        """The time of its entry in the writer's calendar, if there is one."""
        self.failures = 0
        self.waiters: list[Waiter] = []
        self.leaving: Future[None] | None = None
        """Set once the handle is closed; done when all is stored, or its time is over."""
        self.left = False
        """True once the writer has been told of it; an interrupt may have come between."""
        self.deleted = False
        """True once the key was deleted through this handle."""
        self.uploaded: Files | None = None
        """What has become of the newest moved tree that was put to the store."""
        self.stored_tree: Files | None = record.files
        """The tree of the newest record that is stored."""
        self.trees = itertools.count(1)
        """Numbers for trees, drawn by the user's side."""
        self.forgotten: Files | None = None
        """The tree that a store which went back in time has no more, if we know of one."""
        self.ledger = Ledger(keep)
        self.commits = 0
        self.bytes = 0
        self.errors = 0
        self.last_error: BaseException | None = None
        self.clean_until: float | None = None
        """When the stored state was last known to be the newest; None while it is."""

    def settle(self, outcome: Version | StoreError, /) -> None:
        """The commit under way has ended so: for its writer to see to."""
        self._settled(self, outcome)

    @property
    def fenced(self) -> bool:
        return isinstance(self.slot.error, FencedError)

    def covers(self, waiter: Waiter) -> bool:
        """True if what the waiter waits for is stored, or was deleted on purpose."""
        slot = self.slot
        stored = slot.stored >= waiter.seq and slot.stored_meta.version >= waiter.meta.version
        return stored or self.deleted

    def next_record(self, staged: Staged | None, meta: Meta) -> Record:
        """The header of the next commit. (claim, commit) is never used twice."""
        last = self.record
        own = staged is not None and staged.seq > self.slot.first
        put = staged is not None and staged.seq == last.seq and last.blob is not None
        return Record(
            key=last.key,
            run=last.run,
            claim=last.claim,
            epoch=last.epoch,
            commit=last.commit + 1,
            attempt=meta.attempt,
            burnt=meta.burnt,
            status=meta.status,
            result=meta.result,
            result_codec=meta.result_codec,
            seq=0 if staged is None else staged.seq,
            origin=last.claim if own else last.origin,
            codec="" if staged is None else staged.codec,
            created=time.time(),
            blob=last.blob if put else None,
            files=None if staged is None else self.files_of(staged.tree),
            compression=last.compression if put else "",
            size=last.size if put else 0,
        )

    def files_of(self, tree: Tree | None) -> Files | None:
        """The stored form of a tree; None if there is none, or none yet."""
        if isinstance(tree, Moved):
            stored = self.uploaded
            return stored if stored is not None and stored.id == tree.id else None
        return tree

    def tree_id(self, number: int) -> str:
        """The id of this claim's n-th tree, from 1."""
        return f"{self.record.claim.hex()}-{number}"

    def tree_number(self, tree: Tree | str | None) -> int:
        """Which of this claim's trees it is, or has the id; 0 for one that it carried on, and for
        none."""
        tree_id = tree if isinstance(tree, str) else "" if tree is None else tree.id
        claim, _, number = tree_id.rpartition("-")
        return int(number) if claim == self.record.claim.hex() else 0

    def fenced_by(self, theirs: Record | None) -> FencedError | None:
        """The error that this head of our key is to us; None if the claim is still ours, or the
        store went back to before it."""
        key, mine = self.slot.key, self.record
        if theirs is None:
            return FencedError(f"{key!r} was deleted while it was open here")
        if theirs.run != mine.run or (theirs.claim != mine.claim and theirs.epoch >= mine.epoch):
            return FencedError(
                f"{key!r} was claimed by a newer attempt: epoch {theirs.epoch}, ours is"
                f" {mine.epoch}"
            )
        return None

    def timed_out(self) -> FlushTimeoutError:
        slot = self.slot
        staged, stored = slot.newest_seq, slot.stored
        safe = "; the spool keeps it for the next open() on this machine" if slot.spooled else ""
        return FlushTimeoutError(
            f"the checkpoint of {slot.key!r} is not stored in time: staged seq {staged}, stored"
            f" seq {stored} (last error: {self.last_error}){safe}",
            key=slot.key,
            staged=staged,
            stored=stored,
        )

    def statistics(self) -> Statistics:
        slot = self.slot
        staged, stored = slot.newest_seq, slot.stored
        pending = int(staged != stored)
        since = self.clean_until
        behind = slot.dirty and since is not None
        return Statistics(
            staged=staged,
            stored=stored,
            coalesced=max(0, staged - slot.first - self.commits - pending),
            bytes=self.bytes,
            lag=time.monotonic() - since if behind and since is not None else 0.0,
            spooled=slot.spooled,
            errors=self.errors,
            last_error=self.last_error,
        )


departing: dict[tuple[str, str], Held] = {}
"""By store identity and key: what this process has closed and perhaps not yet stored."""


if hasattr(os, "register_at_fork"):  # what a parent's threads store, no child can wait for
    os.register_at_fork(after_in_child=departing.clear)


async def ended(*futures: Future[None]) -> None:
    """Wait on the I/O loop, also for futures of another runtime's; their errors are not ours."""
    # shielded: who gives up waiting must not cancel what others wait for as well
    waits = [asyncio.shield(asyncio.wrap_future(future)) for future in futures]
    await asyncio.gather(*waits, return_exceptions=True)


def lightened(error: E) -> E:
    """The error, to be kept: what its frames hold, such as a whole record, is let go.

    The frames are not cleared: that closes coroutines which caught the same error and go on.
    """
    cause: BaseException | None = error
    while cause is not None and cause.__traceback__ is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    return error


def settle(future: Future[None], error: BaseException | None) -> None:
    """Have a future done with None, or failed, unless it is already."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def into(future: Future[None]) -> Ended:
    """Have a future told."""
    return functools.partial(settle, future)


def report(held: Held, error: BaseException) -> None:
    """Where nobody is there to raise it to: one ERROR line, and the statistics."""
    held.last_error = error
    _log.error("leaving %r: %s", held.slot.key, error)


def report_failed(held: Held, future: Future[None]) -> None:
    if error := future.exception():
        report(held, error)
