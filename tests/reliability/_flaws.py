"""Guarantees broken on purpose: a storm that does not find them proves nothing.

Each is applied inside of the process that is to be killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from aiocheckpoint import _region, _spool, _writer


def no_promotion() -> None:
    """A claim does not look into the spool."""
    _spool.left_over = lambda directory: []


def trailer_first() -> None:
    """A half of a region says that it is whole before it is."""

    def stager(place: Any, capacity: int, overflow: Any) -> Any:
        view = place.view
        halves = (_region._HEAD, _region._HEAD + capacity + _region._TRAILER.size)

        def stage(seq: int, data: bytes, _: object = place) -> None:
            if len(data) > capacity:
                overflow(seq, data)
                return
            start = halves[0]  # and both states go to one half
            _region._TRAILER.pack_into(
                view, start + capacity, len(data), seq, _region._hash(data, seq)
            )
            time.sleep(0.0005)
            view[start : start + len(data)] = data

        return stage

    _region._stager = stager


def flush_does_not_wait() -> None:
    """`flush()` returns at once."""

    def flush(self: Any, held: Any, seq: int, meta: Any, ended: Any) -> None:
        ended(None)

    _writer.Writer.flush = flush  # type: ignore[method-assign]


FLAWS: dict[str, Callable[[], None]] = {
    flaw.__name__: flaw for flaw in (no_promotion, trailer_first, flush_does_not_wait)
}
