"""The pace of a thread that writes: when it lets its loop, and the I/O thread, go on."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from ._slot import ALERT, Attention, Slot

YIELD_EVERY = 0.008
"""Seconds between two yields of a tight loop. Each costs it some 5 µs."""
_REMIND = 0.016  # seconds without a yield
_LATE, _STARVED = 0.001, 0.01  # seconds past its time: of a round, of an answer of the store
_SPACED = 0.005  # seconds between two breaths
_LONG, _SHORT, _TAIL = 0.002, 0.0002, 0.00005  # seconds of a breath, at most


class Pace:
    """Shared by the handles of one runtime that one thread opened: a loop over ten thousand of
    them yields as often as a loop over one."""

    __slots__ = ("_relief", "_waiting", "breathed", "slot", "yielded")

    def __init__(self) -> None:
        self.yielded = 0.0
        """When a `write()` last yielded, by `time.monotonic`."""
        self.slot: Slot | None = None
        """What was written to when the clock was last looked at."""
        self.breathed = 0.0
        """When the I/O thread was last let go on, or asked to."""
        self._relief = threading.Lock()
        self._relief.acquire()
        self._waiting = False

    def look(self, slot: Slot, expected: float, answer: float) -> float:
        """See whether it is time to yield, or to let the I/O thread go on; the time.

        `expected` is when that thread should have been heard, `answer` when the store should have
        answered. A loop that computes and yields in turn lets go of the interpreter only for
        microseconds, and each time makes the 5 ms of patience of a thread that wants it begin anew.
        It may then wait for seconds, and each yield is dearer meanwhile. So the loop waits, here,
        until the I/O thread is done with a round and the commit that came of it; briefly, if that
        takes long.
        """
        now = time.monotonic()
        if now - self.yielded > YIELD_EVERY:
            slot.seen = None
            self.slot = slot
        if now - expected > _LATE and now - self.breathed > _SPACED:
            self._breathe(_LONG)
        elif now - answer > _STARVED and now - self.breathed > max(_STARVED, (now - answer) / 2):
            self._breathe(_SHORT)
        return now

    def _breathe(self, seconds: float) -> None:
        self._waiting = True
        if self._relief.acquire(timeout=seconds):
            time.sleep(_TAIL)  # the threads of the store and the loop have a last word to say
        self._waiting = False
        self.breathed = time.monotonic()

    def relieve(self) -> None:
        """From the I/O thread: it has nothing more to do."""
        if self._waiting:
            self._waiting = False
            with suppress(RuntimeError):  # who waited has just given up, and had it already
                self._relief.release()

    def remind(self, now: float) -> None:
        """From the I/O thread: have a loop yield whose steps have become so slow that it has not
        come to look at the clock."""
        slot = self.slot
        if slot is None or slot.idle or now - self.yielded < _REMIND:
            return
        if slot.attention is not ALERT:
            slot.attention = Attention()
