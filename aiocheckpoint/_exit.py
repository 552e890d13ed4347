"""The exit: the user's side of leaving a handle."""

from __future__ import annotations

from concurrent.futures import Future

from . import _io_thread
from ._errors import CheckpointError, ClosedError, FencedError
from ._held import Held, report
from ._io_thread import IOThread
from ._writer import Writer


class Exit:
    """Closes one handle and sees to it that all is stored, or that somebody is told."""

    __slots__ = ("_held", "_io", "_slot", "_writer")

    def __init__(self, held: Held, writer: Writer, io: IOThread) -> None:
        self._held = held
        self._slot = held.slot
        self._writer = writer
        self._io = io

    async def leave(self, exc: BaseException | None, timeout: float) -> None:
        """Close, and wait until all is stored; `exc` is what the body ends with."""
        leaving = self.close(timeout)
        try:
            if isinstance(exc, GeneratorExit):  # a closing coroutine must not wait on the loop
                _io_thread.block(leaving)
            else:
                await _io_thread.done_or_blocked(leaving)
        except BaseException:
            leaving.add_done_callback(self.report)
            raise
        self.left(leaving, exc)

    def close(self, timeout: float) -> Future[None]:
        """Refuse every later write. The future is done when all is stored, or its time is over."""
        held, slot = self._held, self._slot
        leaving: Future[None] = Future()
        if held.deleted:
            leaving.set_result(None)
            return leaving
        slot.close(ClosedError(f"the checkpointer of {slot.key!r} is closed: open the key again"))
        held.leaving = leaving
        self._io.owe(leaving)
        try:
            self._io.post(self._writer.leave, held, timeout)
        except ClosedError as closed:
            leaving.set_exception(closed)
        return leaving

    def left(self, leaving: Future[None], exc: BaseException | None) -> None:
        """Say how leaving went: raise it, or attach it to what the body ends with."""
        if leaving.done():
            error = self._failure(leaving)
            if exc is not None:
                self._attach(exc, error)
            elif error is not None:
                raise error
        else:
            leaving.add_done_callback(self.report)

    def report(self, leaving: Future[None]) -> None:
        """Where nobody is there to raise it to."""
        if error := self._failure(leaving):
            report(self._held, error)

    def _failure(self, leaving: Future[None]) -> BaseException | None:
        """Why leaving has failed, if it has."""
        error = leaving.exception()
        if isinstance(error, ClosedError):  # the runtime had ended, and flushed what it could
            held, slot = self._held, self._slot
            return (slot.error or held.timed_out()) if slot.dirty else None
        return error

    def _attach(self, exc: BaseException, error: BaseException | None) -> None:
        """A failed flush never masks the exception in flight."""
        if error is None or (isinstance(error, FencedError) and isinstance(exc, CheckpointError)):
            return
        exc.add_note(f"aiocheckpoint: leaving {self._slot.key!r} failed as well: {error}")
        report(self._held, error)
