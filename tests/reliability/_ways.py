"""Ways to interrupt a program."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
import trio

from ._programs import Place


@dataclass
class Target:
    """What can be cancelled around a program."""

    place: Place
    inner: anyio.CancelScope
    outer: anyio.CancelScope
    task: asyncio.Task[Any] | None
    """None on trio."""

    def cancel_inner(self) -> None:
        self.inner.cancel()

    def cancel_outer(self) -> None:
        self.outer.cancel()

    def cancel_step(self) -> None:
        if self.place.scope is not None:
            self.place.scope.cancel()

    def cancel_natively(self) -> None:
        assert self.task is not None
        self.task.cancel()

    def cancel_natively_twice(self) -> None:
        self.cancel_natively()
        self.cancel_natively()

    @trio.lowlevel.enable_ki_protection  # so that trio brings it where the program waits
    def ctrl_c(self) -> None:
        signal.raise_signal(signal.SIGINT)

    def close(self) -> BaseException:
        return GeneratorExit()


@dataclass(frozen=True)
class Way:
    """A way to interrupt: what comes at the point, and what at the suspensions after it."""

    name: str
    first: Callable[[Target], BaseException | None]
    again: tuple[Callable[[Target], BaseException | None], ...] = ()
    native: bool = False
    """For asyncio's loops alone."""
    behind: bool = True
    """Whether it can come while something runs in the I/O thread."""

    def for_backend(self, backend: str) -> bool:
        return backend != "trio" or not self.native


_T = Target
WAYS = {
    way.name: way
    for way in (
        Way("scope", _T.cancel_inner),
        Way("scope twice", _T.cancel_inner, (_T.cancel_outer,)),
        Way("step", _T.cancel_step),
        Way("native", _T.cancel_natively, native=True),
        Way("native twice", _T.cancel_natively, (_T.cancel_natively,), native=True),
        Way("native twice at once", _T.cancel_natively_twice, native=True),
        Way("native thrice", _T.cancel_natively, (_T.cancel_natively,) * 2, native=True),
        Way("scope, then native", _T.cancel_inner, (_T.cancel_natively,), native=True),
        Way("Ctrl-C", _T.ctrl_c),
        Way("close", _T.close, native=True, behind=False),
    )
}
