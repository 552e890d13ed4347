"""The pace of a thread that writes: when it lets its loop, and the I/O thread, go on."""

from __future__ import annotations

import time

from ._slot import ALERT, Attention, Slot

YIELD_EVERY = 0.008
"""Seconds between two yields of a tight loop. Each costs it some 5 µs."""
_LATE, _STARVED, _BREATH = 0.016, 0.01, 0.0002  # seconds


class Pace:
    """Shared by the handles of one runtime that one thread opened: a loop over ten thousand of
    them yields as often as a loop over one."""

    __slots__ = ("breathed", "slot", "yielded")

    def __init__(self) -> None:
        self.yielded = 0.0
        """When a `write()` last yielded, by `time.monotonic`."""
        self.slot: Slot | None = None
        """What was written to when the clock was last looked at."""
        self.breathed = 0.0
        """When the I/O thread was last let go on, or asked to."""

    def look(self, slot: Slot, expected: float) -> float:
        """See whether it is time to yield, or to let the I/O thread go on; the time.

        `expected` is when that thread should have been heard. A loop that computes and yields in
        turn lets go of the interpreter only for microseconds, and each time makes the thread's
        5 ms of patience begin anew: without this it may wait for seconds.
        """
        now = time.monotonic()
        if now - self.yielded > YIELD_EVERY:
            slot.seen = None
            self.slot = slot
        if now - max(expected, self.breathed) > _STARVED:
            time.sleep(_BREATH)
            self.breathed = now
        return now

    def remind(self, now: float) -> None:
        """From the I/O thread: have a loop yield whose steps have become so slow that it has not
        come to look at the clock."""
        slot = self.slot
        if slot is None or slot.idle or now - self.yielded < _LATE:
            return
        if slot.attention is not ALERT:
            slot.attention = Attention()
