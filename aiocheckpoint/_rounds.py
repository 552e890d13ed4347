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

EVERY = 0.008  # seconds
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
        self.knocking: deque[Held] = deque()
        """Slots that were idle when they were written to; appended to by any thread."""
        self.going = False
        """True while who knocks is heard at the next round: else `hear` must be posted."""
        self.expected = math.inf
        """When the I/O thread should be heard next, by `time.monotonic`, which is the time of its
        loop."""

    def pace(self) -> Pace:
        """From any thread: its own pace."""
        return self._paces.setdefault(get_ident(), Pace())

    def hear(self) -> None:
        """Wake all that knock."""
        for _ in range(len(self.knocking)):
            self._wake(self.knocking.popleft())

    def begin(self) -> None:
        """One slot more is active."""
        self._active += 1
        if not self.going:
            self.going = True
            self._go_on()

    def end(self) -> None:
        """One slot less is."""
        self._active -= 1

    def look_at(self, held: Held) -> None:
        """See to a slot when its time has come."""
        self._calendar.add(held)

    def forget_others(self, holding: Collection[Held]) -> None:
        self._calendar.keep(holding)

    def _round(self) -> None:
        now = self._loop.time()
        self.expected = min(self.expected, now)  # while this takes its time, it goes on waiting
        try:
            for pace in list(self._paces.values()):
                pace.remind(now)
            self.hear()
            for held in self._calendar.due(self._loop.time()):
                self._see_to(held)
        finally:  # whatever happens: who knocks relies on it
            self.going = self._active > 0
            if self.going:
                self._go_on()
            else:
                self.expected = math.inf
                self.hear()  # who came just before it could see that nobody is about

    def _go_on(self) -> None:
        now = self._loop.time()
        self.expected = now + EVERY
        # a store that works in threads may wait for the interpreter as well
        since = self._waiting_since()
        if now - since < _SLOW:
            self.expected = min(self.expected, since + EVERY)
        self._loop.call_later(EVERY, self._round)
