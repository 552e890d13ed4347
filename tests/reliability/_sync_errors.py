"""A disk that cannot write: system calls of a writing program fail, as strace has them do.

The program is this module: `python -m tests.reliability._sync_errors URL SECONDS [FLAW]` writes
and flushes a few states, tells each outcome, and leaves.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import aiocheckpoint
from aiocheckpoint import CheckpointError, _calls, _claim
from aiocheckpoint.stores import _disk
from aiocheckpoint.stores import file as file_store
from aiocheckpoint.stores import sqlite as sqlite_store
from aiocheckpoint.stores._threads import Threads

from ._strace import strace
from ._torture import Budget, Case, Counts
from ._victim import numbers_of, state

CALLS = {"file": ("pwritev2", "fsync"), "sqlite": ("fdatasync", "fsync", "pwrite64", "pwritev2")}
ERRORS = ("EIO", "ENOSPC")
_SIZES = (100, 5_000, 100, 1_500_000, 100)
_TRACED = "pwritev2,pwrite64,fsync,fdatasync,link,linkat,rename,renameat,renameat2"
_INJECTED = re.compile(r"(\w+)\(\d+<([^>]*)>.* = -1 \w+ .*\(INJECTED\)")


class Told(NamedTuple):
    """What a run came to."""

    stored: int
    """The newest state that a flush, or leaving, acknowledged."""
    refused: int
    """Flushes that ended with an error of ours."""
    injected: int
    """Calls that failed."""
    found: int
    """The state that the next process found."""


def run(scheme: str, call: str, error: str, when: str, seconds: float = 10, flaw: str = "") -> Told:
    """Run the program, with calls failing, and look at what it leaves.

    `when` is strace's: `3` is the third call, `3+` all from then on. It counts a thread's calls, so
    the program's stores have one thread each.

    Raises:
        AssertionError: something acknowledged is lost, or a file is trusted whose sync failed.
    """
    with tempfile.TemporaryDirectory() as name:
        trace, url = Path(name, "trace"), f"{scheme}:{name}/store"
        _prepare(url)
        inject = ["-e", f"trace={_TRACED}", "-e", f"inject={call}:error={error}:when={when}"]
        program = [sys.executable, "-m", __spec__.name, url, seconds, flaw]
        out = strace("-o", trace, *inject, *program)
        lines = trace.read_text(errors="replace").splitlines()
        stored = [int(line.split()[1]) for line in out.splitlines() if "stored" in line]
        refused = out.count("refused")
        newest = max(stored, default=0)
        try:
            found = asyncio.run(_read(url))
        except CheckpointError as error:
            raise AssertionError(f"{newest} was acknowledged, and now: {error}") from error
        left = [path for path in Path(name).rglob(".tmp-*") if "store" in str(path)]
    injected = _not_trusted(lines)
    assert found >= newest, f"{newest} was acknowledged, {found} is there:\n{out}"
    assert not left, f"temporary files are left: {left}"
    return Told(newest, refused, injected, found)


def _prepare(url: str) -> None:
    """What is made with a store is not what fails."""

    async def fill() -> None:
        async with aiocheckpoint.open(url, "k", spool=None):
            pass

    asyncio.run(fill())


async def _read(url: str) -> int:
    async with aiocheckpoint.open(url, "k", spool=None) as cp:
        data = await cp.read()
        return numbers_of(data)[0] if data else 0


def _not_trusted(lines: list[str]) -> int:
    """Once its sync has failed, a new file must not be synced again, nor get its name: the system
    may say the second time that all is well, and have dropped the bytes
    (https://www.usenix.org/conference/atc20/presentation/rebello)."""
    spoiled: set[str] = set()
    injected = 0
    for line in lines:
        if failed := _INJECTED.search(line):
            injected += 1
            name = os.path.basename(failed[2])
            if name.startswith(".tmp-"):
                spoiled.add(name)
            continue
        for name in spoiled:
            assert name not in line, f"its sync had failed, and it is used: {line}"
    return injected


def part(budget: Budget) -> Counts:
    """Every kind of call, the first, the second, ... and every one from then on."""
    kinds = [
        (scheme, call, error)
        for scheme, calls in CALLS.items()
        for call in calls
        for error in ERRORS
    ]

    def one(case: Case) -> Counts:
        rng = case.random()
        scheme, call, error = kinds[case.number % len(kinds)]
        when = f"{rng.randrange(1, 25)}{rng.choice(('', '', '+', '+2'))}"
        told = run(scheme, call, error, when, seconds=1)
        return Counts(runs=1, failed_calls=told.injected, refused=told.refused, lost=0)

    return budget.each(one)


# The program.


def _ignore_errors(fd: int, data: bytes) -> None:
    with suppress(OSError):
        _write_durably(fd, data)


def _sync_again(fd: int, data: bytes) -> None:
    for _ in range(20):
        try:
            _write_durably(fd, data)
        except OSError:
            os.ftruncate(fd, 0)
        else:
            return
    raise OSError(errno.EIO, "still failing")


_write_durably = _disk.write_durably
_FLAWS = {"ignore_errors": _ignore_errors, "sync_again": _sync_again}


async def main(url: str, seconds: float) -> None:
    last = 0
    try:
        async with aiocheckpoint.open(
            url, "k", type=bytes, spool=None, min_interval=0, flush_timeout=seconds
        ) as cp:
            for last, size in enumerate(_SIZES, 1):
                try:
                    await cp.write(state(last, 0, size))
                    await cp.flush()
                except CheckpointError as error:
                    print("refused", last, type(error).__name__, flush=True)
                else:
                    print("stored", last, flush=True)
    except CheckpointError as error:
        print("refused", last, type(error).__name__, flush=True)
    else:
        print("stored", last, flush=True)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    _calls._RETRY_MOST = 0.1
    _claim.OP_TIMEOUT = 10.0  # type: ignore[attr-defined]
    for module in (file_store, sqlite_store):
        module.Threads = lambda number, name: Threads(1, name)  # type: ignore[attr-defined]
    if sys.argv[3:] and sys.argv[3]:
        for module in (_disk, file_store):
            module.write_durably = _FLAWS[sys.argv[3]]  # type: ignore[attr-defined]
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
