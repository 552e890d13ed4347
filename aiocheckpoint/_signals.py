"""Signals: handlers that leave those before them in place."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any


class SignalHandlers:
    """Calls `handle(signum)` on these signals, then whichever Python handler was there before.

    By `signal.signal`, not by the event loop: a loop has one handler per signal, and a server
    that runs on it may want its own. The defaults that end the process or raise
    KeyboardInterrupt are not called: the handler replaces just them.
    """

    def __init__(self, signals: Sequence[int], handle: Callable[[int], object]) -> None:
        self._signals = [signal.Signals(number) for number in signals]
        self._handle = handle
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Raises RuntimeError outside the main thread, where Python allows no handlers."""
        if self._signals and threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "stop_signals= works only in the main thread; elsewhere call Runtime.stop() from"
                " a handler of your own"
            )
        for number in self._signals:
            self._before[number] = signal.signal(number, self._on_signal)

    def restore(self) -> None:
        """Put back what was there, unless somebody has installed another handler since."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, before in self._before.items():
            if signal.getsignal(number) == self._on_signal and before is not None:
                signal.signal(number, before)
        self._before.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._handle(number)
        before = self._before.get(number)
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)
