"""A few threads for the blocking calls of a store."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from ._loops import elsewhere

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A few threads that do blocking calls for whichever loop awaits them.

    They start together at the first call, as none can start while the interpreter exits, and are
    daemons, so that a disk that hangs cannot hold the process up: whoever needs a call's end
    awaits it. A call that is cancelled before it began is not made.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._closed = False

    async def run(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn` in a thread."""
        return await self.run_tidying(lambda _: fn(*args, **kwargs))

    async def run_tidying(self, fn: Callable[[ExitStack], T]) -> T:
        """Call `fn` in a thread; what it leaves on the stack is done after it has been answered."""
        self.start()
        answer: Future[T] = Future()
        self._jobs.put((answer, fn))
        return await asyncio.wrap_future(answer)

    async def close(self) -> None:
        """Return when every thread is idle and ends. Does nothing the second time."""
        with self._lock:
            ends = self._end()
        for end in ends:
            await elsewhere(end)

    def start(self) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("this store is closed")
            if self._pid is None:
                self._pid = os.getpid()
                for i in range(self._count):
                    threading.Thread(
                        target=_work, args=(self._jobs,), name=f"{self._name}-{i}", daemon=True
                    ).start()
            elif self._pid != os.getpid():
                raise RuntimeError("this store was used before a fork; open another one")

    def _end(self) -> list[Future[Any]]:
        ends = [Future[Any]() for _ in range(0 if self._closed or not self._pid else self._count)]
        self._closed = True
        for end in ends:
            self._jobs.put((end, None))
        return ends

    def __del__(self) -> None:
        self._end()


_Job = tuple[Future[Any], Callable[[ExitStack], Any] | None]


def _work(jobs: SimpleQueue[_Job]) -> None:
    while True:
        answer, fn = jobs.get()
        wanted = answer.set_running_or_notify_cancel()
        if fn is None:
            if wanted:
                answer.set_result(None)
            return
        if wanted:
            _do(answer, fn)
        del answer, fn  # an idle thread must not keep a record alive


def _do(answer: Future[T], fn: Callable[[ExitStack], T]) -> None:
    with suppress(BaseException), ExitStack() as after:  # the answer is given, the thread goes on
        try:
            result = fn(after)
        except BaseException as exc:
            answer.set_exception(exc)
            del answer, fn  # or the traceback would keep them, and they it
        else:
            answer.set_result(result)
