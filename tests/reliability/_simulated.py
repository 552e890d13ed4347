"""Runtimes without threads and without clocks: all runs on one loop, whose time jumps.

When nothing can run, the loop's time is at once that of the next timer: 30 seconds of an outage
take no time, and the same steps lead to the same events. What waits for nothing is found at once.
"""

from __future__ import annotations

import asyncio
import math
import os
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest import mock

from aiocheckpoint import _claim, _engine, _io_thread
from aiocheckpoint._errors import ClosedError
from aiocheckpoint._io_thread import IOThread

T = TypeVar("T")


class _Jumping(selectors.DefaultSelector):
    """Does not wait: makes it so late that whoever waits need not."""

    now = 1_000.0
    end = math.inf

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events:
            assert timeout is not None, "it hangs: nothing will ever happen again"
            self.now += max(0.0, timeout)
            assert self.now < self.end, "it hangs: it should have ended long ago"
        return events


class Loop(asyncio.SelectorEventLoop):
    """A loop that has its own time, and calls what is meant for threads itself."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def run(self, coroutine: Coroutine[object, object, T], within: float) -> T:
        """Run to its end, within so many seconds of the loop's time."""
        self._jumping.end = self._jumping.now + within
        try:
            return self.run_until_complete(coroutine)
        finally:
            self._jumping.end = math.inf

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        answer: asyncio.Future[T] = self.create_future()

        def call() -> None:
            if answer.cancelled():
                return
            try:
                answer.set_result(func(*args))
            except Exception as exc:
                answer.set_exception(exc)

        self.call_soon(call)
        return answer

    def end(self) -> None:
        """Cut short what still runs, and close."""
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task.cancel()
        if tasks:
            self.run_until_complete(asyncio.wait(tasks))
        self.run_until_complete(self.shutdown_asyncgens())
        self.close()


class _OnTheLoop(IOThread):
    """An I/O thread that is none: its work is done on the loop that made it."""

    def __init__(self, finishing: Callable[[], Coroutine[Any, Any, None]], patience: float) -> None:
        self.patience = patience
        self._finishing = finishing
        self._pid = os.getpid()
        self._end_lock = threading.RLock()
        self._end = asyncio.Event()
        self._ending = False
        self._ended: Future[None] = Future()
        self._owed: set[Future[Any]] = set()
        self.working: set[asyncio.Task[Any]] = set()
        self.loop = asyncio.get_running_loop()
        self._calls: set[asyncio.Task[Any]] = set()
        self._life = self.loop.create_task(self._live())

    @property
    def is_current(self) -> bool:
        return True

    def call(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        async def known() -> T:
            task = asyncio.current_task()
            assert task is not None
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
            return await coroutine

        try:
            return super().call(known())
        except ClosedError:
            coroutine.close()
            raise

    async def _live(self) -> None:
        """What `_run` does: what still runs at the end is cancelled."""
        await self._end.wait()
        for _ in range(3):  # whoever waited for `_finish` is told
            await asyncio.sleep(0)
        for task in self._calls:
            task.cancel()
        if self._calls:
            await asyncio.wait(self._calls)
        self._ended.set_result(None)
        self._fail_owed()


@contextmanager
def simulated() -> Iterator[Loop]:
    """A loop on which runtimes that are made inside have all of their work done."""
    loop = Loop()
    clock = SimpleNamespace(monotonic=loop.time, time=loop.time)
    try:
        with (
            mock.patch.object(_engine, "IOThread", _OnTheLoop),
            mock.patch.object(_claim, "time", clock),
            mock.patch.object(_io_thread, "on_io_thread", return_value=True),
        ):
            yield loop
    finally:
        loop.end()
