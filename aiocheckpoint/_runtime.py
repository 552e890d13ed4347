"""The runtime: owns a store, its I/O thread, and the handles that are open on it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, TypeVarTuple, Unpack, overload

import anyio
import xxhash

from . import _io_thread, _spool
from ._calls import bounded
from ._checkpointer import Checkpointer, latest
from ._claim import Decide, claim
from ._codecs import Coder
from ._errors import ClosedError, KeyInUseError
from ._held import Held
from ._io_thread import IOThread
from ._keys import check_key, store_name
from ._policy import RetryPolicy
from ._records import Checkpoint, Statistics, Status, decode_record
from ._runner import Run, plain_open
from ._signals import SignalHandlers
from ._slot import ALERT
from ._stopping import Stopping
from ._task import Task, as_task
from ._writer import Writer, into
from .abc import Codec, Store
from .stores import open_store

T = TypeVar("T")
R = TypeVar("R")
Args = TypeVarTuple("Args")
SpoolOption = Literal["auto"] | str | os.PathLike[str] | None

_CLOSING = 10.0  # seconds past the flush's own time, to close the store
_PAGE = 500


class Runtime:
    """Checkpoints in one store: handles, runs, look-ups. An async context manager.

    Args:
        store: A URL (`sqlite:jobs.db`, `file:checkpoints`, `memory:`), a path (`.db`, `.sqlite`:
            SQLite; else a directory), or a Store, which you close yourself.
        keep: Generations to keep, 1 or more: with 2 or more a damaged record is replaced by the
            newest good one before it.
        min_interval: Shortest time in seconds between two commits of one key; None: the store's
            own (0.1 for local stores). A flush never waits for it.
        flush_timeout: Seconds that leaving a handle, and `flush()`, wait for the store.
        spool: Where staged states outlive the process: "auto" (beside a local store's data), a
            directory, or None for nowhere.
        stop_signals: Signals that call `stop()`; a second one cancels at once. Main thread only.
        grace: Seconds from `stop()` until everything has ended, flushes included.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | Store,
        *,
        keep: int = 1,
        min_interval: float | None = None,
        flush_timeout: float = 30.0,
        spool: SpoolOption = "auto",
        stop_signals: Sequence[int] = (),
        grace: float = 25.0,
    ) -> None:
        self._url = _check_store(store)
        self._keep = _check_keep(keep)
        self._min_interval = _check_seconds("min_interval", min_interval)
        self._flush_timeout = _check_some_seconds("flush_timeout", flush_timeout)
        self._spool = _check_spool(spool)
        self._stopping = Stopping(_check_some_seconds("grace", grace))
        self._signals = SignalHandlers(stop_signals, self._on_signal)
        self._open: dict[str, object] = {}
        self._io: IOThread | None = None
        self._writer: Writer
        self._store: Store
        self._spool_base: Path | None

    async def __aenter__(self) -> Self:
        if self._io is not None:
            raise ClosedError("a runtime is entered once: make a new one")
        url = self._url
        self._store = open_store(url) if isinstance(url, (str, os.PathLike)) else url
        self._spool_base = _spool_base(self._spool, self._store)
        io = IOThread(self._finishing, self._flush_timeout + _CLOSING)
        try:
            self._writer = await _io_thread.result(io.call(self._make_writer()))
            self._signals.install()
        except BaseException:
            io.finish()
            raise
        self._io = io
        if self._stopping.requested:
            io.post(self._begin_stop)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._io is not None
        self._signals.restore()
        ended = self._io.finish()
        if isinstance(exc, GeneratorExit):
            _io_thread.block(ended)
        else:
            await _io_thread.done_or_blocked(ended)

    @overload
    def open(
        self,
        key: str,
        *,
        type: None = None,
        codec: None = None,
        keep: int | None = None,
        min_interval: float | None = None,
        flush_timeout: float | None = None,
    ) -> AbstractAsyncContextManager[Checkpointer[bytes]]: ...
    @overload
    def open(
        self,
        key: str,
        *,
        type: type[T],
        codec: None = None,
        keep: int | None = None,
        min_interval: float | None = None,
        flush_timeout: float | None = None,
    ) -> AbstractAsyncContextManager[Checkpointer[T]]: ...
    @overload
    def open(
        self,
        key: str,
        *,
        type: None = None,
        codec: Codec[T],
        keep: int | None = None,
        min_interval: float | None = None,
        flush_timeout: float | None = None,
    ) -> AbstractAsyncContextManager[Checkpointer[T]]: ...
    def open(
        self,
        key: str,
        *,
        type: type[Any] | None = None,
        codec: Codec[Any] | None = None,
        keep: int | None = None,
        min_interval: float | None = None,
        flush_timeout: float | None = None,
    ) -> AbstractAsyncContextManager[Checkpointer[Any]]:
        """Claim a key: an async context manager that gives its checkpointer.

        Leaving it by any door flushes. The options that are None are the runtime's.

        Raises (on entering):
            KeyInUseError: the key is open in this runtime.
            CorruptCheckpointError: its record is damaged and no earlier one stands in.
            StoreError: the store cannot be read or written.
        """
        return _Opening(
            self,
            check_key(key),
            Coder(type, codec),
            plain_open,
            self._keep if keep is None else _check_keep(keep),
            _check_seconds("min_interval", min_interval),
            _check_seconds("flush_timeout", flush_timeout),
        )

    async def run(
        self,
        fn: Task[T, *Args, R] | Callable[[Checkpointer[T], Unpack[Args]], Awaitable[R]],
        *args: *Args,
        key: str | None = None,
        retry: int | RetryPolicy | None = None,
        fresh: bool = False,
    ) -> R:
        """Run one task to its result, over attempts and processes.

        A run that is done returns its stored result without running. An interrupted one goes on
        with its state and what is left of its retries; a failed one with its state and all of
        them; `fresh=True` starts from nothing.

        Args:
            fn: A task, or an async function (then `key` is required). Its first argument is the
                checkpointer, the others are `args`; bind keywords with functools.partial.
            key: The key itself, instead of the task's template.
            retry: Retries on any Exception, or a RetryPolicy, instead of the task's.

        Raises:
            StoppedError: the runtime was asked to stop; the run resumes where it was.
            FencedError: a newer attempt claimed the key.
            KeyInUseError: the key is open in this runtime, or its run is under way.
            The last attempt's exception, with a note, when no retry is left.
        """
        run = Run(as_task(fn, key, retry), args, fresh=fresh, stopping=self._stopping)
        return await run.result(self._opening)

    async def latest(self, key: str) -> Checkpoint | None:
        """The stored record of a key, undecoded, or None. Claims nothing."""
        return await latest(self._thread, self._writer, check_key(key))

    async def keys(self, prefix: str = "", status: Status | None = None) -> AsyncIterator[str]:
        """The keys that start with `prefix`, sorted; with `status`, those whose run is so."""
        io = self._thread
        pages = self._pages(prefix, status)
        while page := await _io_thread.result(io.call(_next(pages))):
            for key in page:
                yield key

    async def delete(self, key: str) -> None:
        """Delete a key and its blobs; one that is open anywhere is fenced. Absent is no error.

        Raises:
            ConflictError: it was written to in between; try again.
        """
        check_key(key)
        await _io_thread.result(self._thread.call(self._delete(key)))

    async def flush(self) -> None:
        """Return when all that is staged now in the open handles is stored.

        Raises:
            FlushTimeoutError: not within `flush_timeout`; it names one of the keys.
            FencedError, StoreError: some of it never will be.
        """
        future: Future[None] = Future()
        self._thread.post(self._writer.flush_all, into(future))
        with anyio.move_on_after(self._flush_timeout):
            await _io_thread.result(future)
            return
        raise next(held for held in self._writer.holding if held.slot.dirty).timed_out()

    def stop(self) -> None:
        """Ask every attempt to end at its next write. From any thread or signal handler.

        Sets `cp.stopping`, starts a flush, and cancels what still runs when most of `grace` has
        passed. Runs raise StoppedError. Idempotent.
        """
        if self._stopping.request() and self._io is not None:
            with contextlib.suppress(ClosedError):
                self._io.post(self._begin_stop)

    def statistics(self) -> Statistics:
        """The sums over the handles that are open; `lag` is the longest."""
        each = [held.statistics() for held in list(self._writer.holding)]
        errors = [one.last_error for one in each if one.last_error is not None]
        return Statistics(
            staged=sum(held.slot.newest_seq - held.slot.first for held in self._writer.holding),
            stored=sum(held.commits for held in self._writer.holding),
            coalesced=sum(one.coalesced for one in each),
            bytes=sum(one.bytes for one in each),
            lag=max((one.lag for one in each), default=0.0),
            spooled=all(one.spooled for one in each),
            errors=sum(one.errors for one in each),
            last_error=errors[-1] if errors else None,
        )

    # The user's side.

    @property
    def _thread(self) -> IOThread:
        if self._io is None:
            raise ClosedError("enter the runtime first: `async with Runtime(...) as rt:`")
        return self._io

    def _opening(
        self, key: str, coder: Coder[T], decide: Decide
    ) -> AbstractAsyncContextManager[Checkpointer[T]]:
        return _Opening(self, key, coder, decide, self._keep, None, None)

    async def _enter(self, opening: _Opening[T]) -> Checkpointer[T]:
        io = self._thread
        key = opening.key
        if self._open.setdefault(key, opening) is not opening:
            raise KeyInUseError(
                f"{key!r} is open in this runtime: share its checkpointer, or leave it first"
            )
        claiming: Future[Held] | None = None
        try:
            interval = opening.min_interval
            if interval is None:
                interval = self._min_interval
            claiming = io.call(
                claim(
                    self._writer,
                    key,
                    opening.decide,
                    spool_base=self._spool_base,
                    keep=opening.keep,
                    min_interval=self._store.min_interval if interval is None else interval,
                    plain=opening.coder.raw,
                )
            )
            held = await _io_thread.result(claiming)
        except BaseException:
            del self._open[key]
            if claiming is not None and not claiming.cancel() and not claiming.exception():
                self._abandon(claiming.result())
            raise
        if self._stopping.requested:
            io.post(self._stop_one, held)
        timeout = opening.flush_timeout
        if timeout is None:
            timeout = self._flush_timeout
        return Checkpointer(held, self._writer, io, opening.coder, timeout)

    def _abandon(self, held: Held) -> None:
        """The opener was cancelled as its claim came through: there is nothing to flush."""
        held.leaving = Future()
        with contextlib.suppress(ClosedError):
            self._thread.post(self._writer.leave, held, self._flush_timeout)

    async def _exit(self, cp: Checkpointer[Any], exc: BaseException | None) -> None:
        self._open.pop(cp.key, None)
        await cp._leave(exc, self._stopping.remaining)

    def _on_signal(self, number: int) -> None:
        if self._stopping.requested:
            self._stopping.cancel_all()
        else:
            self.stop()

    # On the I/O thread.

    async def _make_writer(self) -> Writer:
        return Writer(self._store)

    async def _finishing(self) -> None:
        remaining = self._stopping.remaining
        timeout = self._flush_timeout
        await self._writer.finish(timeout if remaining is None else min(timeout, remaining))
        if self._spool_base is not None:
            _spool.leave(self._spool_base)
        if self._store is not self._url:
            await bounded(self._store.aclose(), "close")

    def _begin_stop(self) -> None:
        for held in list(self._writer.holding):
            self._stop_one(held)
        self._stopping.cancel_naps()
        self._thread.loop.call_later(self._stopping.patience, self._stopping.cancel_all)

    def _stop_one(self, held: Held) -> None:
        slot = held.slot
        slot.stopping = True
        slot.attention = ALERT
        self._writer.flush(held, slot.newest_seq, slot.meta, lambda _: None)

    async def _delete(self, key: str) -> None:
        head = await bounded(self._store.load(key), "load", key)
        if head is None:
            return
        # listed before the commit, like a claim's: none of them can be a later claim's
        base = self._spool_base
        regions = [] if base is None else _spool.regions(base / store_name(key))
        await self._writer.commits.delete(key, head.version)
        _spool.discard(regions)

    async def _pages(self, prefix: str, status: Status | None) -> AsyncGenerator[list[str], None]:
        page: list[str] = []
        async for key in self._store.keys(prefix):
            if status is None or await self._status(key) == status:
                page.append(key)
            if len(page) == _PAGE:
                yield page
                page = []
        if page:
            yield page

    async def _status(self, key: str) -> Status | None:
        head = await bounded(self._store.load(key), "load", key)
        return None if head is None else decode_record(key, head.record)[0].status


class _Opening(Generic[T]):
    """One `async with`: entered and left in whichever tasks."""

    def __init__(
        self,
        runtime: Runtime,
        key: str,
        coder: Coder[T],
        decide: Decide,
        keep: int,
        min_interval: float | None,
        flush_timeout: float | None,
    ) -> None:
        self.runtime = runtime
        self.key = key
        self.coder = coder
        self.decide = decide
        self.keep = keep
        self.min_interval = min_interval
        self.flush_timeout = flush_timeout
        self._cp: Checkpointer[T] | None = None

    async def __aenter__(self) -> Checkpointer[T]:
        self._cp = await self.runtime._enter(self)
        return self._cp

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._cp is not None
        await self.runtime._exit(self._cp, exc)


async def _next(pages: AsyncGenerator[list[str], None]) -> list[str]:
    """On the I/O loop, so that the generator is that loop's, to be closed by it if left early."""
    return await anext(pages, [])


def _check_keep(keep: int) -> int:
    if type(keep) is not int or keep < 1:
        raise ValueError(f"keep={keep!r}: it is an int, 1 or more")
    return keep


def _check_seconds(name: str, value: float | None) -> float | None:
    return None if value is None else _check_some_seconds(name, value)


def _check_some_seconds(name: str, value: float) -> float:
    number: object = value
    if not isinstance(number, (int, float)):
        raise TypeError(f"{name}={value!r}: it is a number of seconds")
    if not 0 <= number < float("inf"):
        raise ValueError(f"{name}={value!r}: it is a number of seconds, 0 or more")
    return number


def _check_store(store: str | os.PathLike[str] | Store) -> str | os.PathLike[str] | Store:
    known = isinstance(store, (str, os.PathLike)) or hasattr(store, "commit")
    if isinstance(store, type) or not known:
        raise TypeError(f"store={store!r}: it is a URL (sqlite:jobs.db), a path or a Store")
    return store


def _check_spool(option: SpoolOption) -> SpoolOption:
    known: object = option
    if not (known is None or (known and isinstance(known, (str, os.PathLike)))):
        raise TypeError(f"spool={option!r}: it is 'auto', a directory, or None for nowhere")
    return option


def _spool_base(option: SpoolOption, store: Store) -> Path | None:
    if option is None:
        return None
    if option == "auto":
        return store.spool_dir
    # one directory may serve several stores: each has its own part of it
    identity = xxhash.xxh3_128_hexdigest(store.identity.encode())
    return Path(option).absolute() / identity
