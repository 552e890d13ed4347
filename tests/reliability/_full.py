"""A small disk that is full now and then: under the store, under the spool, or under both."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import tempfile
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path

import pytest

import aiocheckpoint
from aiocheckpoint import Checkpointer, FlushTimeoutError, _calls

from ..children import small_disk
from ._place import temporary
from ._torture import Budget, Case, Counts
from ._victim import numbers_of, state

WAYS = [(scheme, spool) for scheme in ("file", "sqlite") for spool in ("here", "elsewhere", "none")]
_ROOM = 12 << 20
_SIZES = (30, 1_000, 40_000, 300_000, 1_200_000)


def part(budget: Budget) -> Counts:
    """One case is one store on a disk of its own."""
    logging.getLogger("aiocheckpoint").setLevel(logging.CRITICAL)

    def one(case: Case) -> Counts:
        scheme, spool = WAYS[case.number % len(WAYS)]
        return fill(scheme, spool, case.random(), turns=6)

    return budget.each(one)


def fill(scheme: str, spool: str, rng: random.Random, turns: int) -> Counts:
    """Write and flush while the disk fills up and is freed again.

    Raises:
        AssertionError: something acknowledged is lost, or left lying about.
        An error that nobody promises.
    """
    with ExitStack() as stack:
        above = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        disk = stack.enter_context(small_disk(above / "disk", str(_ROOM)))
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(_calls, "_RETRY_MOST", 0.05)
        places = {"here": disk / "spool", "elsewhere": above / "spool", "none": None}
        return asyncio.run(_Filling(scheme, disk, places[spool], rng).live(turns))


class _Filling:
    def __init__(self, scheme: str, disk: Path, spool: Path | None, rng: random.Random) -> None:
        self._url = f"{scheme}:{disk}/store"
        self._disk = disk
        self._spool = spool
        self._rng = rng
        self._number = 0
        self._acknowledged = 0
        self._counts = Counts(disks=1, fillings=0, writes=0, timeouts=0, lost=0)

    async def live(self, turns: int) -> Counts:
        for _ in range(turns):
            try:
                await self._visit()
            except FlushTimeoutError:
                self._counts["timeouts"] += 1
            (self._disk / "ballast").unlink(missing_ok=True)
        async with self._opened(flush_timeout=30) as cp:
            self._found(await cp.read())
            self._number += 1
            await cp.write(state(self._number, 0, 1_000))
        async with self._opened(flush_timeout=30):
            pass  # a claim collects what its predecessors have left
        left = temporary(self._disk)
        assert not left, f"left: {left}"
        blobs = [path for path in self._disk.rglob("*") if path.name.startswith("state-")]
        assert not blobs, f"large states that no record names: {blobs}"
        return self._counts

    def _opened(self, flush_timeout: float) -> AbstractAsyncContextManager[Checkpointer[bytes]]:
        return aiocheckpoint.open(
            self._url,
            "k",
            type=bytes,
            spool=self._spool,
            min_interval=0,
            flush_timeout=flush_timeout,
        )

    def _found(self, data: bytes | None) -> int:
        number = numbers_of(data)[0] if data else 0
        assert number >= self._acknowledged, f"lost: {self._acknowledged} stored, {number} found"
        return number

    async def _visit(self) -> None:
        rng = self._rng
        async with self._opened(flush_timeout=0.3) as cp:
            self._acknowledged = self._found(await cp.read())
            for _ in range(rng.randrange(3, 12)):
                draw = rng.random()
                if draw < 0.3:
                    self._fill(rng.choice((0, 100, 5_000, 100_000)))
                elif draw < 0.4:
                    (self._disk / "ballast").unlink(missing_ok=True)
                for _ in range(rng.randrange(1, 5)):
                    self._number += 1
                    self._counts["writes"] += 1
                    await cp.write(state(self._number, 0, rng.choice(_SIZES)))
                await self._flush(cp)
            (self._disk / "ballast").unlink(missing_ok=True)
            await self._until_stored(cp)
            self._fill(rng.choice((0, 5_000)))
            if rng.random() < 0.5:
                self._number += 1
                await cp.write(state(self._number, 0, rng.choice(_SIZES)))
        self._acknowledged = self._number

    async def _flush(self, cp: Checkpointer[bytes]) -> None:
        try:
            await cp.flush()
        except FlushTimeoutError:
            self._counts["timeouts"] += 1
        else:
            self._acknowledged = self._number

    async def _until_stored(self, cp: Checkpointer[bytes]) -> None:
        """There is room again: then it is stored, with nobody doing anything."""
        for _ in range(100):
            try:
                await cp.flush()
            except FlushTimeoutError:
                continue
            self._acknowledged = self._number
            return
        raise AssertionError("there is room again, and nothing is stored")

    def _fill(self, leave: int) -> None:
        """Fill the disk, all but so many bytes."""
        self._counts["fillings"] += 1
        room = os.statvfs(self._disk)
        size = room.f_bavail * room.f_frsize - leave
        with (self._disk / "ballast").open("ab") as file:
            try:
                while size > 0:
                    size -= file.write(bytes(min(size, 1 << 16)))
                    file.flush()
            except OSError:
                pass  # others are faster
