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
from ._heads import generation_name
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
        self.uploading: Moved | None = None
        """The moved tree that is being read; it stays, even if a newer one has replaced it."""
        self.stored_tree: Files | None = record.files
        """The tree of the newest record that is stored."""
        self.trees = itertools.count(1)
        self.saves: set[str] = set()
        """What is under way and builds on blobs, none of which is to be collected meanwhile."""
        self.blobs: list[tuple[frozenset[str], bool]] = []
        """Blobs named by each record put, oldest first, and whether its commit succeeded."""
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
            blob=last.blob if staged is not None and staged.seq == last.seq else None,
            files=None if staged is None else self.files_of(staged.tree),
        )

    def next_tree(self) -> str:
        """An id for the next tree."""
        return f"{self.record.claim.hex()}-{next(self.trees)}"

    def files_of(self, tree: Tree | None) -> Files | None:
        """The stored form of a tree; None if there is none, or none yet."""
        if isinstance(tree, Moved):
            stored = self.uploaded
            return stored if stored is not None and stored.id == tree.id else None
        return tree

    def outdated(self) -> list[Moved]:
        """Moved trees that are stored, or that a newer one has replaced before they were."""
        spool = self.slot.spool
        if spool is None or not spool.moved:
            return []
        # not what is newer than both: it was taken and is about to be staged
        newest = max(self._number(self.stored_tree), self._number(self.slot.files) - 1)
        return [
            moved
            for moved in list(spool.moved)
            if self._number(moved) <= newest and moved is not self.uploading
        ]

    def _number(self, tree: Tree | None) -> int:
        """Which of this claim's trees it is, from 1; 0 for one that it carried on, and none."""
        claim, _, number = ("" if tree is None else tree.id).rpartition("-")
        return int(number) if claim == self.record.claim.hex() else 0

    def note_blobs(self, record: Record) -> None:
        """Remember the blobs that a commit is about to name."""
        names = set() if record.files is None else set(record.files.blobs)
        if record.blob is not None:
            names.add(record.blob.name)
        if self.keep > 1:
            names.add(generation_name(record))
        if names or self.blobs:
            self.blobs.append((frozenset(names), False))

    def adopt_blobs(self, names: list[str], generations: list[frozenset[str]]) -> list[str]:
        """Right after the claim: take over the generations to keep; the names that may go."""
        self.blobs += [(generation, True) for generation in generations]
        self.note_blobs(self.record)
        if self.blobs:
            self.blobs[-1] = (self.blobs[-1][0], True)
        wanted = frozenset().union(*(names for names, _ in self.blobs))
        return [name for name in names if name not in wanted]

    def superfluous(self) -> list[str]:
        """After a success: the blobs that may go. One generation more than `keep` stays, for
        readers that are under way; what failed commits named goes once a later one succeeded."""
        if not self.blobs or self.saves:
            return []
        self.blobs[-1] = (self.blobs[-1][0], True)
        kept = 0
        for index in range(len(self.blobs) - 1, -1, -1):
            kept += self.blobs[index][1]
            if kept > self.keep:
                old, self.blobs = self.blobs[:index], self.blobs[index:]
                alive = frozenset().union(*(names for names, _ in self.blobs))
                if isinstance(tree := self.slot.files, Files):  # staged, and in no commit yet
                    alive |= tree.blobs
                return sorted(frozenset().union(*(names for names, _ in old)) - alive)
        return []

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
