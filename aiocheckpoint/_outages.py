"""Outages in the log: when the store began to fail, when it was back."""

from __future__ import annotations

import logging
import time

from ._errors import StoreUnavailableError

_log = logging.getLogger("aiocheckpoint")


class Outages:
    """One line when the store begins to fail, one when the last failing key has been stored."""

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._keys: set[str] = set()
        self._began = 0.0

    def begin(self, key: str, error: StoreUnavailableError) -> None:
        if not self._keys:
            self._began = time.monotonic()
            _log.warning("%s is unavailable (%s); retrying", self._identity, error)
        self._keys.add(key)

    def over(self, key: str) -> None:
        if key in self._keys:
            self._keys.remove(key)
            if not self._keys:
                lasted = time.monotonic() - self._began
                _log.warning("%s is available again after %.1f s", self._identity, lasted)

    def forget(self, key: str) -> None:
        self._keys.discard(key)
