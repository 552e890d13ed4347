"""One event loop in one thread: where all storage work is done.

The user's loop may starve, be cancelled twice over or be torn down; this one carries on, to the
interpreter's exit if need be.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread
import contextlib
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar, cast

import anyio
import anyio.lowlevel

from ._errors import ClosedError

T = TypeVar("T")
_HOPS = 4
_log = logging.getLogger("aiocheckpoint")


class IOThread:
    """Runs coroutines for other threads, on a loop of its own.

    `finishing` makes the coroutine with which the loop's work ends: awaited once, by `finish()`
    or at interpreter exit, after which the thread ends.
    """

    def __init__(self, finishing: Callable[[], Coroutine[Any, Any, None]], patience: float) -> None:
        """`patience`: seconds that interpreter exit gives `finishing`."""
        self.patience = patience
        self._finishing = finishing
        self._pid = os.getpid()
        self._owner = threading.current_thread()
        self._end_lock = threading.RLock()  # the garbage collector may come back for it
        self._end: asyncio.Event
        self._ending = False
        self._ended: Future[None] = Future()
        self._owed: set[Future[Any]] = set()
        self.working: set[asyncio.Task[Any]] = set()
        """Claims, saves and restores that have not ended, even if nobody waits any more."""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aiocheckpoint-io", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._ended.done() and not hasattr(self, "loop"):
            raise OSError("no event loop can be made: see whether `ulimit -n` is too low")
        _threads.add(self)

    @property
    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def post(self, fn: Callable[..., object], *args: object) -> None:
        """Call `fn` on the loop, soon. Safe in signal handlers.

        Raises:
            ClosedError: the thread has ended, or belongs to the parent of this forked process.
        """
        self._check_process()
        try:
            self.loop.call_soon_threadsafe(fn, *args)
        except RuntimeError as exc:
            raise ClosedError("the runtime is closed") from exc

    def owe(self, future: Future[Any]) -> None:
        """Have a future fail if the loop ends before it is done: what was posted in the loop's
        last instant is never called. Say so before posting what is to end it."""
        self._owed.add(future)
        future.add_done_callback(self._owed.discard)

    def at_work(self, task: asyncio.Task[Any]) -> None:
        """On the loop: have a task clean up, if it is cancelled, before the loop ends."""
        self.working.add(task)
        task.add_done_callback(self.working.discard)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop. Cancelling the future cancels it there."""
        try:
            self._check_process()
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except ClosedError:
            coroutine.close()
            raise
        except RuntimeError as exc:
            coroutine.close()
            raise ClosedError("the runtime is closed") from exc
        self.owe(future)
        if self._ended.done():
            self._fail_owed()
        return future

    def finish(self) -> Future[None]:
        """Begin the end, once; the future is done when the loop is closed."""
        if self._pid != os.getpid():
            return _nothing
        with self._end_lock:
            if not self._ending and not self._ended.done():
                self._ending = True
                self.call(self._finish())
        return self._ended

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def await_owner(self) -> None:
        """At interpreter exit: wait for the thread that made this one, as the interpreter itself
        does next. Those of executors wait to be told, after us."""
        executors = concurrent.futures.thread._threads_queues
        owner = self._owner
        if not (owner is threading.main_thread() or owner.daemon or owner in executors):
            owner.join()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ClosedError("the runtime belongs to the parent process: make one in this one")

    async def _finish(self) -> None:
        try:
            await self._finishing()
        except Exception:
            _log.exception("the runtime did not end cleanly")
        finally:
            self._end.set()

    def _run(self) -> None:
        # signals are for the main thread: one that lands here would not wake its loop
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)
            try:
                runner.run(self._main())
            finally:
                _close(runner)
        except OSError:
            if hasattr(self, "loop"):
                raise
        finally:
            self._ended.set_result(None)
            self._ready.set()
            self._fail_owed()

    def _fail_owed(self) -> None:
        for future in list(self._owed):
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                future.set_exception(ClosedError("the runtime was closed meanwhile"))

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_default_executor(_ready_executor())
        self._end = asyncio.Event()
        self._ready.set()
        await self._end.wait()


def _close(runner: asyncio.Runner) -> None:
    try:
        runner.close()
    except RuntimeError as exc:
        # asyncio has the executor's threads joined in one more, which since Python 3.12 cannot be
        # started while the interpreter exits; that joins them itself
        if "can't create new thread" not in str(exc):
            raise


def _ready_executor() -> concurrent.futures.ThreadPoolExecutor:
    """Threads for `asyncio.to_thread` that have started: since Python 3.12 none can while the
    interpreter exits, and what is flushed then may need them."""
    executor = concurrent.futures.ThreadPoolExecutor(_HOPS, "aiocheckpoint-hop")
    started = threading.Barrier(_HOPS + 1)
    for _ in range(_HOPS):
        executor.submit(started.wait)
    started.wait()
    return executor


class _Token(Protocol):
    def run_sync_soon(self, fn: Callable[[], object]) -> None: ...


def caller() -> Callable[[Callable[[], object]], None]:
    """How another thread has something called on the event loop that runs here.

    A loop that has ended meanwhile is not an error: nobody waits there any more.
    """
    token = anyio.lowlevel.current_token().native_token

    def call(fn: Callable[[], object]) -> None:
        try:
            if isinstance(token, asyncio.AbstractEventLoop):
                token.call_soon_threadsafe(fn)
            else:
                cast(_Token, token).run_sync_soon(fn)
        except RuntimeError:
            pass

    return call


async def done(future: Future[Any]) -> None:
    """Wait on the caller's loop, asyncio's or trio's, until a future is done; never raise its
    error."""
    if not future.done():
        event = anyio.Event()
        call = caller()
        future.add_done_callback(lambda _: call(event.set))
        await event.wait()


async def result(future: Future[T]) -> T:
    """Wait for a future on the caller's loop; its result or error."""
    await done(future)
    try:
        return future.result()
    except concurrent.futures.CancelledError as exc:
        raise ClosedError("the runtime was closed meanwhile") from exc


async def run(io: IOThread, coroutine: Coroutine[Any, Any, T], patience: float) -> T:
    """Run a coroutine on the I/O loop. Whoever is cancelled meanwhile cancels it, and waits for
    its end, though not for longer than `patience` seconds."""
    outcome: Future[T] = Future()
    tasks: list[asyncio.Task[T]] = []

    def start() -> None:
        task = io.loop.create_task(coroutine)
        tasks.append(task)
        io.at_work(task)
        task.add_done_callback(ended)

    def ended(task: asyncio.Task[T]) -> None:
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            if task.cancelled():
                outcome.set_exception(ClosedError("the runtime was closed meanwhile"))
            elif error := task.exception():
                outcome.set_exception(error)
            else:
                outcome.set_result(task.result())

    io.owe(outcome)
    try:
        io.post(start)
    except ClosedError:
        coroutine.close()
        raise
    try:
        return await result(outcome)
    except BaseException as exc:
        if not outcome.done():
            with contextlib.suppress(ClosedError):
                io.post(lambda: [task.cancel() for task in tasks])
            if not isinstance(exc, GeneratorExit):
                with anyio.move_on_after(patience, shield=True):
                    await done(outcome)
        raise


async def done_or_blocked(future: Future[Any]) -> None:
    """Wait although cancelled, and if even that is interrupted, a moment without the loop.

    A shielded wait survives scopes; a second native cancel, the teardown of the loop and the
    closing of the coroutine end it. The I/O thread goes on all the same.
    """
    try:
        with anyio.CancelScope(shield=True):
            await done(future)
    except GeneratorExit:
        block(future)
        raise
    except BaseException as exc:
        block(future)
        if isinstance(exc, RuntimeError) and isinstance(exc.__context__, GeneratorExit):
            raise exc.__context__ from None  # the scope could not be left: its loop is gone
        raise


def wait(future: Future[Any], timeout: float) -> None:
    """Wait without a loop, for those who have none; never raise the future's error.

    Not on an I/O thread either: the garbage collector may close a generator there.
    """
    if not on_io_thread():
        concurrent.futures.wait([future], timeout=timeout)


def on_io_thread() -> bool:
    return any(thread.is_current for thread in list(_threads))


_patience = 1.0
"""Seconds for which this process may still block loops; shared by all, never refilled."""


def block(future: Future[Any]) -> None:
    """Wait without the loop, within what is left of the process's patience.

    Never on an I/O thread: the garbage collector may close an abandoned coroutine there.
    """
    global _patience
    if on_io_thread():
        return
    started = time.monotonic()
    try:
        if _patience > 0:
            concurrent.futures.wait([future], timeout=_patience)
    finally:
        _patience -= time.monotonic() - started


_nothing: Future[None] = Future()  # what a forked child has to wait for
_nothing.set_result(None)
_threads: weakref.WeakSet[IOThread] = weakref.WeakSet()


def _at_exit() -> None:
    """The long join: all threads end together, each within its own deadline."""
    for thread in list(_threads):
        if thread._pid == os.getpid():
            thread.await_owner()
    for thread in list(_threads):
        try:
            thread.finish()
        except ClosedError:
            continue
    started = time.monotonic()
    for thread in list(_threads):
        if thread._pid == os.getpid():
            thread.join(max(0.0, started + thread.patience - time.monotonic()))


try:
    # before executors refuse work and before non-daemon threads are joined; atexit is too late
    threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
except AttributeError:
    atexit.register(_at_exit)
