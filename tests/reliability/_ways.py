"""Ways to interrupt a program."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import anyio
import trio

from ._interrupting import Point
from ._place import Place


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

    def wait(self) -> None:
        """Let the program come to its next suspension."""

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

    def fits(self, backend: str, point: Point) -> bool:
        """Whether a program on this backend can be interrupted so at this point."""
        if self.first is Target.cancel_step and point.whole:
            return False
        if self.first is Target.close and point.doing.startswith(("Runtime.keys", "map")):
            # Python itself cannot close a generator that is being iterated; and a map takes a
            # close in its own task for that of a generator around it, which may wait
            return False
        if point.side == "io" and not self.behind:
            return False
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

ONCE = [WAYS[name] for name in ("scope", "native", "Ctrl-C", "step", "close")]
TWICE = [
    WAYS[name]
    for name in (
        "native twice",
        "scope twice",
        "native thrice",
        "scope, then native",
        "native twice at once",
    )
]


def any_way(rng: Random) -> Way:
    """Once, twice or three times, with so many suspensions between."""
    if rng.random() < 0.3:
        return rng.choice(list(WAYS.values()))
    again: list[Callable[[Target], BaseException | None]] = []
    natively = rng.random() < 0.7
    for _ in range(rng.randrange(3)):
        again += [_T.wait] * rng.choice((0, 0, 1, 2, 5))
        again.append(_T.cancel_natively if natively else _T.cancel_outer)
    first = _T.cancel_natively if natively and rng.random() < 0.7 else _T.cancel_inner
    return Way("any", first, tuple(again), native=natively)
