"""For tests of tasks: interrupt one at its n-th write, resume it, retry without waiting."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, TypeVar, TypeVarTuple, Unpack

from .. import blocking
from .._checkpointer import Checkpointer
from .._policy import RetryPolicy
from .._runner import Run
from .._runtime import Runtime
from .._task import Task
from ..stores.memory import MemoryStore

T = TypeVar("T")
R = TypeVar("R")
Args = TypeVarTuple("Args")

By = type[BaseException] | BaseException | signal.Signals


class Interrupted(BaseException):
    """What `interrupt_at` raises. Nothing retries it and no `except Exception` holds it up."""


def interrupt_at(
    *,
    write: int,
    key: str | None = None,
    by: type[BaseException] | BaseException | signal.Signals = Interrupted,
    lost: bool = False,
) -> AbstractContextManager[None, bool]:
    """Within this block, interrupt whoever makes the `write`-th write, once that is staged.

    The block counts the writes (`write`, `write_nowait` and `save`, of the blocking handle as well)
    that are made in this process while it lasts, over keys, attempts and runs, and interrupts once.
    An `Interrupted` ends with the block, which therefore stands for the process: what comes after
    it is the next one. Any other exception goes its own way. Blocks may overlap.

    Args:
        write: Which write, from 1.
        key: Count only the writes of this key.
        by: An exception or its type, to be raised from the write, or a signal that the process
            is sent. SIGTERM ends a run at one of its next writes; SIGKILL, in a process of its
            own, is the real thing.
        lost: Interrupt just before the write instead, so that its state is lost: the step before
            it has been done, and is done again by whoever resumes.

    Raises:
        AssertionError: the block has ended by itself, and with fewer writes: nothing was tested.
    """
    if type(write) is not int or write < 1:
        raise ValueError(f"write={write!r}: it is an int, 1 or more")
    is_signal = isinstance(by, signal.Signals)
    kind: object = by if isinstance(by, type) else type(by)
    if not (is_signal or (isinstance(kind, type) and issubclass(kind, BaseException))):
        raise TypeError(f"by={by!r}: it is an exception, its type, or a signal.Signals")
    if lost and is_signal and by != signal.SIGKILL:
        raise ValueError(f"lost=True: after {by!r} the write is made all the same")
    return _Interruption(_Watch(key, write, by, lost=lost))


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within this block, retries of runs in this process come at once, whatever the policy says.

    `retry_after` does not count either. Which failures are retried, how often, and until which
    `deadline` (reckoned with the waits) stays as it is; so does the log. Blocks may overlap.
    """
    with _at_once:
        yield


async def check_resumes(
    fn: Task[T, *Args, R] | Callable[[Checkpointer[T], Unpack[Args]], Awaitable[R]],
    *args: *Args,
    key: str | None = None,
    retry: int | RetryPolicy | None = None,
    at: Iterable[int] | None = None,
    lost: bool = False,
) -> R:
    """Run a task undisturbed; then, for each of its writes, interrupt it there, resume it, and
    see that the result is the same. Return that result.

    Every round has a new store in memory. A task that writes n times is run n + 1 times over,
    so keep it small, or choose writes. It must be deterministic, and its other effects
    (files, messages) are yours to look at: with `lost=True` each step may be done twice.

    Args:
        fn, args, key, retry: As for `Runtime.run`; retries do not wait.
        at: Which writes to interrupt it at, from 1; None: every one.
        lost: Lose the write that it is interrupted at, as in `interrupt_at`.

    Raises:
        AssertionError: a resumed run gave another result, or began anew: it wrote no less than
            the undisturbed one although two writes or more had been kept. Or there was no write.
    """

    async def run(store: MemoryStore) -> R:
        async with Runtime(store, spool=spool) as rt:
            return await rt.run(fn, *args, key=key, retry=retry)

    with no_waiting(), TemporaryDirectory() as spool:
        with _Watch() as undisturbed:
            expected = await run(MemoryStore())
        if not undisturbed.writes:
            raise AssertionError("the task never wrote: there is nothing to resume from")
        for n in range(1, undisturbed.writes + 1) if at is None else at:
            store = MemoryStore()
            with interrupt_at(write=n, lost=lost):
                await run(store)
            with _Watch() as resumed:
                found = await run(store)
            if found != expected:
                raise AssertionError(
                    f"interrupted at write {n} and resumed, it gave {found!r} instead of"
                    f" {expected!r}"
                )
            if n - lost >= 2 and resumed.writes >= undisturbed.writes:
                raise AssertionError(
                    f"interrupted at write {n}, it began anew: it wrote {resumed.writes} times, and"
                    f" undisturbed {undisturbed.writes} times; does it read() its state?"
                )
    return expected


class _Patch:
    """Methods of a class that others stand in for while anybody is inside. So what is not being
    tested pays nothing."""

    def __init__(self, of: type, **instead: Callable[..., Any]) -> None:
        self._of = of
        self._instead = instead
        self._before = {name: getattr(of, name) for name in instead}
        self._inside = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._set(self._instead)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._set(self._before)

    def _set(self, methods: dict[str, Callable[..., Any]]) -> None:
        for name, method in methods.items():
            setattr(self._of, name, method)


class _Watch:
    """Counts writes while it is entered, and interrupts at one of them."""

    def __init__(
        self, key: str | None = None, at: int = 0, by: By = Interrupted, *, lost: bool = False
    ) -> None:
        self.key = key
        self.at = at
        self.writes = 0
        self.raised: BaseException | None = None
        self._by = by
        self._lost = lost
        self._lock = threading.Lock()

    def __enter__(self) -> _Watch:
        for patch in _counting:
            patch.__enter__()
        _watches.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _watches.remove(self)
        for patch in _counting:
            patch.__exit__()

    def sees(self, cp: Checkpointer[Any]) -> bool:
        """Count a write about to be made; True if it is to be interrupted once it has been."""
        if self.key not in (None, cp.key):
            return False
        with self._lock:
            self.writes += 1
            if self.writes != self.at:
                return False
        if self._lost:
            self.strike()
        return not self._lost

    def strike(self) -> None:
        by = self._by
        if isinstance(by, signal.Signals):
            os.kill(os.getpid(), by)
        else:
            self.raised = by() if isinstance(by, type) else by
            raise self.raised


class _Interruption:
    """The block of `interrupt_at`: an Interrupted that it has raised ends with it."""

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch

    def __enter__(self) -> None:
        self._watch.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        watch = self._watch
        watch.__exit__()
        if exc is None:
            if watch.writes < watch.at:
                of = "" if watch.key is None else f" of {watch.key!r}"
                raise AssertionError(
                    f"interrupt_at(write={watch.at}): only {watch.writes} writes{of} came"
                )
            return False
        rest = _without(exc, watch.raised) if isinstance(watch.raised, Interrupted) else exc
        if rest is not None and rest is not exc:
            raise rest from None
        return rest is None


def _without(exc: BaseException, ours: BaseException) -> BaseException | None:
    """The exception, or what is left of the group, when one is taken away."""
    if exc is ours:
        return None
    if isinstance(exc, BaseExceptionGroup) and exc.subgroup(lambda leaf: leaf is ours):
        return exc.split(lambda leaf: leaf is ours)[1]
    return exc


@contextmanager
def _seen(cp: Checkpointer[Any]) -> Iterator[None]:
    hit = [watch for watch in tuple(_watches) if watch.sees(cp)]
    yield
    for watch in hit:
        watch.strike()


_plain_write = Checkpointer.write
_plain_write_nowait = Checkpointer.write_nowait
_plain_save = Checkpointer.save
_plain_blocking_save = blocking.Checkpointer.save
_plain_nap = Run._nap


@functools.wraps(_plain_write)
async def _write(self: Checkpointer[T], state: T) -> int:
    with _seen(self):
        return await _plain_write(self, state)


@functools.wraps(_plain_write_nowait)
def _write_nowait(self: Checkpointer[T], state: T) -> int:
    with _seen(self):
        return _plain_write_nowait(self, state)


@functools.wraps(_plain_save)
async def _save(self: Checkpointer[T], *args: Any, **kwargs: Any) -> int:
    with _seen(self):
        return await _plain_save(self, *args, **kwargs)


@functools.wraps(_plain_blocking_save)
def _blocking_save(self: blocking.Checkpointer[T], *args: Any, **kwargs: Any) -> int:
    with _seen(self._cp):
        return _plain_blocking_save(self, *args, **kwargs)


async def _nap_at_once(self: Run[Any, Any, Any], wait: float) -> None:
    await _plain_nap(self, 0.0)


_watches: list[_Watch] = []
_counting = (
    _Patch(Checkpointer, write=_write, write_nowait=_write_nowait, save=_save),
    _Patch(blocking.Checkpointer, save=_blocking_save),
)
_at_once = _Patch(Run, _nap=_nap_at_once)
