"""The runner: attempts, backoff, results."""

from __future__ import annotations

import contextvars
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Any, Generic, TypeVar, TypeVarTuple, cast

import anyio
import msgspec

from ._checkpointer import Checkpointer
from ._claim import Decide, Plan
from ._codecs import Coder
from ._errors import CheckpointError, FencedError, StoppedError
from ._policy import AttemptTimeoutError, seconds
from ._records import Record
from ._slot import Meta
from ._stopping import Stopping
from ._task import Task

T = TypeVar("T")
R = TypeVar("R")
Args = TypeVarTuple("Args")

Open = Callable[[str, Coder[T], Decide], AbstractAsyncContextManager[Checkpointer[T]]]

_current: contextvars.ContextVar[Checkpointer[Any]] = contextvars.ContextVar("checkpointer")
_log = logging.getLogger("aiocheckpoint")


def current() -> Checkpointer[Any]:
    """The checkpointer of the running task, for code deep inside it.

    Raises:
        RuntimeError: no task of `Runtime.run` or `aiocheckpoint.run` is running here.
    """
    try:
        return _current.get()
    except LookupError:
        raise RuntimeError(
            "no task is running here: current() works inside functions that Runtime.run or"
            " aiocheckpoint.run runs"
        ) from None


class _Finished(Exception):
    """The claim found a run that is done: there is nothing to run."""

    def __init__(self, record: Record) -> None:
        self.record = record


class Run(Generic[T, *Args, R]):
    """One call of `run`: attempts until one succeeds or no retry is left."""

    def __init__(
        self,
        task: Task[T, *Args, R],
        key: str,
        args: tuple[*Args],
        *,
        stopping: Stopping,
        fresh: bool = False,
        level: int = logging.INFO,
    ) -> None:
        """`level`: of the log lines that say how it begins."""
        self._task = task
        self._args = args
        self.key = key
        self._fresh = fresh
        self._stopping = stopping
        self._level = level
        self._claim: bytes | None = None  # ours, once the first attempt has begun
        self._began = time.monotonic()

    async def result(self, open: Open[T]) -> R:
        """Run to the result."""
        try:
            while True:
                if self._stopping.requested:
                    raise StoppedError(f"the runtime is stopping; {self.key!r} was not started")
                failure: Exception | None = None
                try:
                    opening = open(self.key, self._task.coder, self._decide)
                    async with _Opening(opening, self._stopping, self.key) as cp:
                        self._claim = cp._held.record.claim
                        cp._stops = True
                        try:
                            result = await self._attempt(cp)
                            data, codec = self._task.encode_result(result)
                        except Exception as exc:
                            wait = self._after(cp, exc)
                            failure = exc
                        else:
                            _amend(cp, status="done", result=data, result_codec=codec)
                            return result
                except CheckpointError as exc:
                    if failure is None:
                        raise
                    raise exc from failure  # leaving failed as well
                await self._nap(wait)
        except _Finished as finished:
            record = finished.record
            _log.log(
                self._level,
                "%r is done since attempt %d: returning its result",
                self.key,
                record.attempt,
            )
            return self._task.decode_result(record.result or b"", record.result_codec)

    def _decide(self, record: Record | None) -> Plan:
        return Plan(self._meta(record), self._fresh and self._claim is None, self._level)

    def _meta(self, record: Record | None) -> Meta:
        if self._claim is not None:
            if record is None:
                raise FencedError(f"{self.key!r} was deleted before our retry")
            if record.claim != self._claim:
                raise FencedError(f"{self.key!r} was claimed by a newer attempt before our retry")
            return Meta(attempt=record.attempt + 1, burnt=record.burnt)
        if record is None or self._fresh:
            return Meta()
        if record.status == "done":
            raise _Finished(record)
        if record.status == "failed":
            return Meta()
        return Meta(attempt=record.attempt + 1, burnt=record.burnt)

    async def _attempt(self, cp: Checkpointer[T]) -> R:
        policy = self._task.retry
        token = _current.set(cp)
        scope = anyio.CancelScope()
        if policy.attempt_timeout is not None:
            scope.deadline = anyio.current_time() + seconds(policy.attempt_timeout)
        try:
            with scope, self._stopping.interrupting(scope):
                awaitable: object = self._task.fn(cp, *self._args)
                if not isinstance(awaitable, Awaitable):
                    raise TypeError(f"{self._task!r} gave no awaitable: make its function async")
                return cast(R, await awaitable)
        except BaseException as exc:
            # closed, not failed: the scope could not be left, as its loop is gone
            cause: BaseException | None = exc
            while cause is not None and not isinstance(cause, GeneratorExit):
                cause = cause.__context__ if isinstance(exc, RuntimeError) else None
            if cause is not None:
                raise cause from None
            raise
        finally:
            with suppress(ValueError):  # closed from elsewhere: that context is gone too
                _current.reset(token)
        if self._stopping.requested:
            raise StoppedError(f"the runtime is stopping; {self.key!r} was cancelled")
        raise AttemptTimeoutError(
            f"attempt {cp.attempt} of {self.key!r} ran longer than {policy.attempt_timeout}"
        )

    def _after(self, cp: Checkpointer[T], exc: Exception) -> float:
        """Record a failure; the wait before the next attempt, or raise what ends the run."""
        if _has_stopped(exc, self._stopping.requested):
            if isinstance(exc, StoppedError):
                raise exc
            raise StoppedError(f"the runtime is stopping; {self.key!r} ended") from exc
        policy = self._task.retry
        slot = cp._slot
        progress = slot.newest_seq > slot.first
        retry = 1 + (0 if policy.reset_on_progress and progress else slot.meta.burnt)
        wait = policy.wait_before(retry, exc)
        spent = time.monotonic() - self._began
        if wait is not None and policy.deadline is not None:
            wait = wait if spent + wait <= seconds(policy.deadline) else None
        if wait is None:
            _amend(cp, status="failed")
            exc.add_note(
                f"aiocheckpoint: attempt {cp.attempt} of {self.key!r} ended the run;"
                f" {retry - 1} of {policy.retries} retries used; state kept: seq {slot.newest_seq}"
            )
            raise exc
        _amend(cp, burnt=retry)
        _log.warning(
            "attempt %d of %r failed (%r): retry %d of %d in %.2f s",
            cp.attempt,
            self.key,
            exc,
            retry,
            policy.retries,
            wait,
        )
        return wait

    async def _nap(self, wait: float) -> None:
        with anyio.CancelScope() as scope, self._stopping.interrupting(scope, nap=True):
            await anyio.sleep(wait)


class _Opening(Generic[T]):
    """An opening that a stop ends while it waits for the store: nothing is staged yet."""

    def __init__(
        self, opening: AbstractAsyncContextManager[Checkpointer[T]], stopping: Stopping, key: str
    ) -> None:
        self._opening = opening
        self._stopping = stopping
        self._key = key

    async def __aenter__(self) -> Checkpointer[T]:
        with anyio.CancelScope() as scope, self._stopping.interrupting(scope, nap=True):
            return await self._opening.__aenter__()
        raise StoppedError(f"the runtime is stopping; {self._key!r} was not started")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._opening.__aexit__(kind, exc, traceback)


def plain_open(record: Record | None) -> Plan:
    """The claim of `open`, outside any run: all stays as it is, one attempt further."""
    if record is None:
        return Plan(Meta())
    return Plan(
        Meta(
            attempt=record.attempt + 1,
            burnt=record.burnt,
            status=record.status,
            result=record.result,
            result_codec=record.result_codec,
        )
    )


def _amend(cp: Checkpointer[T], **changes: Any) -> None:
    """What the attempt's final flush is to say of the run."""
    meta = cp._slot.meta
    cp._slot.meta = msgspec.structs.replace(meta, version=meta.version + 1, **changes)


def _has_stopped(exc: BaseException | None, stopping: bool) -> bool:
    """Whether a stop ended the attempt: raised as it is, in a group, or (while our runtime
    stops) as the cause or context of what the task made of it."""
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        if isinstance(exc, StoppedError):
            return True
        leaves = exc.exceptions if isinstance(exc, BaseExceptionGroup) else ()
        if any(_has_stopped(leaf, stopping) for leaf in leaves):
            return True
        exc = (exc.__cause__ or exc.__context__) if stopping else None
    return False
