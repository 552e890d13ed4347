"""The writer's calendar: when to look at which slot again."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Collection, Iterator

from ._held import Held

_STALE = 64  # entries that may be of no use any more


class Calendar:
    """Slots by the time at which they may be committed next. Those whose time is not come cost
    nothing."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Held]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def next(self) -> float:
        """The earliest time that is entered; infinity if none is."""
        return self._entries[0][0] if self._entries else math.inf

    def add(self, held: Held) -> None:
        """Enter a slot at its `next_at`, unless it is there with an earlier time already."""
        if held.awaited is None or held.next_at < held.awaited:
            held.awaited = held.next_at
            heapq.heappush(self._entries, (held.next_at, next(self._order), held))

    def due(self, now: float) -> Iterator[Held]:
        """Take out the slots whose time has come."""
        while self._entries and self._entries[0][0] <= now:
            when, _, held = heapq.heappop(self._entries)
            if when == held.awaited:  # else an earlier entry has taken its place
                held.awaited = None
                yield held

    def keep(self, holding: Collection[Held]) -> None:
        """Forget all others, now and then."""
        if len(self._entries) > 2 * len(holding) + _STALE:
            self._entries = [
                entry
                for entry in self._entries
                if entry[2] in holding and entry[0] == entry[2].awaited
            ]
            heapq.heapify(self._entries)
