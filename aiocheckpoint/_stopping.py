"""Stopping: ask first, cancel when the time of grace runs out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio

from ._io_thread import caller

_FLUSH_SHARE = 0.2
_FLUSH_MOST = 5.0
_LATE = 5.0


class Stopping:
    """Whether a runtime stops, until when, and the scopes that it then cancels."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._until: float | None = None
        self._cancelled = False
        self._scopes: dict[anyio.CancelScope, Callable[[Callable[[], object]], None]] = {}
        self._naps: set[anyio.CancelScope] = set()

    @property
    def requested(self) -> bool:
        return self._until is not None

    @property
    def patience(self) -> float:
        """Seconds from the request until attempts are cancelled: the rest is for their flush."""
        return self._grace - self._flush_share

    @property
    def _flush_share(self) -> float:
        return min(_FLUSH_MOST, self._grace * _FLUSH_SHARE)

    def flush_time(self, timeout: float) -> float:
        """Seconds that a flush may take which would otherwise have `timeout`. A block that ends
        only after the grace still has some: nobody has killed us so far."""
        if self._until is None:
            return timeout
        remaining = self._until - time.monotonic()
        return min(timeout, max(remaining, self._flush_share if remaining > 0 else _LATE))

    def request(self) -> bool:
        """Begin, unless it has begun. Safe in signal handlers."""
        if self._until is not None:
            return False
        self._until = time.monotonic() + self._grace
        return True

    def cancel_naps(self) -> None:
        """End the waits between attempts."""
        for scope in list(self._naps):
            self._cancel(scope)

    def cancel_all(self) -> None:
        """End every attempt wherever it is. From any thread."""
        self._cancelled = True
        for scope in list(self._scopes):
            self._cancel(scope)

    @contextmanager
    def interrupting(self, scope: anyio.CancelScope, *, nap: bool = False) -> Iterator[None]:
        """While inside, a stop may cancel the scope; a nap is cancelled at once."""
        self._scopes[scope] = caller()
        if nap:
            self._naps.add(scope)
        if self._cancelled or (nap and self.requested):
            scope.cancel()
        try:
            yield
        finally:
            self._naps.discard(scope)
            self._scopes.pop(scope, None)

    def _cancel(self, scope: anyio.CancelScope) -> None:
        call = self._scopes.get(scope)
        if call is not None:
            call(scope.cancel)
