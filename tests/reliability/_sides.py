"""Two runtimes, the sides, on a store with faults: what they do, and what must not come of it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Coroutine
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path
from typing import TypeVar

from aiocheckpoint import Checkpointer, CheckpointError, FencedError, FlushTimeoutError, Runtime
from aiocheckpoint._errors import StoreError, StoreUnavailableError
from aiocheckpoint._looking import look_at
from aiocheckpoint.stores.memory import MemoryStore

from ._faulted import FaultedStore
from ._latest import NOTHING, Broken, Claim, Key, Pair
from ._simulated import simulated
from ._torture import Counts
from ._victim import numbers_of, state

T = TypeVar("T")

FLUSH = 30.0
"""Seconds that a flush may take."""
SETTLED = 120.0
"""Seconds after which nothing is under way any more that began on a store with faults."""
KEYS = ("a", "b")
LARGE = 1_200_000
"""Bytes of a state that needs a blob."""
_OPENING = 27.0  # seconds for which a claim tries, but for the last wait
_HANGS = 1_000.0
_EPSILON = 0.001


class Handle:
    """An open key on one side."""

    def __init__(
        self,
        side: int,
        cp: Checkpointer[bytes],
        block: AbstractAsyncContextManager[Checkpointer[bytes]],
    ) -> None:
        self.side = side
        self.cp = cp
        self.block = block
        self.claim: Claim
        self.heard = 0
        """How many lasting errors the side's store had given when all was stored."""
        self.over = False
        """True once it was left, with all stored."""
        self._states: list[bytes] = [state(0, 0, 20)]  # the first, nobody else holds

    def state(self, pair: Pair, size: int) -> bytes:
        """A state to stage here."""
        data = state(*pair, size)
        self._states.append(data)
        return data

    def held(self) -> int:
        """How many of them anybody still holds, other than its store."""
        nobody = sys.getrefcount(self._states[0])
        self._states[1:] = [one for one in self._states if sys.getrefcount(one) > nobody + 1]
        return len(self._states) - 1

    async def read(self) -> Pair:
        found = await self.cp.read()
        return NOTHING if found is None else Pair(*numbers_of(found))


class Sides:
    """What is open, what was staged, what was said, and what the model says to it."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.stack = ExitStack()
        self.loop = self.stack.enter_context(simulated())
        self.complaints: list[object] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.base = MemoryStore()
        self.stores = [FaultedStore(self.base), FaultedStore(self.base)]
        self.runtimes: list[Runtime] = []
        self.keys = {key: Key() for key in KEYS}
        self.handles: dict[tuple[int, str], Handle] = {}
        self.ghosts = Counts()
        """By side and key: handles that were left and opens that were given up, whose work may go
        on."""
        self.keep = 1
        self.trees = itertools.count(1)
        self.states = itertools.count(1)
        self._everyone: list[Handle] = []
        log = logging.getLogger("aiocheckpoint")
        self.stack.callback(log.setLevel, log.level)
        log.setLevel(logging.CRITICAL)
        counts["examples"] += 1

    def run(self, coroutine: Coroutine[object, object, T]) -> T:
        return self.loop.run(coroutine, within=_HANGS)

    async def enter(self, side: int) -> Runtime:
        return await Runtime(self.stores[side], spool=None, flush_timeout=FLUSH).__aenter__()

    async def attempt(self, call: Awaitable[T], patience: float | None = None) -> T | BaseException:
        """The result of a call, or its error; it is cancelled when patience ends."""
        task = asyncio.ensure_future(call)
        await asyncio.wait({task}, timeout=patience)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if task.cancelled():
            self.counts["cancelled"] += 1
            return asyncio.CancelledError()
        error = task.exception()
        if error is None:
            return task.result()
        error.__traceback__ = None  # its frames hold states
        if not isinstance(error, CheckpointError):
            raise Broken(f"an error that nobody has promised: {error!r}") from error
        return error

    def promised(self, handle: Handle, error: BaseException, took: float = FLUSH) -> None:
        """Fail unless a handle may raise this."""
        match error:
            case FencedError():
                good = handle.claim.disputed
                self.counts["fenced"] += 1
            case FlushTimeoutError():
                good = took >= FLUSH - _EPSILON and error.key == handle.cp.key
                good = good and error.staged > error.stored
                self.counts["timed out"] += 1
            case StoreUnavailableError():
                good = False
            case StoreError():
                good = self.refused(handle)
                self.counts["refused for good"] += 1
            case _:
                good = isinstance(error, asyncio.CancelledError)
        if not good:
            raise Broken(f"an error that nobody has promised: {error!r}") from error

    def refused(self, handle: Handle) -> bool:
        """Whether the store has given a lasting error since all of the handle was stored."""
        heard = self.stores[handle.side].refusals[handle.heard :]
        return any(key in (handle.cp.key, None) for _, key in heard)

    def acknowledged(self, handle: Handle) -> None:
        """All that is staged was said to be stored."""
        handle.claim.acknowledge()
        handle.heard = len(self.stores[handle.side].refusals)
        self.counts["acknowledged"] += 1

    async def open_one(self, side: int, key: str, patience: float | None) -> Handle | None:
        heard = len(self.stores[side].refusals)
        self.keys[key].attempts += 1
        began = self.loop.time()
        block = self.runtimes[side].open(key, type=bytes, keep=self.keep)
        cp = await self.attempt(block.__aenter__(), patience)
        match cp:
            case Checkpointer():
                self.counts["opened"] += 1
                return Handle(side, cp, block)
            case asyncio.CancelledError():
                self.ghosts[f"{side}{key}"] += 1
                good = True
            case StoreUnavailableError():
                good = self.loop.time() - began > _OPENING
            case StoreError():
                good = len(self.stores[side].refusals) > heard
            case _:
                good = False
        if not good:
            raise Broken(f"open() has failed: {cp!r}")
        return None

    async def claimed(self, key: str, handle: Handle) -> None:
        last = self.keys[key].last
        for one in self._everyone:
            if one.claim is last and last is not None:
                last.adopted = last.adopted and not self.refused(one)
        handle.claim = self.keys[key].claimed(await handle.read())
        handle.heard = len(self.stores[handle.side].refusals)
        self.handles[handle.side, key] = handle
        self._everyone.append(handle)

    async def write(self, handle: Handle, size: int) -> None:
        """Stage a state; that takes no time."""
        pair = Pair(next(self.states), handle.claim.newest.tree)
        began = self.loop.time()
        handle.claim.stage(pair)
        error = await self.attempt(handle.cp.write(handle.state(pair, size)))
        self.counts["staged"] += 1
        if isinstance(error, BaseException):
            self.promised(handle, error)
        if self.loop.time() != began:
            raise Broken("write() has waited")

    async def flush(self, handle: Handle, patience: float | None = None) -> bool:
        """Flush; whether all is stored."""
        for _ in range(50):  # what is refused before the flush has begun, it need not tell
            await asyncio.sleep(0)
        key, store, began = handle.cp.key, self.stores[handle.side], self.loop.time()
        heard = len(store.refusals)
        forbids = store.forbids
        error = await self.attempt(handle.cp.flush(), patience)
        took = self.loop.time() - began
        if took > FLUSH + _EPSILON:
            raise Broken(f"flush() took {took} seconds")
        if isinstance(error, BaseException):
            self.promised(handle, error, took)
            if forbids and isinstance(error, FlushTimeoutError):
                raise Broken("flush() has waited, and the store refuses for good")
            return False
        if ("commit", key) in store.refusals[heard:] and not self.ghosts[f"{handle.side}{key}"]:
            raise Broken("flush() did not tell that the store has refused")
        self.acknowledged(handle)
        return True

    async def leave(self, handle: Handle, patience: float | None, *, failing: bool) -> None:
        """Leave the block, perhaps with an error of its own."""
        key, began = handle.cp.key, self.loop.time()
        del self.handles[handle.side, key]
        body = ValueError("of the body") if failing else None
        kind = None if body is None else ValueError
        error = await self.attempt(handle.block.__aexit__(kind, body, None), patience)
        took = self.loop.time() - began
        if took > FLUSH + _EPSILON:
            raise Broken(f"leaving took {took} seconds")
        if isinstance(error, BaseException):
            self.promised(handle, error, took)
            if failing and not isinstance(error, asyncio.CancelledError):
                raise Broken(f"{error!r} has taken the place of the body's error")
        elif not hasattr(body, "__notes__"):
            self.acknowledged(handle)
            handle.over = True
            return
        self.ghosts[f"{handle.side}{key}"] += 1
        claim = handle.claim
        claim.adopted = not claim.disputed and not self.refused(handle)

    async def restored(self, handle: Handle, patience: float | None = None) -> int | BaseException:
        """The number of the files that are restored, 0 if there are none, or the error."""
        target = self.directory / "target"
        made = await self.attempt(handle.cp.restore(target), patience)
        if isinstance(made, BaseException):
            number: int | BaseException = made
        else:
            number = int((made / "number").read_text()) if made else 0
            shutil.rmtree(target, ignore_errors=True)
        if left := list(self.directory.iterdir()):
            raise Broken(f"a restore has left {left}")
        return number

    def check_memory(self) -> None:
        """Of each handle no more than two states are held, and one commit of a key is under way."""
        for handle in self._everyone:
            most = 0 if handle.over else 2
            if (held := handle.held()) > most:
                raise Broken(f"{held} states are held where {most} may be")
        for side, store in enumerate(self.stores):
            for key, count in store.under_way.items():
                if count > 1 + self.ghosts[f"{side}{key}"]:
                    raise Broken(f"{count} commits of {key} are under way")

    async def heal(self) -> None:
        """The faults stop: all that is staged gets stored, with nobody doing anything."""
        for store in self.stores:
            store.heal()
        await asyncio.sleep(SETTLED)
        for (_, key), handle in list(self.handles.items()):
            counted = handle.cp.statistics()
            if handle.claim.disputed:
                await self.flush(handle)
            elif counted.stored != counted.staged and not self.refused(handle):
                raise Broken(f"the store is well, and the newest of {key!r} is not stored")
            elif not await self.flush(handle) and not await self.flush(handle):
                raise Broken(f"the store is well, and {key!r} cannot be stored")

    async def end(self) -> None:
        """All is left, and one more claim finds the newest, and collects what nobody needs."""
        await self.heal()
        for handle in list(self.handles.values()):
            await self.leave(handle, None, failing=False)
        for runtime in self.runtimes:
            await runtime.__aexit__(None, None, None)
        await asyncio.sleep(SETTLED)
        self.runtimes = [await self.enter(0)]
        for key in KEYS:
            opened = await self.open_one(0, key, None)
            assert opened is not None
            await self.claimed(key, handle := opened)
            if await self.restored(handle) != handle.claim.newest.tree:
                raise Broken("the newest state has the files of another")
            await self.leave(handle, None, failing=False)
        await self.runtimes[0].__aexit__(None, None, None)
        for key in KEYS:
            seen = await look_at(self.base, key)
            assert seen is not None
            if more := set(seen.names) - seen.named:
                raise Broken(f"blobs are left that nothing names: {more}")

    def close(self) -> None:
        for store in self.stores:
            for kind, number in store.taken.items():
                if kind != "none":
                    self.counts[kind] += number
            self.counts["calls"] += store.calls
        self.stack.close()
