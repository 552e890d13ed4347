"""The same handle for programs without an event loop, and for callbacks.

    with aiocheckpoint.blocking.open("sqlite:jobs.db", "train-42") as cp:
        start = int(cp.read(default=b"0"))
        for step in range(start, 1_000_000):
            cp.write(b"%d" % (step + 1))

Everything that `aiocheckpoint.open` promises holds here as well. `write()` never waits; whatever
else does waits by blocking its thread. Inside a running event loop that holds up the loop: use
`aiocheckpoint.open` there, or call from a worker thread.
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import os
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar, overload

from . import _io_thread
from ._checkpointer import KEEP
from ._checkpointer import Checkpointer as AsyncCheckpointer
from ._codecs import Coder, coder
from ._compression import Compression
from ._errors import ClosedError
from ._io_thread import IOThread
from ._keyring import Keyring
from ._keys import check_key
from ._options import SpoolOption
from ._records import Checkpoint, Statistics
from ._runner import plain_open
from ._runtime import Runtime
from .abc import Codec, Store

# Why no event loop of our own (anyio's blocking portal): there is one already. A handle awaits
# nothing but its I/O thread, so its coroutines may as well run on that thread's loop. That is no
# second thread which a fork, an interrupt or the interpreter's exit could find in another state
# than the first. What runs the user's code (codecs), stages or closes is not sent there: it is
# synchronous to begin with.

T = TypeVar("T")
D = TypeVar("D")
R = TypeVar("R")

__all__ = ["Checkpointer", "open"]


class Checkpointer(Generic[T]):
    """A checkpointer whose methods block instead of being awaited. Made by `blocking.open`.

    Any thread may use it. `blocking.Checkpointer(cp)` makes one of an `aiocheckpoint.Checkpointer`:
    for the callbacks of a library that an async task has running in a worker thread. It is the
    same handle then, and the `async with` that opened it closes both.
    """

    def __init__(self, cp: AsyncCheckpointer[T]) -> None:
        self._cp = cp

    @property
    def key(self) -> str:
        """The key that it holds."""
        return self._cp.key

    @property
    def epoch(self) -> int:
        """How many times the key has been claimed, this claim included."""
        return self._cp.epoch

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1; it survives the process."""
        return self._cp.attempt

    @property
    def resumed(self) -> bool:
        """True if there was a state, or files, when the key was opened."""
        return self._cp.resumed

    @property
    def due(self) -> bool:
        """True if a state written now would be stored at once, not merely replace one that waits:
        `if cp.due: cp.write(build())` spares the building. Write the last one regardless."""
        return self._cp.due

    @property
    def stopping(self) -> bool:
        """True once the runtime of an async checkpointer has been asked to stop."""
        return self._cp.stopping

    def write(self, state: T) -> int:
        """Stage a state as the newest; return its seq. It never waits for storage.

        Raises:
            CodecError: the state is None or cannot be encoded; nothing is staged.
            FencedError: a newer attempt has claimed the key.
            StoreError: the store refused an earlier state for good; this one is staged, and tried.
            StoppedError: the runtime stops and this is an attempt of `run`; this state is staged.
            ClosedError: the handle is closed.
        """
        cp = self._cp
        seq = cp.write_nowait(state)
        cp._look()
        cp._stop_here()
        return seq

    @overload
    def read(self) -> T | None: ...
    @overload
    def read(self, default: D) -> T | D: ...
    def read(self, default: object = None) -> object:
        """The newest state, staged or stored; `default` if there has been none.

        Raises:
            CodecError: the state was written by another codec, or does not fit the type.
        """
        return self._cp._read(default)

    def flush(self) -> None:
        """Return when all that is staged now is stored.

        Raises:
            FlushTimeoutError: not within `flush_timeout`.
            FencedError, StoreError: it never will be.
        """
        _result(self._cp._io, self._cp.flush())

    def save(self, path: str | os.PathLike[str], *, state: T = KEEP, move: bool = False) -> int:
        """Keep a file or a directory tree, with the state that it goes with; return the seq.

        As `aiocheckpoint.Checkpointer.save`: it returns when all is stored; with `move=True` the
        files are taken by rename, and it returns when that is staged, if the spool can take the
        state.

        Raises:
            OSError: the files cannot be read or moved, or were changed meanwhile.
            ValueError: `move=True`, and there is no spool, or the store is encrypted.
            CodecError, FencedError, StoreError, FlushTimeoutError, StoppedError, ClosedError:
                as there.
            RuntimeError: an async handle is wrapped: its loop is to save.
        """
        cp = self._cp
        encoded = cp._encoded(state)
        keep = cp._keeper.move if move else cp._keeper.save
        seq = _result(cp._io, keep(Path(path).absolute(), encoded))
        if encoded is not None:
            cp._stop_here()
        return seq

    def restore(self, path: str | os.PathLike[str]) -> Path | None:
        """Make the files of the newest `save` anew; the path, or None if nothing was saved.

        Raises:
            FileExistsError: there is something already, other than an empty directory for a tree.
            CorruptCheckpointError, OSError, FencedError, StoreError, FlushTimeoutError,
                ClosedError: as `aiocheckpoint.Checkpointer.restore`.
        """
        return _result(self._cp._io, self._cp.restore(Path(path).absolute()))

    def latest(self) -> Checkpoint | None:
        """The stored record, undecoded: metadata and the payload's bytes. It claims nothing, and
        does not look whether the files are there.

        Raises:
            CorruptCheckpointError, StoreError: it is damaged, or cannot be read.
        """
        return _result(self._cp._io, self._cp.latest())

    def delete(self) -> None:
        """Delete the key and all its blobs. The handle is closed by it.

        Raises:
            FencedError: a newer attempt has claimed the key; nothing is deleted.
            StoreError: the store cannot do it.
        """
        _result(self._cp._io, self._cp.delete())

    def statistics(self) -> Statistics:
        """Counts since the key was opened. Never waits."""
        return self._cp.statistics()


@overload
def open(
    store: str | os.PathLike[str] | Store,
    key: str,
    *,
    type: None = None,
    codec: None = None,
    keep: int = 1,
    min_interval: float | None = None,
    flush_timeout: float = 30.0,
    spool: SpoolOption = "auto",
    encryption: Keyring | None = None,
    compression: Compression = None,
) -> AbstractContextManager[Checkpointer[bytes]]: ...
@overload
def open(
    store: str | os.PathLike[str] | Store,
    key: str,
    *,
    type: type[T],
    codec: None = None,
    keep: int = 1,
    min_interval: float | None = None,
    flush_timeout: float = 30.0,
    spool: SpoolOption = "auto",
    encryption: Keyring | None = None,
    compression: Compression = None,
) -> AbstractContextManager[Checkpointer[T]]: ...
@overload
def open(
    store: str | os.PathLike[str] | Store,
    key: str,
    *,
    type: None = None,
    codec: Codec[T],
    keep: int = 1,
    min_interval: float | None = None,
    flush_timeout: float = 30.0,
    spool: SpoolOption = "auto",
    encryption: Keyring | None = None,
    compression: Compression = None,
) -> AbstractContextManager[Checkpointer[T]]: ...
def open(
    store: str | os.PathLike[str] | Store,
    key: str,
    *,
    type: type[Any] | None = None,
    codec: Codec[Any] | None = None,
    keep: int = 1,
    min_interval: float | None = None,
    flush_timeout: float = 30.0,
    spool: SpoolOption = "auto",
    encryption: Keyring | None = None,
    compression: Compression = None,
) -> AbstractContextManager[Checkpointer[Any]]:
    """Claim one key of a store: a context manager that gives its checkpointer.

    Leaving it by any door stores what was staged, within `flush_timeout` seconds. Ctrl-C ends the
    wait at once; the storing goes on, and the interpreter's exit waits for it. The options are
    those of `aiocheckpoint.open`.

    Raises (on entering):
        CorruptCheckpointError: its record is damaged and no earlier one stands in.
        StoreError: the store cannot be read or written.
    """
    runtime = Runtime(
        store,
        keep=keep,
        min_interval=min_interval,
        flush_timeout=flush_timeout,
        spool=spool,
        encryption=encryption,
        compression=compression,
    )
    return _Opening(runtime, check_key(key), coder(type, codec))


class _Opening(Generic[T]):
    """A runtime of one key: its I/O thread lives from entry to exit."""

    def __init__(self, runtime: Runtime, key: str, coder: Coder[T]) -> None:
        self._runtime = runtime
        self._key = key
        self._coder = coder
        self._cp: AsyncCheckpointer[T]

    def __enter__(self) -> Checkpointer[T]:
        runtime = self._runtime
        engine = runtime._make_engine()
        io = engine.io
        try:
            engine.start().result()
            runtime._engine = engine
            opening = runtime._opening(self._key, self._coder, plain_open)
            self._cp = _result(io, opening.__aenter__())
            self._cp._thread = None
        except BaseException:
            _end(io)
            raise
        return Checkpointer(self._cp)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        cp = self._cp
        io = cp._io
        try:
            leaving = cp._exit.close(cp._flush_timeout)
            _io_thread.wait(leaving, io.patience)
        except BaseException:  # Ctrl-C: the thread goes on without us, and says how it went
            io.finish()
            if cp._held.leaving is not None:
                cp._held.leaving.add_done_callback(cp._exit.report)
            raise
        try:
            cp._exit.left(leaving, exc)
        finally:
            _end(io)


def _result(io: IOThread, coroutine: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine on the I/O loop and wait for its result or error."""
    if _io_thread.on_io_thread():
        coroutine.close()
        raise RuntimeError("called on a store's own thread, which would wait for itself")
    # not in the caller's context, which may say that trio runs here
    future = contextvars.Context().run(io.call, coroutine)
    try:
        return future.result()
    except concurrent.futures.CancelledError as exc:
        raise ClosedError("the runtime was closed meanwhile") from exc
    except BaseException:
        future.cancel()  # nobody waits for it any more
        raise


def _end(io: IOThread) -> None:
    """End the I/O thread; an interrupt ends only the wait for it."""
    _io_thread.wait(io.finish(), io.patience)
