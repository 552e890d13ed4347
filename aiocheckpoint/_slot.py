"""The slot of one key: the newest state wins. Pure: no await, no I/O but the spool's memory."""

from __future__ import annotations

import itertools
import os
import threading
import weakref

import msgspec

from ._codecs import BYTES
from ._errors import CheckpointError, ClosedError
from ._records import Status
from ._region import Stage, Staged, Tree
from ._spool import Lane, Spool

_LOOK_EVERY, _PORTION = 0.005, 128


class Attention:
    """A reason why the next `write()` should do more than stage: any that it has not seen."""

    __slots__ = ()


ALERT = Attention()  # never taken for seen: an error or a stop waits to be raised


class Meta(msgspec.Struct, frozen=True, gc=False):
    """What a record says of the run besides its state. Replaced, never changed."""

    attempt: int = 1
    burnt: int = 0
    status: Status = "running"
    result: bytes | None = None
    result_codec: str = ""
    version: int = 0
    """Counts the replacements."""


class Slot:
    """What is staged and what is stored, shared by the user's side and the I/O thread.

    Every field has one writing side, so none needs a lock. `Checkpointer.write` stages on the
    thread of the owning loop; `write_nowait` may run on any thread and keeps to `_foreign`. Their
    numbers come from one counter, atomic under the interpreter lock: the highest is the newest.
    """

    __slots__ = (
        "__weakref__",
        "_foreign",
        "_foreign_lane",
        "_foreign_lock",
        "_lane",
        "_plain",
        "_portion",
        "_portioned_at",
        "attention",
        "closed",
        "error",
        "files",
        "first",
        "idle",
        "key",
        "meta",
        "numbers",
        "raw",
        "saved",
        "seen",
        "seq",
        "seqs",
        "spool",
        "stage",
        "state",
        "stopping",
        "stored",
        "stored_meta",
        "tree_number",
    )

    def __init__(
        self, key: str, state: Staged | None, meta: Meta, spool: Spool | None, *, plain: bool
    ) -> None:
        self.key = key
        self.first = 0 if state is None else state.seq
        """The seq that the claim carried on; only higher ones are this claim's own."""
        # written by the user's side; `seq` after `state`, so that a state is never newer than
        # the number it is read under suggests
        self.numbers = itertools.count(self.first + 1)
        self.seqs = itertools.islice(self.numbers, 1)
        """The next few numbers: as many as `write()` may take before it looks at the clock."""
        self._portion = 1
        self._portioned_at = 0.0
        self.seq = self.first
        self.state: bytes | Staged | None = state
        self.files: Tree | None = None if state is None else state.tree
        """What plain states go with."""
        self.tree_number = 0
        """Which tree of the claim that is."""
        self.saved = (self.first, (self.first, 0))
        """The seq that files were staged under last, and when its state was given: after which
        seq, and in which save."""
        self.raw: type[bytes] | None = None
        """`bytes` while plain bytes may be staged without further ado; else nothing's type."""
        self.stage: Stage | None = None
        self.seen: Attention | None = None
        self.meta = meta
        self.closed: ClosedError | None = None
        self.spool = spool
        self._plain = plain
        self._lane = None if spool is None else Lane(spool, self._overflow)
        self._foreign: dict[int, Staged] = {}
        self._foreign_lane: Lane | None = None
        self._foreign_lock = threading.RLock()
        if plain:
            if self._lane is not None:
                self._lane.reserve(self.files)
            self._open_fast_path()
        # written by the I/O thread
        self.attention = Attention()
        self.idle = True
        self.stopping = False
        self.error: CheckpointError | None = None
        self.stored = self.first
        self.stored_meta = meta
        _slots.add(self)

    def refill(self, now: float) -> None:
        """Portion the numbers so that the next portion ends some 5 ms from now."""
        elapsed = max(now - self._portioned_at, 1e-6)
        self._portion = max(8, min(_PORTION, int(self._portion * _LOOK_EVERY / elapsed)))
        self._portioned_at = now
        self.seqs = itertools.islice(self.numbers, self._portion)

    def put(self, data: bytes, codec: str) -> int:
        """Stage from the owning loop's thread, whatever the codec. The slow way."""
        self.check_open()
        staged = Staged(next(self.numbers), data, codec, self.files)
        if self._lane is not None:
            self._lane.stage(staged)
        self.state = data if codec == BYTES else staged
        self.seq = staged.seq
        self._open_fast_path()
        return staged.seq

    def put_tree(
        self, tree: Tree, number: int, encoded: tuple[bytes, str] | None, since: int
    ) -> int:
        """Stage files, with their state or with the one that is newest, as one.

        From the owning loop's thread. Whoever looks, or stages from elsewhere, waits meanwhile:
        no state is ever seen with the other's files. It took a while to come here, and the call
        that came later wins: files of a higher `number` stay, and so does a state that was written
        since, when seq `since` was the newest, or saved under a higher number.
        """
        with self._foreign_lock:
            self.check_open()
            late = number < self.tree_number
            if late and self.files is not None:
                tree = self.files
            self.tree_number = max(number, self.tree_number)
            self.raw = None
            self.files = tree
            # a signal handler may stage at any point: what it has staged by the time that we look
            # must have a lower number
            seq = next(self.numbers)
            newest = self.newest()
            called = since, number
            if newest is not None:
                saved, when = self.saved
                before = when if newest.seq == saved else (newest.seq, 0)
                if encoded is None or before > called:
                    if late:
                        self._open_fast_path()
                        return newest.seq
                    encoded, called = (newest.data, newest.codec), before
            self.saved = seq, called
            staged = Staged(seq, *(encoded or (b"", "")), tree)
            if self._lane is not None:
                self._lane.stage(staged)
            self.state = staged
            self.seq = staged.seq
            self._open_fast_path()
        return staged.seq

    def put_foreign(self, data: bytes, codec: str) -> int:
        """Stage from any thread. The lock is reentrant: a signal handler may interrupt a put."""
        with self._foreign_lock:
            self.check_open()
            staged = Staged(next(self.numbers), data, codec, self.files)
            if self.spool is not None:
                if self._foreign_lane is None:
                    self._foreign_lane = Lane(self.spool, self._overflow)
                self._foreign_lane.stage(staged)
            self._foreign[staged.seq] = staged
            for seq in list(self._foreign):
                if seq < staged.seq:
                    self._foreign.pop(seq, None)
        return staged.seq

    def newest(self) -> Staged | None:
        """The newest staged or carried state and its files, or None if there is none yet."""
        with self._foreign_lock:  # not between put_tree's files and their state
            seq, state, files = self.seq, self.state, self.files
            if self._foreign:
                other = max(self._foreign.values())
                if other.seq > seq:
                    return other
        if state is None or type(state) is Staged:
            return state
        assert type(state) is bytes
        return Staged(seq, state, BYTES, files)

    @property
    def newest_seq(self) -> int:
        return max(self.seq, *self._foreign.copy()) if self._foreign else self.seq

    @property
    def dirty(self) -> bool:
        """True if something is staged that is not stored."""
        return (
            self.seq > self.stored
            or self.meta is not self.stored_meta
            or (bool(self._foreign) and self.newest_seq > self.stored)
        )

    @property
    def alert(self) -> bool:
        """True if the next `write()` has something to raise."""
        return self.stopping or self.error is not None or self.closed is not None

    @property
    def spooled(self) -> bool:
        """True if the newest staged state outlives the process."""
        staged = self.newest()
        lanes = (self._lane, self._foreign_lane)
        return staged is not None and any(lane and lane.takes(staged) for lane in lanes)

    @property
    def spooled_tree(self) -> str:
        """The id of the files that the states in the spool go with."""
        region = None if self._lane is None else self._lane.region
        return "" if region is None else region.tree

    def check_open(self) -> None:
        if self.closed is not None:
            raise self.closed.with_traceback(None)

    def close(self, reason: ClosedError) -> None:
        """Refuse every later put; what is staged stays.

        Called on the I/O thread it may meet a `write()` half done: one that stages too late to be
        seen here finds attention raised, and then `closed`.
        """
        with self._foreign_lock:  # whoever passed its check_open() has staged
            self.closed = reason
            self.raw = None  # not `stage`, which a write() may just have looked at
        self.attention = ALERT

    def release(self) -> None:
        """All is stored and nobody reads any more: let go of the state."""
        self.state = None
        self._foreign.clear()

    def forked(self) -> None:
        """In a forked child: let go of the parent's regions and of a lock it may have held."""
        self._foreign_lock = threading.RLock()
        self._lane = self._foreign_lane = self.spool = None
        self.stored, self.stored_meta = self.newest_seq, self.meta  # the parent's to store
        self.close(
            ClosedError(
                f"the checkpointer of {self.key!r} belongs to the parent process:"
                " open the key again in this one"
            )
        )

    def _overflow(self, seq: int, data: bytes) -> None:
        if self._lane is not None:
            self._lane.stage(Staged(seq, data, BYTES, self.files))
            self._open_fast_path()

    def _open_fast_path(self) -> None:
        if not self._plain:
            return
        region = None if self._lane is None else self._lane.region
        if region is not None:
            tree_id = "" if self.files is None else self.files.id
            if (region.codec, region.tree) != (BYTES, tree_id):
                self.raw = None  # the next plain bytes must first get a region of their own
                return
        self.stage = None if region is None else region.stage
        self.raw = bytes


def _forked() -> None:
    for slot in list(_slots):
        slot.forked()


_slots: weakref.WeakSet[Slot] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
