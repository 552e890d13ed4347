"""The engine: what runs between a runtime's entry and its exit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from pathlib import Path

from . import _spool
from ._calls import bounded
from ._compression import Compression
from ._deleting import delete_with_spool
from ._errors import CodecError, CorruptCheckpointError, KeyInUseError
from ._held import Held
from ._io_thread import IOThread
from ._keyring import Keyring
from ._records import Statistics, Status, decode_record
from ._slot import ALERT
from ._stopping import Stopping
from ._writer import Writer
from .abc import Store

_CLOSING = 10.0  # seconds past the flush's own time, to close the store
_PAGE = 500
_log = logging.getLogger("aiocheckpoint")


class Engine:
    """A store at work: its I/O thread, its writer, and the keys that are open.

    `owned` stores are closed at the end. Methods are called on the I/O thread.
    """

    def __init__(
        self,
        store: Store,
        spool_base: Path | None,
        stopping: Stopping,
        *,
        keyring: Keyring | None,
        compression: Compression,
        owned: bool,
        flush_timeout: float,
    ) -> None:
        self.store = store
        self.spool_base = spool_base
        self.keyring = keyring
        self.stopping = stopping
        self.flush_timeout = flush_timeout
        self.open: dict[str, object] = {}
        """By key, who has it open. Changed on the user's side, in steps that are atomic."""
        self._compression = compression
        self._owned = owned
        self.writer: Writer
        self.io = IOThread(self._finish, flush_timeout + _CLOSING)

    def reserve(self, key: str, owner: object) -> None:
        """From the user's side: have a key for `owner` alone in this runtime.

        Raises:
            KeyInUseError: another has it.
        """
        if self.open.setdefault(key, owner) is not owner:
            raise KeyInUseError(
                f"{key!r} is open in this runtime: share its checkpointer, or leave it first"
            )

    def release(self, key: str, owner: object) -> None:
        """From the user's side: let others have the key, if it is the owner's."""
        if self.open.get(key) is owner:
            del self.open[key]

    def statistics(self) -> Statistics:
        """From the user's side: the sums over the handles that are open."""
        holding = list(self.writer.holding)
        each = [held.statistics() for held in holding]
        errors = [one.last_error for one in each if one.last_error is not None]
        return Statistics(
            staged=sum(held.slot.newest_seq - held.slot.first for held in holding),
            stored=sum(held.commits for held in holding),
            coalesced=sum(one.coalesced for one in each),
            bytes=sum(one.bytes for one in each),
            lag=max((one.lag for one in each), default=0.0),
            spooled=bool(each) and all(one.spooled for one in each),
            errors=sum(one.errors for one in each),
            last_error=errors[-1] if errors else None,
        )

    def start(self) -> Future[None]:
        """From the user's side: have a writer made on the I/O loop."""
        return self.io.call(self._make_writer())

    async def _make_writer(self) -> None:
        self.writer = Writer(self.store, self._compression)

    async def _finish(self) -> None:
        await self.writer.finish(self.stopping.flush_time(self.flush_timeout))
        await self._end_work()
        if self.spool_base is not None:
            _spool.drop_directory(self.spool_base)
        if self._owned:
            try:
                async with asyncio.timeout(_CLOSING / 2):
                    await self.store.aclose()
            except TimeoutError:
                _log.warning("%s did not close in time: a call to it hangs", self.store.identity)

    async def _end_work(self) -> None:
        """Cancel claims, saves and restores that still run, and let them clean up before the loop's
        end would cancel them once more, in the midst of that."""
        working = list(self.io.working)
        for task in working:
            if not task.cancelling():
                task.cancel()
        if working:
            await asyncio.wait(working, timeout=_CLOSING / 4)

    def stop(self) -> None:
        """Tell every handle, flush, and cancel what still runs when patience is over."""
        for held in list(self.writer.holding):
            self.stop_one(held)
        self.stopping.cancel_naps()
        self.io.loop.call_later(self.stopping.patience, self.stopping.cancel_all)

    def stop_one(self, held: Held) -> None:
        slot = held.slot
        slot.stopping = True
        slot.attention = ALERT
        self.writer.flush(held, slot.newest_seq, slot.meta, lambda _: None)

    async def delete(self, key: str) -> None:
        """Delete a key that need not be open here."""
        head = await bounded(self.store.load(key), "load", key)
        if head is not None:
            await delete_with_spool(self.store, key, head.version, self.spool_base)

    async def pages(self, prefix: str, status: Status | None) -> AsyncGenerator[list[str], None]:
        """The keys, some at a time."""
        page: list[str] = []
        async for key in self.store.keys(prefix):
            if status is None or await self._status(key) == status:
                page.append(key)
            if len(page) == _PAGE:
                yield page
                page = []
        if page:
            yield page

    async def _status(self, key: str) -> Status | None:
        head = await bounded(self.store.load(key), "load", key)
        try:
            return None if head is None else decode_record(key, head.record)[0].status
        except (CorruptCheckpointError, CodecError) as exc:
            _log.warning("%s; it is left out of the listing", exc)
            return None
