"""A trampoline under a coroutine: counts where it waits, and has it interrupted just there.

`Driven` is a coroutine around a coroutine, and sees each of its suspensions. `Points` counts those
of a program in the user's loop (`main`, and the tasks beside it) and of what runs for it in the I/O
thread, and interrupts the program at one of them.

So that the same points come each time, what the program asks of the I/O thread begins only when
the program waits (`slowly`). That leaves two moments to interrupt it at each point: *early*, before
the I/O thread has begun, and *late*, when its answer is on its way and has not come.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import outcome
import pytest

from aiocheckpoint import _io_thread
from aiocheckpoint._io_thread import IOThread

A = TypeVar("A")
T = TypeVar("T")
_HOPS = 8
"""Rounds of the user's loop in which a cancellation that is not shielded has been delivered."""


class Driven(Coroutine[Any, Any, T]):
    """A coroutine like `inner`. Each time that waits, `waits` is called; what it returns is raised
    there and then. `wakes` is called before it goes on, with the exception that it is given."""

    def __init__(
        self,
        inner: Coroutine[Any, Any, T],
        waits: Callable[[], BaseException | None],
        wakes: Callable[[BaseException | None], None] = lambda _: None,
    ) -> None:
        self._inner = inner
        self._waits = waits
        self._wakes = wakes

    def send(self, value: Any) -> Any:
        error = value.error if isinstance(value, outcome.Error) else None  # trio's way
        self._wakes(error)
        return self._until_it_waits(self._inner.send(value))

    def throw(self, kind: Any, error: Any = None, traceback: Any = None) -> Any:
        error = kind if error is None else error
        self._wakes(error)
        return self._until_it_waits(self._inner.throw(error))

    def _until_it_waits(self, waits_for: Any) -> Any:
        while error := self._waits():
            waits_for = self._inner.throw(error)
        return waits_for

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self

    def __iter__(self) -> Driven[T]:
        return self

    def __next__(self) -> Any:
        return self.send(None)


@dataclass(frozen=True, slots=True)
class Point:
    """Where a program waits: for what it said it does, for which time, and on which side."""

    doing: str
    number: int
    side: str = "user"
    """`user`: in the user's loop. `io`: a coroutine that runs for it in the I/O thread."""
    whole: bool = field(default=True, compare=False)
    """False for a step that can be given up alone."""


class Points:
    """The points of one run of a program, and what to do at one of them.

    `at` is the point to interrupt at; `late`: with the answer of the I/O thread on its way.
    """

    def __init__(self, at: Point | None = None, *, late: bool = False) -> None:
        self.seen: list[Point] = []
        self.interrupted = False
        self.delivered = 0
        """How many exceptions have been raised in the program since it was interrupted."""
        self._at = at
        self._first: Callable[[], BaseException | None] = lambda: None
        self._again: list[Callable[[], object]] = []
        self._late = late
        self._doing, self._whole = "", True
        self._unseen = False
        self._counts: dict[tuple[str, str], int] = {}
        self._thread = threading.get_ident()
        self._stepping = False
        self._early = False  # from an early interruption until it has come, nothing is let go
        self._held: list[Callable[[], object]] = []
        self._asked = False
        self._answered = threading.Event()
        self._catching = False
        self._caught: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._acted = threading.Event()
        self._call: Callable[[Callable[[], object]], None]

    def interrupt(
        self, target: A, first: Callable[[A], BaseException | None], *again: Callable[[A], object]
    ) -> None:
        """How to interrupt: by `first(target)`, which may give what is to be raised; then by each
        of `again`, at one of the program's next suspensions once something has been delivered."""
        self._first = functools.partial(first, target)
        self._again = [functools.partial(act, target) for act in again]

    @contextmanager
    def doing(self, what: str, *, whole: bool = True) -> Iterator[None]:
        """What the program does meanwhile: the name of its points."""
        before, self._doing, self._whole = (self._doing, self._whole), what, whole
        try:
            yield
        finally:
            self._doing, self._whole = before

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """What is done meanwhile, in other threads, has no points."""
        self._unseen = True
        try:
            yield
        finally:
            self._unseen = False

    # In the user's loop.

    async def main(self, program: Coroutine[Any, Any, T]) -> T:
        """Run the program: this is what is interrupted."""
        self._call = _caller()
        try:
            return await Driven(program, lambda: self._waits(main=True), self._wakes)
        finally:
            self._let_go()
            self._acted.set()

    def beside(self, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """A part of the program in a task of its own: its points count, and it is not interrupted
        itself."""
        return Driven(coroutine, lambda: self._waits(main=False), lambda _: self._steps())

    def _steps(self) -> None:
        self._stepping = True
        self._asked = False

    def _wakes(self, error: BaseException | None) -> None:
        if error is not None and self.interrupted:
            self.delivered += 1
            self._let_go()  # who is interrupted may wait without the loop
            self._asked = False
        else:
            self._steps()

    def _waits(self, *, main: bool) -> BaseException | None:
        self._stepping = False
        if main and self.delivered:
            self._acted.set()
            if self._again:
                self._again.pop(0)()
        error = None
        if self._is_it("user"):
            if self._late and self._asked:
                self._catching = True
                self._let_go()
                if not self._answered.wait(5):
                    raise AssertionError(f"no answer came to {self._at}")
            self.interrupted = True
            error = self._first()
            self._pass_on()
            if error is not None:
                self.delivered += 1
                self._let_go()
            else:
                self._early = not self._late
                self._after_hops(self._let_go)
        elif not self._early:
            self._let_go()
        return error

    def _is_it(self, side: str) -> bool:
        if self._unseen:
            return False
        place = (self._doing, side)
        number = self._counts[place] = self._counts.get(place, -1) + 1
        point = Point(self._doing, number, side, self._whole)
        self.seen.append(point)
        return point == self._at and not self.interrupted

    def _after_hops(self, fn: Callable[[], object], hops: int = _HOPS) -> None:
        """Call it on the user's loop, when what has been requested there has come."""
        self._call(fn if not hops else lambda: self._after_hops(fn, hops - 1))

    def _let_go(self) -> None:
        self._early = False
        held, self._held = self._held, []
        for post in held:
            post()

    # In the I/O thread.

    def behind(self, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """What runs in the I/O thread for the program: its points count too."""
        return _Behind(coroutine, self._waits_behind)

    def _waits_behind(self) -> bool:
        """Whether the program has been interrupted here, so that a cancellation may be near."""
        if not self._is_it("io"):
            return False
        self.interrupted = True
        self._call(self._interrupt)
        if not self._acted.wait(5):
            raise AssertionError(f"the program was not interrupted at {self._at}")
        return True

    def _interrupt(self) -> None:
        self._first()
        self._after_hops(self._acted.set)

    # Between them.

    def post(self, post: Callable[[], object]) -> None:
        """Something is asked of the I/O thread: it begins when the program waits."""
        if threading.get_ident() == self._thread and self._stepping:
            self._held.append(post)
        else:
            post()

    def blocks(self) -> None:
        """The program waits without its loop: for what the I/O thread does."""
        self._acted.set()
        self._stepping = False
        self._let_go()

    def asks(self) -> None:
        self._asked = True

    def answers(self, tell: Callable[[], object]) -> None:
        """The I/O thread has an answer: it comes after a late interruption, if there is one."""
        with self._lock:
            if self._catching:
                self._caught.append(tell)
                self._answered.set()
                return
        tell()

    def _pass_on(self) -> None:
        with self._lock:
            self._catching = False
            caught, self._caught = self._caught, []
        for tell in caught:
            tell()


class _Behind(Driven[T]):
    """A coroutine of the I/O thread. Where the program was interrupted it stays for one more round
    of its loop, in which the cancellation comes, if one does."""

    def __init__(self, inner: Coroutine[Any, Any, T], waits: Callable[[], bool]) -> None:
        super().__init__(inner, self._has_waited)
        self._interrupts = waits
        self._stays = False

    def _has_waited(self) -> None:
        self._stays = self._interrupts()

    def send(self, value: Any) -> Any:
        if self._stays:
            self._stays = False
            return None
        return super().send(value)

    def throw(self, kind: Any, error: Any = None, traceback: Any = None) -> Any:
        self._stays = False
        return super().throw(kind, error, traceback)


_caller = _io_thread.caller


@contextmanager
def slowly(points: Points) -> Iterator[None]:
    """Have I/O threads begin what they are asked for when the program of these points waits, and
    have the points count what runs there."""
    call, run, main, block = IOThread.call, _io_thread.run, IOThread._main, _io_thread.block

    def counted_call(io: IOThread, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return call(io, points.behind(coroutine))

    async def counted_run(
        io: IOThread, coroutine: Coroutine[Any, Any, Any], patience: float
    ) -> Any:
        return await run(io, points.behind(coroutine), patience)

    async def slow_main(io: IOThread) -> None:
        loop: Any = asyncio.get_running_loop()
        post = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args, **kwargs: points.post(
            lambda: post(*args, **kwargs)
        )
        await main(io)

    def told_block(future: Future[Any]) -> None:
        points.blocks()
        block(future)

    def told_caller() -> Callable[[Callable[[], object]], None]:
        tell = _caller()
        points.asks()

        def called(fn: Callable[[], object]) -> None:
            points.answers(lambda: tell(fn))

        return called

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IOThread, "call", counted_call)
        patch.setattr(IOThread, "_main", slow_main)
        patch.setattr(_io_thread, "run", counted_run)
        patch.setattr(_io_thread, "caller", told_caller)
        patch.setattr(_io_thread, "block", told_block)
        yield
