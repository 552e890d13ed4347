"""A process of clients that race for one key, each in a thread, and tell what they did."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiocheckpoint._calls
import aiocheckpoint._claim
from aiocheckpoint import Checkpointer, FencedError, Runtime, StoreUnavailableError
from aiocheckpoint._errors import StoreError
from aiocheckpoint._records import Record
from aiocheckpoint.abc import Head, Put, Store, Version
from aiocheckpoint.stores import open_store
from aiocheckpoint.testing import Wrapper

from ._history import NOTHING, State

KEY = "raced"
OP_TIMEOUT = 0.3
"""Instead of 30 seconds: a pause is longer, so that calls are given up with an unknown outcome."""
_CLAIMING = 5.0  # how long a claim tries
_SIZES = (30, 30, 1_000, 20_000, 1_500_000)


@dataclass(frozen=True)
class Orders:
    """What a process is to do, until there is a file `end`."""

    directory: Path
    name: str
    url: str
    spool: bool
    threads: int
    seed: str
    flaw: str = ""
    """The name of a guarantee that is broken, to see whether that is found."""

    def log(self, thread: int) -> Path:
        return self.directory / f"{self.name}.{thread}.log"


def live(orders: Orders) -> None:
    """The whole life of a process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["XDG_STATE_HOME"] = str(orders.directory / "spools")
    aiocheckpoint._calls.OP_TIMEOUT = OP_TIMEOUT
    aiocheckpoint._claim.OP_TIMEOUT = _CLAIMING  # type: ignore[attr-defined]
    if orders.flaw == "epoch_stays":
        _keep_the_epoch()
    memory = open_store("memory:") if orders.url == "memory:" else None
    clock = Clock()

    def opened() -> Store:
        store = open_store(orders.url) if memory is None else memory
        return STORES_WITH_FLAWS.get(orders.flaw, Wrapper)(store)

    threads = [
        threading.Thread(target=Client(orders, thread, clock).live, args=(opened,))
        for thread in range(orders.threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Clock:
    """The clock on the wall, which is set wrong again and again."""

    def __init__(self) -> None:
        self.wrong_by = 0
        seconds, ns = time.time, time.time_ns
        time.time = lambda: seconds() + self.wrong_by
        time.time_ns = lambda: ns() + self.wrong_by * 1_000_000_000

    def step(self, rng: random.Random) -> None:
        self.wrong_by = rng.choice((-86_400, -3_600, -1, 0, 1, 3_600, 86_400))


class Client:
    """One thread, with a runtime of its own. What it tells has the times of CLOCK_MONOTONIC, which
    the processes of a machine share."""

    def __init__(self, orders: Orders, thread: int, clock: Clock) -> None:
        self._orders = orders
        self._name = f"{orders.name}.{thread}"
        self._rng = random.Random(f"{orders.seed}:{thread}")
        self._clock = clock
        self._log = os.open(orders.log(thread), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _tell(self, *event: object) -> None:
        os.write(self._log, json.dumps(event).encode() + b"\n")

    def live(self, opened: Callable[[], Store]) -> None:
        self._tell("started")
        try:
            asyncio.run(self._live(opened()))
        except BaseException:
            self._tell("failed", traceback.format_exc())
        finally:
            os.close(self._log)

    async def _live(self, store: Store) -> None:
        end, visit = self._orders.directory / "end", 0
        async with Runtime(store, spool="auto" if self._orders.spool else None) as runtime:
            while not end.exists():
                visit += 1
                handle = f"{self._name}.{visit}"
                try:
                    if self._rng.random() < 0.2:
                        await self._look(runtime)
                    else:
                        await self._visit(runtime, handle)
                except FencedError:
                    self._tell("fenced", handle)
                except StoreUnavailableError:
                    self._tell("unavailable", handle)
        await store.aclose()

    async def _visit(self, runtime: Runtime, handle: str) -> None:
        rng, number = self._rng, 0
        pause, flushes = rng.choice((0.0, 0.001, 0.02)), rng.choice((0.0, 0.1, 0.5))
        min_interval = rng.choice((0.0, 0.0, 0.02, 0.5))
        self._tell("claim", handle, time.monotonic_ns())
        async with runtime.open(KEY, type=bytes, min_interval=min_interval) as cp:
            at = time.monotonic_ns()
            self._tell("claimed", handle, at, cp.epoch, state_of(await cp.read() or b""))
            for _ in range(rng.randrange(1, 30)):
                draw = rng.random()
                if draw < 0.1:
                    await self._look(runtime)
                elif draw < 0.15:
                    self._clock.step(rng)
                else:
                    number += 1
                    await self._write(cp, handle, number)
                if rng.random() < flushes:
                    await cp.flush()
                    self._tell("flushed", handle, time.monotonic_ns(), number)
                await asyncio.sleep(pause)
        self._tell("flushed", handle, time.monotonic_ns(), number)

    async def _write(self, cp: Checkpointer[bytes], handle: str, number: int) -> None:
        head = f"{handle}:{number}:".encode()
        size = self._rng.choice(_SIZES) if self._rng.random() < 0.1 else 30
        self._tell("write", handle, time.monotonic_ns(), number)
        await cp.write(head * (1 + size // len(head)))
        self._tell("staged", handle, time.monotonic_ns(), number)

    async def _look(self, runtime: Runtime) -> None:
        began = time.monotonic_ns()
        found = await runtime.latest(KEY)
        ended = time.monotonic_ns()
        if found is None:
            self._tell("look", began, ended, 0, "", NOTHING)
        else:
            self._tell("look", began, ended, found.epoch, found.claim, state_of(found.payload))


def state_of(data: bytes) -> State:
    """Which state this is. Fails if it is torn."""
    if not data:
        return NOTHING
    handle, number, _ = data.split(b":", 2)
    head = b"%b:%b:" % (handle, number)
    assert data == head * (len(data) // len(head)), f"a torn state: {data[:40]!r}"
    return State(handle.decode(), int(number))


# Guarantees broken on purpose.


class CommitsBlindly(Wrapper):
    """A store that does not compare before it swaps."""

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        while True:
            heads = [await self.store.load(put.key) for put in batch]
            blind = [
                put._replace(expect=None if head is None else head.version)
                for put, head in zip(batch, heads, strict=True)
            ]
            outcomes = await self.store.commit(blind)
            if not any(isinstance(outcome, StoreError) for outcome in outcomes):
                return outcomes


class LoadsWhatWas(Wrapper):
    """A store that answers every second load with what it answered the time before."""

    _before: tuple[Head | None] | None = None

    async def load(self, key: str) -> Head | None:
        if self._before is not None:
            (before,), self._before = self._before, None
            return before
        self._before = (await self.store.load(key),)
        return self._before[0]


STORES_WITH_FLAWS: dict[str, type[Wrapper]] = {
    "commits_blindly": CommitsBlindly,
    "loads_what_was": LoadsWhatWas,
}


def _keep_the_epoch() -> None:
    import msgspec

    following = aiocheckpoint._claim._next

    def same_epoch(key: str, found: object, *args: object, **kwargs: object) -> Record:
        record: Record = following(key, found, *args, **kwargs)  # type: ignore[arg-type]
        return msgspec.structs.replace(record, epoch=max(1, record.epoch - 1))

    aiocheckpoint._claim._next = same_epoch
