"""The runtime: owns a store, its I/O thread, and the handles that are open on it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple, Unpack, overload

import anyio

from . import _io_thread
from ._checkpointer import Checkpointer, latest
from ._claim import Decide
from ._codecs import Coder, coder
from ._compression import Compression, check_compression
from ._engine import Engine
from ._errors import ClosedError
from ._held import into
from ._keyring import Keyring, check_encryption
from ._keys import check_key
from ._map import MAX_CONCURRENCY, Map, Outcome
from ._opening import Opening
from ._options import SpoolOption, check_keep, check_seconds, check_spool, check_store, spool_base
from ._policy import RetryPolicy
from ._records import Checkpoint, Statistics, Status
from ._runner import Run, plain_open
from ._sealed import SealedStore
from ._signals import SignalHandlers
from ._stopping import Stopping
from ._task import Task, as_task
from .abc import Codec, Store
from .stores import open_store

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")
Args = TypeVarTuple("Args")


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
        encryption: The keys that states and files are encrypted with, in the store and the spool.
        compression: "zstd" to store states and files compressed where that makes them smaller.
            What is compressed is read without it.
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
        encryption: Keyring | None = None,
        compression: Compression = None,
        stop_signals: Sequence[int] = (),
        grace: float = 25.0,
    ) -> None:
        self._location = check_store(store)
        self._keep = check_keep(keep)
        self._min_interval = min_interval
        if min_interval is not None:
            check_seconds("min_interval", min_interval)
        self._flush_timeout = check_seconds("flush_timeout", flush_timeout)
        self._spool = check_spool(spool)
        self._encryption = check_encryption(encryption)
        self._compression = check_compression(compression)
        self._stopping = Stopping(check_seconds("grace", grace))
        self._signals = SignalHandlers(stop_signals, self._on_signal)
        self._engine: Engine | None = None

    async def __aenter__(self) -> Self:
        engine = self._make_engine()
        try:
            await _io_thread.result(engine.start())
            self._signals.install()
        except BaseException:
            engine.io.finish()
            raise
        self._engine = engine
        if self._stopping.requested:
            engine.io.post(engine.stop)
        return self

    def _make_engine(self) -> Engine:
        if self._engine is not None:
            raise ClosedError("a runtime is entered once: make a new one")
        location = self._location
        owned = isinstance(location, (str, os.PathLike))
        store = open_store(location) if isinstance(location, (str, os.PathLike)) else location
        if self._encryption is not None:
            store = SealedStore(store, self._encryption)
        return Engine(
            store,
            spool_base(self._spool, store),
            self._stopping,
            keyring=self._encryption,
            compression=self._compression,
            owned=owned,
            flush_timeout=self._flush_timeout,
        )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._signals.restore()
        ended = self._running.io.finish()
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
        return Opening(
            lambda: self._running,
            check_key(key),
            coder(type, codec),
            plain_open,
            keep=self._keep if keep is None else check_keep(keep),
            min_interval=(
                self._min_interval
                if min_interval is None
                else check_seconds("min_interval", min_interval)
            ),
            flush_timeout=(
                self._flush_timeout
                if flush_timeout is None
                else check_seconds("flush_timeout", flush_timeout)
            ),
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
        task = as_task(fn, key, retry)
        run = Run(task, task.key_for(args), args, stopping=self._stopping, fresh=fresh)
        return await self._result(run)

    def map(
        self,
        fn: Task[T, I, R] | Callable[[Checkpointer[T], I], Awaitable[R]],
        items: Iterable[I] | AsyncIterable[I],
        *,
        key: str | Callable[[I], str] | None = None,
        max_concurrency: int = MAX_CONCURRENCY,
        retry: int | RetryPolicy | None = None,
        progress: bool = False,
    ) -> AbstractAsyncContextManager[AsyncIterator[Outcome[I, R]]]:
        """Run one task for each of many items: an async context manager that gives the outcomes.

        The outcomes come as items end, failures among them. Items are drawn lazily: those that
        run, that were drawn ahead and whose outcomes wait to be taken are at most
        `max_concurrency` together. What is done in the store is not run again; what was
        interrupted goes on. Leaving the block early cancels what runs and stores its state. A
        generator is closed at the end.

        Args:
            fn: A task, or an async function (then `key` is required), of the checkpointer and one
                item.
            key: A template over the function's parameters (`"resize/{path}"`), or a function that
                makes the key of an item, instead of the task's template. To tell an item whose
                key an earlier one had, 8 bytes a key are kept; its outcome is a KeyInUseError.
            retry: Retries on any Exception, or a RetryPolicy, instead of the task's.
            progress: Show a bar on stderr, with `rich`.

        Raises (while iterating, once all that was begun has ended):
            StoppedError: the runtime was asked to stop.
            What the iterator of the items raises.
        """
        self._running.io.post(lambda: None)  # raises if it has ended
        task = as_task(fn, None, retry)
        options = (key, max_concurrency, progress)
        return Map(task, items, self._result, self._stopping, *options)

    async def latest(self, key: str) -> Checkpoint | None:
        """The stored record of a key, undecoded, or None. Claims nothing."""
        engine = self._running
        return await latest(engine.io, engine.writer, check_key(key))

    async def keys(self, prefix: str = "", status: Status | None = None) -> AsyncIterator[str]:
        """The keys that start with `prefix`, sorted; with `status`, those whose run is so.

        A damaged record has no status: its key is left out then, with a WARNING.
        """
        engine = self._running
        pages = engine.pages(prefix, status)
        while page := await _io_thread.result(engine.io.call(_next(pages))):
            for key in page:
                yield key

    async def delete(self, key: str) -> None:
        """Delete a key and its blobs; one that is open anywhere is fenced. Absent is no error.

        Raises:
            ConflictError: it was written to in between; try again.
        """
        engine = self._running
        await _io_thread.result(engine.io.call(engine.delete(check_key(key))))

    async def flush(self) -> None:
        """Return when all that is staged now in the open handles is stored.

        Raises:
            FlushTimeoutError: not within `flush_timeout`; it names one of the keys.
            FencedError, StoreError: some of it never will be.
        """
        engine = self._running
        future: Future[None] = Future()
        engine.io.post(engine.writer.flush_all, into(future))
        with anyio.move_on_after(self._flush_timeout):
            await _io_thread.result(future)
            return
        for held in list(engine.writer.holding):
            if held.slot.dirty:
                raise held.timed_out()

    def stop(self) -> None:
        """Ask every attempt to end at its next write. From any thread or signal handler.

        Sets `cp.stopping`, starts a flush, and cancels what still runs when most of `grace` has
        passed. Runs raise StoppedError. Idempotent.
        """
        if self._stopping.request() and self._engine is not None:
            with contextlib.suppress(ClosedError):
                self._engine.io.post(self._engine.stop)

    def statistics(self) -> Statistics:
        """The sums over the handles that are open; `lag` is the longest."""
        return self._running.statistics()

    @property
    def _running(self) -> Engine:
        if self._engine is None:
            raise ClosedError("enter the runtime first: `async with Runtime(...) as rt:`")
        return self._engine

    async def _result(self, run: Run[T, *Args, R]) -> R:
        engine = self._running
        engine.reserve(run.key, run)
        try:
            return await run.result(self._opening)
        finally:
            engine.release(run.key, run)

    def _opening(self, key: str, coder: Coder[T], decide: Decide) -> Opening[T]:
        return Opening(
            lambda: self._running,
            key,
            coder,
            decide,
            keep=self._keep,
            min_interval=self._min_interval,
            flush_timeout=self._flush_timeout,
            reserve=False,
        )

    def _on_signal(self, number: int) -> None:
        if self._stopping.requested:
            self._stopping.cancel_all()
        else:
            self.stop()


async def _next(pages: AsyncGenerator[list[str], None]) -> list[str]:
    """On the I/O loop, so that the generator is that loop's, to be closed by it if left early."""
    return await anext(pages, [])
