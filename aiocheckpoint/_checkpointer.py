"""The handle of one open key."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import get_ident
from typing import Any, Generic, TypeVar, overload

import anyio
import anyio.lowlevel

from . import _io_thread
from ._codecs import Coder
from ._errors import StoppedError
from ._exit import Exit
from ._heads import read_head
from ._held import Held
from ._io_thread import IOThread
from ._keeper import Keeper
from ._pace import YIELD_EVERY
from ._records import Checkpoint, Statistics
from ._slot import ALERT
from ._writer import Writer

T = TypeVar("T")
D = TypeVar("D")

KEEP: Any = ...  # the state, in a save without one


class Checkpointer(Generic[T]):
    """Reads and writes the state of one key. Made by `open`, `Runtime.open` and `Runtime.run`.

    Any task of the loop that opened it may use it; only `write_nowait` may be called from other
    threads.
    """

    def __init__(
        self, held: Held, writer: Writer, io: IOThread, coder: Coder[T], flush_timeout: float
    ) -> None:
        self._held = held
        self._slot = held.slot
        self._writer = writer
        self._io = io
        self._coder = coder
        self._flush_timeout = flush_timeout
        self._keeper = Keeper(held, writer, io, flush_timeout)
        self._exit = Exit(held, writer, io)
        self._thread: int | None = get_ident()
        """The thread whose loop owns it; None if it is used by `write_nowait` alone, from any."""
        self._rounds = writer.rounds
        self._pace = writer.rounds.pace()
        self._stops = False
        """True for an attempt of the runner, which a stop ends at its next write."""

    @property
    def key(self) -> str:
        """The key that it holds."""
        return self._slot.key

    @property
    def epoch(self) -> int:
        """How many times the key has been claimed, this claim included."""
        return self._held.record.epoch

    @property
    def attempt(self) -> int:
        """Which attempt of its run this is, from 1; it survives the process."""
        return self._slot.meta.attempt

    @property
    def resumed(self) -> bool:
        """True if there was a state, or files, when the key was opened."""
        return self._slot.first > 0

    @property
    def due(self) -> bool:
        """True if a state written now would be stored at once, not merely replace one that waits.

        For states that cost much to build: `if cp.due: await cp.write(build())`. What is never
        built is neither in the spool nor flushed at the end, so write the last one regardless.
        Also true when the runtime stops, so that the loop comes to its write.
        """
        slot = self._slot
        return self.stopping or (slot.idle and not slot.dirty) or slot.error is not None

    @property
    def stopping(self) -> bool:
        """True once the runtime has been asked to stop."""
        return self._slot.stopping

    async def write(self, state: T) -> int:
        """Stage a state as the newest; return its seq. It never waits for storage.

        The state is encoded before `write` returns, so it may be changed afterwards. It is stored
        in the background, unless a newer one replaces it first. Not a yield point each time: in a
        tight loop it yields about every 10 ms.

        Raises:
            CodecError: the state is None or cannot be encoded; nothing is staged.
            FencedError: a newer attempt has claimed the key.
            StoreError: the store refused an earlier state for good; this one is staged, and tried.
            StoppedError: the runtime stops and this is an attempt of `run`; this state is staged.
            ClosedError: the handle is closed.
        """
        slot = self._slot
        if type(state) is slot.raw:  # plain bytes, the hot path: no call that can be spared
            try:
                seq = next(slot.seqs)
            except StopIteration:
                slot.refill(self._look())
                seq = next(slot.numbers)
            if slot.stage is not None:
                slot.stage(seq, state)  # type: ignore[arg-type]
            slot.state = state  # type: ignore[assignment]
            slot.seq = seq
        else:
            slot.check_open()
            seq = slot.put(*self._coder.encode(state))
            self._look()
        if slot.attention is not slot.seen:
            await self._attend()
        return seq

    def write_nowait(self, state: T) -> int:
        """Like `write`, but synchronous: from callbacks, signal handlers and any thread.

        It neither yields nor raises StoppedError.
        """
        slot = self._slot
        slot.check_open()
        seq = slot.put_foreign(*self._coder.encode(state))
        error = slot.error
        if slot.idle:
            self._knock()
        if error is not None:
            raise error.with_traceback(None)
        return seq

    def _knock(self) -> None:
        """Have the writer see to this slot. While it is about, it comes to that by itself."""
        rounds = self._rounds
        rounds.knocking.append(self._held)
        if not rounds.going:
            self._pace.breathed = time.monotonic()
            self._io.post(rounds.hear)

    def _look(self) -> float:
        rounds = self._rounds
        expected = 0.0 if rounds.knocking and not rounds.going else rounds.expected
        return self._pace.look(self._slot, expected, rounds.answer)

    async def _attend(self) -> None:
        slot, pace = self._slot, self._pace
        slot.check_open()  # the runtime may have ended in the midst of this write
        if get_ident() != self._thread:
            raise RuntimeError(
                f"write() of {slot.key!r} is for the event loop that opened it: call write_nowait()"
                " from other threads"
            )
        attention = slot.attention
        error = slot.error  # as it was before this state; a success would clear it
        if slot.idle:
            self._knock()
        if attention is not ALERT:
            slot.seen = attention
        pace.slot = slot
        if attention is ALERT or time.monotonic() - pace.yielded > YIELD_EVERY:
            # first, so that who swallows errors can be cancelled
            await anyio.lowlevel.checkpoint()
            pace.yielded = time.monotonic()
        if error is not None:
            raise error.with_traceback(None)
        self._stop_here()

    def _stop_here(self) -> None:
        slot = self._slot
        if slot.stopping and self._stops:
            seq = slot.newest_seq
            raise StoppedError(f"the runtime is stopping; {slot.key!r} resumes at seq {seq}")

    @overload
    async def read(self) -> T | None: ...
    @overload
    async def read(self, default: D) -> T | D: ...
    async def read(self, default: object = None) -> object:
        """The newest state, staged or stored; `default` if there has been none.

        It is decoded anew each time, so that this attempt sees what the next one would.

        Raises:
            CodecError: the state was written by another codec, or does not fit the type.
        """
        await anyio.lowlevel.checkpoint()
        return self._read(default)

    def _read(self, default: object) -> object:
        self._slot.check_open()
        staged = self._slot.newest()
        if staged is None or not staged.codec:
            return default
        return self._coder.decode(staged.data, staged.codec)

    async def flush(self) -> None:
        """Return when all that is staged now is stored.

        Raises:
            FlushTimeoutError: not within `flush_timeout`.
            FencedError, StoreError: it never will be.
        """
        self._slot.check_open()
        await self._keeper.until_stored(self._slot.newest_seq)

    async def save(
        self, path: str | os.PathLike[str], *, state: T = KEEP, move: bool = False
    ) -> int:
        """Keep a file or a directory tree, with the state that it goes with; return the seq.

        Both become one record: `restore()` gives the files of the record whose state `read()`
        gives. Without `state` the newest one stays. `write()` keeps the files; the next `save`
        replaces them, and stores only what of them has changed. Of overlapping calls the one that
        came later wins: a state that is written while a `save` is under way stays, with its files.

        It returns when all is stored. Until then the files must not be changed; cancelled before
        that, or failing, it leaves the checkpoint as it was, or, if the record was under way,
        stages the new one as a whole. Cancelled, it waits for the end of its work in the
        background, for 5 seconds at most.

        With `move=True` the file or directory is taken by rename (into the spool, which must be on
        the same file system), and it returns when that is staged: stored it is in the background,
        newest wins, like `write`. If the spool cannot take the state (over 4 MiB, or no room), it
        returns when all is stored. Refused or interrupted, it gives the files back.

        Kept are names, permissions, files' modification times, empty directories, and symbolic
        links that stay within the tree; owners, further attributes and hard links are not.

        Raises:
            OSError: the files are missing, cannot be read, were changed meanwhile, or are
                something else than files, directories and such links. `filename` says which.
                Or the directory holds the store or its spool; or, to be moved, is on another file
                system than the spool.
            ValueError: `move=True`, and there is no spool, or the store is encrypted.
            CodecError: the state is None or cannot be encoded.
            FencedError: a newer attempt has claimed the key. If that is known at the call, nothing
                is taken.
            StoreError: the store refuses them, or was unavailable for `flush_timeout`. Or, with
                `move=True`, it refused an earlier state for good; these are staged, and tried.
            FlushTimeoutError: they are in the store, but the record is not within
                `flush_timeout`; it goes on being tried.
            StoppedError: the runtime stops and this is an attempt of `run`; all is saved. Only if
                a `state` was given: without one more is to come.
            ClosedError: the handle is closed.
        """
        encoded = self._encoded(state)
        keep = self._keeper.move if move else self._keeper.save
        seq = await keep(_absolute(path), encoded)
        if encoded is not None:
            self._stop_here()
        return seq

    def _encoded(self, state: T) -> tuple[bytes, str] | None:
        """The state of a save, if it has one; refuses a save that may not be."""
        self._keeper.refuse_fenced()
        if self._thread not in (get_ident(), None):
            raise RuntimeError(
                f"save() of {self.key!r} is for the event loop that opened it: call it there, from"
                " a worker thread by anyio.from_thread.run"
            )
        return None if state is KEEP else self._coder.encode(state)

    async def restore(self, path: str | os.PathLike[str]) -> Path | None:
        """Make the files of the newest `save` anew; the path, or None if nothing was saved.

        A file comes back as a file and a tree as a tree: what is read is checked, and gets its name
        when it is complete. A new name appears whole, in one step. An empty directory is filled
        (it may be a mount): its names are moved into it one by one at the very end, and only a
        kill just then leaves a part. Failing or cancelled it leaves nothing, and waits for that,
        for 5 seconds at most; what a killed one has left (`.restoring-...`) the next one to the
        same path removes.

        Files of a `save(move=True)` that is not stored yet are waited for. While the store is
        unavailable it tries again, for `flush_timeout`.

        Raises:
            FileExistsError: there is something already, other than an empty directory for a tree.
            CorruptCheckpointError: the stored files are damaged, or would lead out of the tree.
            OSError: they cannot be written there.
            FencedError: a newer attempt has claimed the key, and replaced the files.
            StoreError, FlushTimeoutError: they cannot be read, or not be stored first.
            ClosedError: the handle is closed.
        """
        return await self._keeper.restore(_absolute(path))

    async def latest(self) -> Checkpoint | None:
        """The stored record, undecoded: metadata and the payload's bytes. It claims nothing, and
        does not look whether the files are there.

        Raises:
            CorruptCheckpointError, StoreError: it is damaged, or cannot be read.
        """
        self._slot.check_open()
        return await latest(self._io, self._writer, self.key)

    async def delete(self) -> None:
        """Delete the key and all its blobs. The handle is closed by it.

        Raises:
            FencedError: a newer attempt has claimed the key; nothing is deleted.
            StoreError: the store cannot do it.
        """
        self._slot.check_open()
        await _io_thread.result(self._io.call(self._writer.delete(self._held)))

    def statistics(self) -> Statistics:
        """Counts since the key was opened. Never waits."""
        return self._held.statistics()


def _absolute(path: str | os.PathLike[str]) -> Path:
    """What it means here and now, for another thread to use later."""
    return Path(path).absolute()


async def latest(io: IOThread, writer: Writer, key: str) -> Checkpoint | None:
    found = await _io_thread.result(io.call(read_head(writer.store, key, files=False)))
    return None if found is None else Checkpoint.of(found.record, found.data)
