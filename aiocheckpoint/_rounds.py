"""The writer's rounds: while it has anything to do, it sees every few milliseconds who knocks, and
whose time has come."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Collection
from threading import get_ident

from ._calendar import Calendar
from ._held import Held
from ._pace import Pace

EVERY = 0.008  # seconds between two rounds, while commits are under way or somebody has knocked
_MOST = 0.1  # seconds at most, while slots wait for their time
_QUICK = 0.002  # seconds in which an answer is worth waiting for
_SLOW = 1.0  # seconds after which it is the store that is slow, not the interpreter that is busy


class Rounds:
    """Lives on the I/O loop. `knocking`, `going` and `expected` are read by the user's side, which
    appends to the first."""

    def __init__(
        self,
        wake: Callable[[Held], None],
        see_to: Callable[[Held], None],
        waiting_since: Callable[[], float],
    ) -> None:
        """`wake` is given who knocks, `see_to` whose time has come; `waiting_since` is when the
        store was last heard, if it is to answer."""
        self._wake = wake
        self._see_to = see_to
        self._waiting_since = waiting_since
        self._loop = asyncio.get_running_loop()
        self._calendar = Calendar()
        self._paces: dict[int, Pace] = {}
        self._active = 0
        self._timer: asyncio.TimerHandle | None = None
        self.knocking: deque[Held] = deque()
        """Slots that were idle when they were written to; appended to by any thread."""
        self.going = False
        """True while a round is near, in which who knocks is heard: else `hear` must be posted."""
        self.expected = math.inf
        """When the I/O thread should be heard next, by `time.monotonic`, which is the time of its
        loop."""
        self.answer = math.inf
        """When the store was given what it has not answered, unless it is slow."""

    def pace(self) -> Pace:
        """From any thread: its own pace."""
        return self._paces.setdefault(get_ident(), Pace())

    def hear(self) -> None:
        """Wake all that knock."""
        heard = len(self.knocking)
        for _ in range(heard):
            self._wake(self.knocking.popleft())
        if heard and self._active:
            self._come_by(self._loop.time() + EVERY)

    def begin(self) -> None:
        """One slot more is active."""
        self._active += 1
        self._come_by(self._loop.time() + EVERY)

    def end(self) -> None:
        """One slot less is."""
        self._active -= 1

    def look_at(self, held: Held) -> None:
        """See to a slot when its time has come."""
        self._calendar.add(held)
        if self._timer is not None and held.next_at < self._timer.when() - EVERY:
            self._come_by(held.next_at)

    def forget_others(self, holding: Collection[Held]) -> None:
        self._calendar.keep(holding)

    def _round(self) -> None:
        self._timer = None
        now = self._loop.time()
        self.expected = min(self.expected, now)  # while this takes its time, it goes on waiting
        try:
            for pace in list(self._paces.values()):
                pace.remind(now)
            self.hear()
            for held in self._calendar.due(self._loop.time()):
                self._see_to(held)
        finally:  # whatever happens: who knocks relies on it
            self._loop.call_soon(self._go_on)  # once commits have begun

    def _go_on(self) -> None:
        now = self._loop.time()
        if not self._active:
            self.going = False
            self.expected = self.answer = math.inf
        elif (since := self._waiting_since()) < math.inf:  # the longer it takes, the rarer
            self._come_by(now + min(max(EVERY, now - since), _MOST))
        else:
            self._come_by(self._next(now))
        if not self.going:
            self.hear()  # who came just before it could see that nobody is about
        self.rest()

    def rest(self) -> None:
        """The store has answered: if it has nothing left to do, tell who waits for that, and come
        no sooner than there is something to see to."""
        now, since = self._loop.time(), self._waiting_since()
        if 0 <= now - since < _QUICK:
            return
        for pace in list(self._paces.values()):
            pace.relieve()
        if since < math.inf:
            return
        if self._timer is not None and self._timer.when() < (when := self._next(now)) - EVERY:
            self._timer.cancel()
            self._timer = None
            self._come_by(when)
            if self.knocking:
                self.hear()

    def _next(self, now: float) -> float:
        """When there is something to see to."""
        return min(max(self._calendar.next, now + EVERY), now + _MOST)

    def _come_by(self, when: float) -> None:
        """Have the next round at that time, or before."""
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._round)
        now = self._loop.time()
        self.going = when <= now + EVERY
        self.expected = when
        # a store that works in threads may wait for the interpreter as well
        since = self._waiting_since()
        self.answer = since if now - since < _SLOW else math.inf
