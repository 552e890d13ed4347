"""The process that the kill storm kills: it reads what is there, and then writes on and on."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiocheckpoint import Checkpointer, Runtime
from aiocheckpoint._errors import StoreError
from aiocheckpoint._region import SPOOL_LIMIT
from aiocheckpoint.abc import Put, Store, Version
from aiocheckpoint.stores import open_store
from aiocheckpoint.testing import Wrapper

from ._flaws import FLAWS
from ._progress import Progress

KEY = "k"
_SIZES = (10, 100, 1_000, 10_000, 100_000, 1_000_000, 6_000_000)
_PAUSES = (None, 0.0, 0.0005, 0.01)


@dataclass(frozen=True)
class Orders:
    """What a victim is to do. Everything that it draws comes from `seed`."""

    directory: Path
    """Holds the store, and trees."""
    progress: Path
    scheme: str
    spool: bool
    seed: str
    first: int
    """The number of the first state to write: none is ever used twice."""
    writes: int
    keep: int
    min_interval: float
    """Seconds between two stores."""
    flaw: str = ""
    """The name of a guarantee that is broken, to see whether that is found."""


def state(number: int, tree: int, size: int) -> bytes:
    """A state that says which it is and with which files it goes, in every byte."""
    head = b"%d:%d:" % (number, tree)
    pattern = b"%d." % number
    return head + (pattern * (size // len(pattern)))[: max(0, size - len(head))]


def numbers_of(found: bytes) -> tuple[int, int]:
    """Which state this is, and the number of its files. Fails if it is torn."""
    number, tree, _ = found.split(b":", 2)
    whole = state(int(number), int(tree), len(found))
    assert found == whole, f"a torn state: {found[:40]!r}, {len(found)} bytes"
    return int(number), int(tree)


def live(orders: Orders) -> None:
    """The victim's whole life, in a process of its own."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    progress = Progress.at(orders.progress)
    if orders.flaw:
        FLAWS[orders.flaw]()
    progress.first, progress.started = orders.first, 1
    try:
        asyncio.run(_live(orders, progress))
    except BaseException:
        (orders.directory / "failure").write_text(traceback.format_exc())
        raise
    progress.ended = 1


async def _live(orders: Orders, progress: Progress) -> None:
    rng = random.Random(orders.seed)
    store = _Timed(open_store(f"{orders.scheme}:{orders.directory / 'store'}"), progress)
    options: dict[str, Any] = {"keep": orders.keep, "min_interval": orders.min_interval}
    try:
        async with (
            Runtime(store, spool="auto" if orders.spool else None) as runtime,
            runtime.open(KEY, type=bytes, **options) as cp,
        ):
            found, tree = await _read_back(cp, orders.directory)
            progress.found = found
            progress.opened = 1
            await _write_on(cp, rng, orders, progress, tree)
        progress.safe = progress.staged
    finally:
        await store.aclose()


async def _read_back(cp: Checkpointer[bytes], directory: Path) -> tuple[int, int]:
    found = await cp.read()
    number, tree = (0, 0) if found is None else numbers_of(found)
    target = directory / f"restored-{os.getpid()}"
    restored = await cp.restore(target)
    held = 0 if restored is None else int((restored / "number").read_text())
    assert held == tree, f"state {number} goes with files {tree}, and is found with files {held}"
    shutil.rmtree(target, ignore_errors=True)
    return number, tree


async def _write_on(
    cp: Checkpointer[bytes], rng: random.Random, orders: Orders, progress: Progress, tree: int
) -> None:
    largest = rng.randrange(1, len(_SIZES) + 1)
    pause = rng.choice(_PAUSES)
    flushes, saves = rng.choice((0.0, 0.05, 0.5)), rng.choice((0.0, 0.0, 0.02, 0.2))
    for number in range(orders.first, orders.first + orders.writes):
        size = rng.choice(_SIZES[:largest])
        progress.begun = number
        if rng.random() < saves:
            tree, move = number, orders.spool and rng.random() < 0.5
            path = _make_tree(orders.directory, tree)
            await cp.save(path, state=state(number, tree, size), move=move)
            safe = True  # stored, or else staged in the spool
        else:
            await cp.write(state(number, tree, size))
            safe = orders.spool and size <= SPOOL_LIMIT
        progress.has_staged(number)
        if safe:
            progress.safe = number
        if rng.random() < flushes:
            await cp.flush()
            progress.safe = number
        if pause is not None:
            await asyncio.sleep(pause)


def _make_tree(directory: Path, tree: int) -> Path:
    path = directory / f"tree-{os.getpid()}-{tree}"
    path.mkdir()
    (path / "number").write_text(str(tree))
    (path / "more").write_bytes(os.urandom(tree % 5_000))
    return path


class _Timed(Wrapper):
    """Says when a commit is under way."""

    def __init__(self, store: Store, progress: Progress) -> None:
        super().__init__(store)
        self._progress = progress

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        began = self._progress.commit_began = time.monotonic_ns()
        try:
            return await self.store.commit(batch)
        finally:
            self._progress.commit_took = time.monotonic_ns() - began
            self._progress.commit_began = 0
