"""Opening a key: one `async with`, entered and left in whichever tasks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Generic, TypeVar

from . import _io_thread
from ._checkpointer import Checkpointer
from ._claim import Decide, claim
from ._codecs import Coder
from ._engine import Engine
from ._errors import ClosedError
from ._held import Held

T = TypeVar("T")


class Opening(Generic[T]):
    """Claims on entry, flushes on exit. `engine` is asked for only then."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        key: str,
        coder: Coder[T],
        decide: Decide,
        *,
        keep: int,
        min_interval: float | None,
        flush_timeout: float,
        reserve: bool = True,
    ) -> None:
        """`reserve`: whether the key must still be free; a run has reserved it for itself."""
        self._engine = engine
        self._key = key
        self._coder = coder
        self._decide = decide
        self._keep = keep
        self._min_interval = min_interval
        self._flush_timeout = flush_timeout
        self._reserve = reserve
        self._entered = False
        self._cp: Checkpointer[T] | None = None

    async def __aenter__(self) -> Checkpointer[T]:
        engine, key = self._engine(), self._key
        if self._entered:
            raise ClosedError("what open() gives is entered once: call open() again")
        if self._reserve:
            engine.reserve(key, self)
        self._entered = True
        try:
            held = await self._claim(engine)
        except BaseException:
            engine.release(key, self)
            raise
        self._cp = Checkpointer(held, engine.writer, engine.io, self._coder, self._flush_timeout)
        if engine.stopping.requested:
            engine.io.post(engine.stop_one, held)
        return self._cp

    async def _claim(self, engine: Engine) -> Held:
        claimed: Future[Held] = Future()
        engine.io.owe(claimed)
        work = engine.io.call(self._claim_into(engine, claimed))
        try:
            return await _io_thread.result(claimed)
        except BaseException:
            if claimed.cancel():
                work.cancel()
            elif not claimed.exception():  # cancelled as the claim came through
                with contextlib.suppress(ClosedError):
                    engine.io.post(self._abandon, engine, claimed.result())
            raise

    async def _claim_into(self, engine: Engine, claimed: Future[Held]) -> None:
        interval = self._min_interval
        task = asyncio.current_task()
        assert task is not None
        engine.io.at_work(task)
        try:
            held = await claim(
                engine.writer,
                self._key,
                self._decide,
                spool_base=engine.spool_base,
                keyring=engine.keyring,
                keep=self._keep,
                min_interval=engine.store.min_interval if interval is None else interval,
                plain=self._coder.raw,
            )
        except Exception as exc:
            if claimed.set_running_or_notify_cancel():
                claimed.set_exception(exc)
        else:
            if claimed.set_running_or_notify_cancel():
                claimed.set_result(held)
            else:
                self._abandon(engine, held)

    def _abandon(self, engine: Engine, held: Held) -> None:
        """Nobody waits for the claim any more, and nothing was staged."""
        held.leaving = Future()
        engine.writer.leave(held, self._flush_timeout)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._cp is not None
        engine = self._engine()
        engine.release(self._key, self)
        await self._cp._exit.leave(exc, engine.stopping.flush_time(self._flush_timeout))
