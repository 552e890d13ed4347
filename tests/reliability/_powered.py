"""A program on a real file system whose power will be cut, in a process of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import sqlite3
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aiocheckpoint import _region

from . import _random_jobs
from ._jobs import Job, Witness
from ._program import lax
from ._progress import Progress
from ._recorder import site_of
from ._stops import install


@dataclass(frozen=True)
class Orders:
    """Which program runs, and where."""

    base: Path
    """On the file system."""
    aside: Path
    """On another one: what is said there outlives the power cut."""
    url: str
    job: str
    spool: bool
    """The program is to have a spool, whether it needs one or not."""
    boot: str
    left_out: str = ""
    """The place in the stores whose sync is left out."""
    synchronous: str = ""
    """What SQLite is told instead of what the store asks for."""

    def progress(self) -> Progress:
        """In `staged` and `safe`, what was staged last and what was acknowledged."""
        return Progress.at(self.aside / "progress")

    @property
    def failure(self) -> Path:
        return self.aside / "failure"


def job_of(name: str, spool: bool) -> Job:
    job = _random_jobs.named(name)
    return replace(job, spool="auto") if spool else job


def live(orders: Orders, connection: Connection) -> None:
    """The program's whole life; the descriptor to follow its calls by goes to `connection`."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.getLogger("aiocheckpoint").addHandler(logging.NullHandler())  # trees are set aside
    progress = orders.progress()

    def mark(kind: str, number: int) -> None:
        if kind == "staged":
            progress.staged = number
        else:
            progress.safe = number

    _region.boot_id = lambda: orders.boot  # type: ignore[assignment]
    if orders.left_out:
        _leave_out(orders.left_out)
    if orders.synchronous:
        connect, kind = sqlite3.connect, lax(orders.synchronous)
        sqlite3.connect = lambda *args, **options: connect(  # type: ignore[assignment]
            *args, **options, factory=kind
        )
    job = job_of(orders.job, orders.spool)
    witness = Witness(orders.base, orders.url.format(orders.base), mark)
    try:
        listener = install()
    except OSError as exc:
        orders.failure.write_text(f"calls cannot be followed here: {exc}")
        return
    reduction.send_handle(connection, listener, 0)
    os.close(listener)
    try:
        asyncio.run(job.run(witness))
    except BaseException:
        orders.failure.write_text(traceback.format_exc())
        raise
    progress.ended = 1


def _leave_out(site: str) -> None:
    """From now on what syncs in that place does not."""
    fsync, pwritev = os.fsync, os.pwritev

    def lazy_fsync(fd: int) -> None:
        if site_of(sys._getframe(1)) != site:
            fsync(fd)

    def lazy_pwritev(fd: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
        return pwritev(fd, buffers, offset, 0 if site_of(sys._getframe(1)) == site else flags)

    os.fsync = lazy_fsync  # type: ignore[assignment]
    os.pwritev = lazy_pwritev  # type: ignore[assignment]
