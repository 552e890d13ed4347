"""A storm: writers that go on while the service below them fails, and checks of what they find."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aiocheckpoint import Checkpointer, FlushTimeoutError, Runtime, StoreUnavailableError
from aiocheckpoint._looking import look_at
from aiocheckpoint.abc import Store
from aiocheckpoint.stores import open_store

from ._left import nothing_left
from ._outage_keys import Broken, Known
from ._outage_setting import Service, Watched, silence, timeouts
from ._torture import Counts
from ._victim import state

KEYS = 4
_OP_TIMEOUT, _CLAIMING = 0.4, 1.5  # seconds, instead of 30
_SIZES = (30, 30, 100, 1_000, 20_000, 1_500_000)
_PAUSES = (0.0, 0.001, 0.01)
_FLUSHING = (0.2, 1.0, 3.0)
_LATE = 40.0


def outage(
    service: Service,
    rng: random.Random,
    *,
    lives: int = 2,
    troubles: int = 4,
    flaw: Callable[[Store], Store] = lambda store: store,
) -> Counts:
    """One storm of writers, through so many runtimes with so many troubles each. `flaw` puts a
    store that breaks a guarantee around the service's.

    Raises:
        Broken: something was found that a guarantee excludes.
    """
    with tempfile.TemporaryDirectory() as name, silence(), nothing_left():
        storm = _Storm(service, rng, Path(name), flaw)
        try:
            asyncio.run(storm.go(lives, troubles))
        except BaseExceptionGroup as group:
            raise _first(group) from group
        gc.collect()  # obstore keeps connections until nothing refers to its clients
    return storm.counts + service.counts()


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


class _Storm:
    def __init__(
        self, service: Service, rng: random.Random, directory: Path, flaw: Callable[[Store], Store]
    ) -> None:
        self._service = service
        self._rng = rng
        self._directory = directory
        self._flaw = flaw
        self._spool = directory / "spool" if rng.random() < 0.6 else None
        self._keys = [
            Known(f"k{n}", rng.choice((1, 1, 2)), random.Random(rng.random())) for n in range(KEYS)
        ]
        self._over = False
        self._store: Watched
        self._runtime: Runtime
        self.counts = Counts()

    async def go(self, lives: int, troubles: int) -> None:
        for life in range(lives):
            with timeouts(_OP_TIMEOUT, _CLAIMING):
                await self._live(troubles, last=life == lives - 1)
        async with self._running(None) as runtime:  # as if on another machine
            for key in self._keys:
                await self._settle(runtime, key)
        await self._look_for_orphans()

    async def _live(self, troubles: int, *, last: bool) -> None:
        """A runtime with its writers. All but the last end in the midst of trouble."""
        self._over = False
        async with AsyncExitStack() as trouble:
            async with self._running(self._spool) as runtime:
                async with asyncio.TaskGroup() as tasks:
                    for key in self._keys:
                        tasks.create_task(self._again(runtime, key))
                    tasks.create_task(self._look_around(runtime))
                    for number in range(troubles):
                        await self._more_writes(self._rng.randrange(1, 60))
                        name = await trouble.enter_async_context(self._service.trouble(self._rng))
                        self.counts[name] += 1
                        await self._more_calls(self._rng.randrange(10, 40))
                        if last or number < troubles - 1:
                            await trouble.aclose()
                            await self._stored_again()
                    self._over = True
                if last:
                    with timeouts(_LATE, _LATE):
                        for key in self._keys:
                            await self._settle(runtime, key)
            for key in self._keys:
                key.left_behind(spool=self._spool is not None)

    @asynccontextmanager
    async def _running(self, spool: Path | None) -> AsyncIterator[Runtime]:
        self._store = Watched(self._flaw(open_store(self._service.url)))
        try:
            async with Runtime(self._store, spool=spool, flush_timeout=1.0) as runtime:
                yield runtime
        finally:
            await self._store.aclose()
            del self._store

    # What the trouble waits for.

    async def _more_writes(self, many: int) -> None:
        """In peace."""
        writes = self.counts["writes"] + many
        await self._until(lambda: self.counts["writes"] >= writes, "the writers hang")

    async def _more_calls(self, many: int) -> None:
        calls = self._store.calls + many
        await self._until(lambda: self._store.calls >= calls, "the store is not called any more")

    async def _stored_again(self) -> None:
        """The service is well: what is staged is stored, whoever waits for it, and if nobody."""
        staged = [(key, key.staged) for key in self._keys]
        await self._until(
            lambda: all(key.stored >= number for key, number in staged), "not stored again"
        )

    async def _until(self, condition: Callable[[], bool], failing: str) -> None:
        until = time.monotonic() + _LATE
        while not condition():
            if time.monotonic() > until:
                raise Broken(f"{failing}: {self._keys}")
            await asyncio.sleep(0.005)

    # What writers do.

    async def _again(self, runtime: Runtime, key: Known) -> None:
        while not self._over:
            await self._visit(runtime, key)

    async def _visit(self, runtime: Runtime, key: Known) -> None:
        where = "opening"
        try:
            async with runtime.open(
                key.name,
                codec=key.codec,
                keep=key.keep,
                min_interval=key.rng.choice((0.0, 0.0, 0.02, 0.2)),
                flush_timeout=key.rng.choice(_FLUSHING),
            ) as cp:
                where = "inside"
                key.opened(await cp.read())
                await self._write_on(cp, key, runtime)
                where = "leaving"
            key.acknowledged(key.staged)
            self.counts["visits"] += 1
        except StoreUnavailableError:
            if where != "opening":
                raise
            self.counts["not opened"] += 1
        except FlushTimeoutError:
            if where != "leaving":
                raise
            self.counts["not stored when left"] += 1

    async def _write_on(self, cp: Checkpointer[bytes], key: Known, runtime: Runtime) -> None:
        rng = key.rng
        pause, flushes = rng.choice(_PAUSES), rng.choice((0.0, 0.1, 0.5))
        if rng.random() < 0.3:
            await self._restore(cp, key)
        for _ in range(rng.randrange(1, 40)):
            if self._over:
                return
            if rng.random() < 0.05:
                await self._save(cp, key)
            else:
                number = key.next()
                await cp.write(state(number, key.tree, rng.choice(_SIZES)))
                key.has_staged(number, key.tree)
                self.counts["writes"] += 1
            if rng.random() < flushes:
                try:
                    await cp.flush()
                    key.acknowledged(key.staged)
                    self.counts["flushes"] += 1
                except FlushTimeoutError:
                    self.counts["not flushed"] += 1
                else:
                    await self._look(runtime, key, tries=3)
            await asyncio.sleep(pause)

    async def _save(self, cp: Checkpointer[bytes], key: Known) -> None:
        number = key.next()
        path = self._directory / f"tree-{key.name}-{number}"
        path.mkdir()
        (path / "number").write_text(str(number))
        (path / "more").write_bytes(key.rng.randbytes(key.rng.choice((10, 100_000))))
        move = self._spool is not None and key.rng.random() < 0.5
        try:
            await cp.save(path, state=state(number, number, 1_000), move=move)
            key.has_staged(number, number)
            if not move:
                key.acknowledged(number)
            self.counts["saves"] += 1
        except FlushTimeoutError:  # its record goes on being tried
            key.has_staged(number, number)
            self.counts["saves not in time"] += 1
        except StoreUnavailableError:
            assert not move, "a tree was taken, and not kept"
            self.counts["not saved"] += 1
        shutil.rmtree(path, ignore_errors=True)

    async def _restore(self, cp: Checkpointer[bytes], key: Known) -> None:
        path = self._directory / f"restored-{key.name}"
        try:
            found = await cp.restore(path)
        except (StoreUnavailableError, FlushTimeoutError):
            self.counts["not restored"] += 1
            assert not path.exists(), "half of the files are left"
            return
        key.restored(0 if found is None else int((path / "number").read_text()))
        shutil.rmtree(path, ignore_errors=True)

    async def _look_around(self, runtime: Runtime) -> None:
        for key in itertools.cycle(self._keys):
            if self._over:
                return
            await self._look(runtime, key)
            await asyncio.sleep(0.01)

    async def _look(self, runtime: Runtime, key: Known, tries: int = 1) -> None:
        floor = key.stored
        for _ in range(tries):
            try:
                found = await runtime.latest(key.name)
            except StoreUnavailableError:
                self.counts["not looked"] += 1
            else:
                key.seen(b"" if found is None else found.payload, floor)
                self.counts["looks"] += 1
                return

    # When all is well.

    async def _settle(self, runtime: Runtime, key: Known) -> None:
        """Everything that was staged is there, and can be gone on from."""
        async with runtime.open(key.name, codec=key.codec, keep=key.keep) as cp:
            key.opened(await cp.read())
            await self._restore(cp, key)
            number = key.next()
            await cp.write(state(number, key.tree, 100))
            key.has_staged(number, key.tree)
        key.acknowledged(number)
        found = await runtime.latest(key.name)
        key.seen(b"" if found is None else found.payload, number)

    async def _look_for_orphans(self) -> None:
        store = open_store(self._service.url)
        try:
            for key in self._keys:
                look = await look_at(store, key.name)
                assert look is not None
                if orphans := look.names - look.named:
                    raise Broken(f"{key.name}: nothing names {sorted(orphans)}")
                if len(look.generations) > key.keep + 1:
                    raise Broken(f"{key.name}: {len(look.generations)} generations")
        finally:
            await store.aclose()
