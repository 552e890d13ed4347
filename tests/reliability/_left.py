"""What a program leaves of a process's own: threads, descriptors, complaints in the log."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

WITHIN = 10.0
"""Seconds that threads have to end."""


@contextmanager
def nothing_left() -> Iterator[None]:
    """No thread and no descriptor more afterwards."""
    threads, descriptors = set(threading.enumerate()), _descriptors()
    yield
    until = time.monotonic() + WITHIN
    while left := set(threading.enumerate()) - threads:
        assert time.monotonic() < until, f"threads are left: {left}"
        time.sleep(0.0005)
    if _descriptors() != descriptors:
        gc.collect()  # that of a cancelled read is closed when no traceback refers to it any more
    while more := {fd: what for fd, what in _descriptors().items() if descriptors.get(fd) != what}:
        assert time.monotonic() < until, f"descriptors are left: {more}"
        time.sleep(0.0005)  # obstore's are closed by a thread of its own


def _descriptors() -> dict[str, str]:
    found: dict[str, str] = {}
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "asyncio" or record.levelno >= logging.ERROR:
            self.records.append(record)


@contextmanager
def quiet() -> Iterator[None]:
    """No loop complains of what nobody awaited, and the package of no failure."""
    heard = _Heard()
    loggers = [logging.getLogger(name) for name in ("asyncio", "aiocheckpoint")]
    for logger in loggers:
        logger.addHandler(heard)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(heard)
    said = [record.getMessage() for record in heard.records]
    assert not said, f"the log has {said}"
