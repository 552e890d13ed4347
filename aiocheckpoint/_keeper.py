"""The keeper: the user's side of waiting until things are stored, and of saving files."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future
from pathlib import Path

import anyio

from . import _io_thread
from ._errors import ClosedError, FencedError
from ._held import Held, into
from ._io_thread import IOThread
from ._writer import Writer

_PATIENCE = 5.0  # seconds that a cancelled save or restore has to end


class Keeper:
    """Keeps the files of one open key. Called from the loop that owns the handle, or, if it has
    no such loop, from the I/O thread's. Paths are absolute."""

    __slots__ = ("_flush_timeout", "_held", "_io", "_slot", "_writer")

    def __init__(self, held: Held, writer: Writer, io: IOThread, flush_timeout: float) -> None:
        self._held = held
        self._slot = held.slot
        self._writer = writer
        self._io = io
        self._flush_timeout = flush_timeout

    async def until_stored(self, seq: int) -> None:
        """Return when this much is stored; see `Checkpointer.flush` for what it raises."""
        future: Future[None] = Future()
        self._io.post(self._writer.flush, self._held, seq, self._slot.meta, into(future))
        with anyio.move_on_after(self._flush_timeout):
            await _io_thread.result(future)
            return
        raise self._held.timed_out()

    def refuse_fenced(self) -> None:
        """Raise what a handle that is closed, or known to be fenced, raises for everything."""
        self._slot.check_open()
        if isinstance(error := self._slot.error, FencedError):
            raise error.with_traceback(None)

    async def save(self, path: Path, encoded: tuple[bytes, str] | None) -> int:
        """Put files to the store, stage them with their state, and wait until that is stored."""
        held, slot, saves = self._held, self._slot, self._writer.saves
        number, since = next(held.trees), slot.newest_seq
        tree_id = held.tree_id(number)
        self._io.post(held.ledger.begin, tree_id)
        try:
            saving = saves.save(held, tree_id, path, self._flush_timeout)
            files = await _io_thread.run(self._io, saving, _PATIENCE)
            seq = slot.put_tree(files, number, encoded, since)
        finally:
            with contextlib.suppress(ClosedError):
                self._io.post(saves.over, held, tree_id)
        await self.until_stored(seq)
        return seq

    async def move(self, path: Path, encoded: tuple[bytes, str] | None) -> int:
        """Take files into the spool, and stage them with their state."""
        held, slot = self._held, self._slot
        spool = slot.spool
        if spool is None:
            raise ValueError(
                f"save({str(path)!r}, move=True) needs a spool to move it into, and {slot.key!r}"
                " has none: open it with spool= a directory, or save with move=False"
            )
        if spool.staging is not None:
            raise ValueError(
                f"save({str(path)!r}, move=True) would leave the files in clear in the spool, and"
                f" {slot.key!r} is encrypted: save with move=False, and remove them when it returns"
            )
        number, since = next(held.trees), slot.newest_seq
        await _io_thread.result(self._io.call(self._writer.saves.check(held, path)))
        self.refuse_fenced()  # before it is taken: afterwards nobody would have it
        error = slot.error
        # in one step as far as a cancellation can see: what is taken is staged
        moved = spool.take(path, held.tree_id(number))
        try:
            seq = slot.put_tree(moved, number, encoded, since)
        except BaseException:
            if slot.files is not moved:
                spool.give_back(moved, path)
            raise
        self._io.post(self._writer.woken, held)
        if not slot.spooled:  # nothing in the spool says whose it is
            await self.until_stored(seq)
        elif error is not None:
            raise error.with_traceback(None)
        return seq

    async def restore(self, target: Path) -> Path | None:
        """Make the newest files anew, once they are stored."""
        held, slot, saves = self._held, self._slot, self._writer.saves
        me = object()
        self._io.post(held.ledger.begin, me)
        try:
            while True:
                slot.check_open()
                staged = slot.newest()
                if staged is None or staged.tree is None:
                    return None
                if held.files_of(staged.tree) is None:
                    await self.until_stored(staged.seq)
                restoring = saves.restore(held, staged.tree, target, self._flush_timeout)
                if await _io_thread.run(self._io, restoring, _PATIENCE):
                    return target
        finally:
            with contextlib.suppress(ClosedError):
                self._io.post(held.ledger.end, me)
