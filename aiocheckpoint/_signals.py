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
        self._signals = list(dict.fromkeys(map(signal.Signals, signals)))
        self._handle = handle
        self._before: dict[int, Any] = {}
        self._installed = False

    def install(self) -> None:
        """Raises RuntimeError outside the main thread, where Python allows no handlers, and
        OSError for a signal that nobody can handle."""
        if self._signals and threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "stop_signals= works only in the main thread; elsewhere call Runtime.stop() from"
                " a handler of your own"
            )
        self._installed = True
        try:
            for number in self._signals:
                self._before[number] = signal.signal(number, self._on_signal)
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Put back what was there, unless somebody has installed another handler since."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._installed = False
        for number in self._before:
            before = self._living(number)
            if signal.getsignal(number) == self._on_signal and before is not None:
                signal.signal(number, before)

    def _living(self, number: int) -> Any:
        """The handler before ours, past those of ours that could not be restored in their time
        because a later one was in place."""
        before = self._before[number]
        owner = getattr(before, "__self__", None)
        if isinstance(owner, SignalHandlers) and not owner._installed:
            return owner._living(number)
        return before

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._installed:
            self._handle(number)
        before = self._before.get(number)
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)
