"""Programs to interrupt: together they use every call of the package that waits.

Each says what it does meanwhile, which names its points, and keeps an account of what must be
stored, whatever becomes of it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import anyio
import anyio.lowlevel

import aiocheckpoint
from aiocheckpoint import Checkpointer, RetryPolicy, Runtime
from aiocheckpoint.abc import Store
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import Wrapper

from ..support import stored_state
from ..trees import make
from ._interrupting import Points

T = TypeVar("T")
TIMES = 40_000
Pair = tuple[bytes | None, str | None]
"""A state, and the name of the tree that goes with it."""


class Account:
    """What a key may hold now: one pair, or two while something is under way."""

    def __init__(self) -> None:
        self.pairs: set[Pair] = {(None, None)}
        self.gone_trees: dict[str, Path] = {}
        """Trees that were given to `save(move=True)`, and where they lay."""
        self.before: dict[str, set[Pair]] = {}
        """By tree, what there was when it was to be saved."""

    def write(self, state: bytes) -> bytes:
        """The state is staged next, and before anything can come between."""
        self.pairs = {(state, tree) for _, tree in self.pairs}
        return state

    @contextmanager
    def changing(self, *new: Pair) -> Iterator[None]:
        """Until this ends well it is the old or the new."""
        self.pairs |= set(new)
        yield
        self.pairs = set(new)

    @contextmanager
    def saving(self, tree: str, state: bytes | None = None) -> Iterator[None]:
        self.before[tree] = set(self.pairs)
        new = {(old if state is None else state, tree) for old, _ in self.pairs}
        with self.changing(*new):
            yield


class Place:
    """Where a program runs: a store, a directory of its own, and the accounts of its keys."""

    def __init__(
        self, store: Store | str, directory: Path, points: Points, *, keep: int = 1
    ) -> None:
        self.store = store
        self.directory = directory
        self.points = points
        self.spool: Any = "auto" if isinstance(store, str) else directory / "spool"
        self.keep = keep
        self.accounts: dict[str, Account] = {}
        self.restored: list[tuple[Path, set[str | None]]] = []
        """The targets of restores, and which trees each may be."""
        self.scope: anyio.CancelScope | None = None
        """Of the step that is under way."""
        self.faults: list[str] = []
        """What was found while the program ran."""
        self.rerun: Callable[[Runtime], Awaitable[object]] | None = None
        """What must still go well afterwards."""

    def account(self, key: str = "k") -> Account:
        return self.accounts.setdefault(key, Account())

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """A step that may be given up alone."""
        try:
            with self.points.doing(what, whole=False), anyio.CancelScope() as self.scope:
                yield
        finally:
            self.scope = None

    def block(
        self,
        what: str,
        block: AbstractAsyncContextManager[T],
        left: Callable[[], object] = lambda: None,
    ) -> AbstractAsyncContextManager[T]:
        return _Block(self.points, what, block, left)

    def runtime(self) -> AbstractAsyncContextManager[Runtime]:
        runtime = Runtime(self.store, spool=self.spool, keep=self.keep, min_interval=0)

        def left() -> None:
            if runtime._engine is not None and not runtime._engine.io._ended.done():
                self.faults.append("the runtime was left, and its thread goes on")

        return self.block("Runtime", runtime, left)

    def open(self, rt: Runtime, key: str = "k") -> AbstractAsyncContextManager[Checkpointer[bytes]]:
        return self.block("open", rt.open(key), lambda: self.is_stored(key))

    def is_stored(self, key: str) -> None:
        """The block of a handle has been left: now, not soon, what was staged is stored."""
        store = self.store.store if isinstance(self.store, Wrapper) else self.store
        if isinstance(store, MemoryStore):
            state = stored_state(store, key) or None  # empty where there is a claim and no state
            if state not in {one for one, _ in self.account(key).pairs}:
                self.faults.append(f"the block was left, and {key!r} has {state!r} stored")

    def tree(self, name: str) -> Path:
        """A tree to save: more than one chunk, in more than one directory."""
        path = self.directory / name
        if not path.exists():
            make(path, small=name.encode(), below__large=name.encode() * TIMES)
        return path

    async def restore(self, cp: Checkpointer[bytes], name: str) -> None:
        target = self.directory / name
        self.restored.append((target, {tree for _, tree in self.account(cp.key).pairs}))
        await cp.restore(target)


class _Block(Generic[T]):
    """A block whose entering and leaving have names."""

    def __init__(
        self,
        points: Points,
        what: str,
        block: AbstractAsyncContextManager[T],
        left: Callable[[], object],
    ) -> None:
        self._points = points
        self._what = what
        self._block = block
        self._left = left

    async def __aenter__(self) -> T:
        with self._points.doing(f"{self._what}, entering"):
            return await self._block.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        how = "leaving" if exc is None else "leaving with an exception"
        try:
            with self._points.doing(f"{self._what}, {how}"):
                return await self._block.__aexit__(kind, exc, traceback)
        finally:
            self._left()


async def opening(place: Place) -> None:
    """A key whose opening may be given up, and that is opened at once again."""
    async with place.runtime() as rt:
        block = rt.open("k")
        cp = None
        with place.step("open"):
            cp = await block.__aenter__()
        if cp is not None:
            await cp.write(place.account().write(b"1"))
            with place.step("leave"):
                await block.__aexit__(None, None, None)
            place.is_stored("k")
        async with place.open(rt) as again:
            await again.write(place.account().write(b"2"))
            await again.flush()
            assert rt._engine is not None
            held = len(rt._engine.writer.holding)
            assert held == 1, f"{held} claims are held"


async def handle(place: Place) -> None:
    """States alone."""
    account = place.account()
    async with place.runtime() as rt:
        async with place.open(rt) as cp:
            with place.step("write"):  # the writer sleeps: it wakes it, and yields
                await cp.write(account.write(b"1"))
            with place.step("write"):
                await cp.write(account.write(b"2"))
            with place.step("read"):
                assert await cp.read() == b"2"
            with place.step("flush"):
                await cp.flush()
            with place.step("latest"):
                await cp.latest()
            with place.step("write"):
                cp._slot.seen = None  # as when the writer asks it to yield
                await cp.write(account.write(b"3"))
            with place.step("Runtime.flush"):
                await rt.flush()
            await cp.write(account.write(b"4"))
        with place.step("Runtime.latest"):
            await rt.latest("k")
        with place.step("Runtime.keys"):
            assert [key async for key in rt.keys("")] == ["k"]
        try:
            async with place.open(rt) as cp:
                cp.write_nowait(account.write(b"5"))
                raise LookupError("the block's own")
        except LookupError:
            pass


async def saving(place: Place) -> None:
    """Files, copied."""
    account = place.account()
    async with place.runtime() as rt, place.open(rt) as cp:
        cp.write_nowait(account.write(b"1"))
        with place.step("save"), account.saving("one", b"2"):
            await cp.save(place.tree("one"), state=b"2")
        with place.step("restore"):
            await place.restore(cp, "out")
        with place.step("save"), account.saving("two"):
            await cp.save(place.tree("two"))
        (place.directory / "mount").mkdir()
        with place.step("restore into a directory"):
            await place.restore(cp, "mount")
        cp.write_nowait(account.write(b"3"))


async def moving(place: Place) -> None:
    """Files, moved."""
    account = place.account()
    async with place.runtime() as rt, place.open(rt) as cp:
        for name in ("one", "two"):
            tree = account.gone_trees[name] = place.tree(name)
            with place.step("save(move=True)"), account.saving(name, name.encode()):
                await cp.save(tree, state=name.encode(), move=True)
        with place.step("restore, not stored yet"):
            await place.restore(cp, "out")
        tree = account.gone_trees["three"] = place.tree("three")
        with place.step("save(move=True)"), account.saving("three"):
            await cp.save(tree, move=True)


async def deleting(place: Place) -> None:
    """Keys that go."""
    account, other = place.account(), place.account("other")
    async with place.runtime() as rt:
        async with place.open(rt) as cp:
            await cp.write(account.write(b"1"))
            with place.points.doing("delete"), account.changing((None, None)):
                await cp.delete()
        async with place.open(rt, "other") as cp:
            await cp.write(other.write(b"1"))
        with place.points.doing("Runtime.delete"), other.changing((None, None)):
            await rt.delete("other")


async def alone(place: Place) -> None:
    """A handle with a runtime of its own."""
    account = place.account()
    opening = aiocheckpoint.open(place.store, "k", spool=place.spool, keep=place.keep)
    async with place.block("aiocheckpoint.open", opening) as cp:
        await cp.write(account.write(b"1"))
        await cp.write(account.write(b"2"))


def flaky(place: Place) -> Callable[[Checkpointer[bytes], str], Awaitable[str]]:
    """A task that fails at its first attempt, and returns its key at the second."""

    async def fn(cp: Checkpointer[bytes], item: str) -> str:
        account = place.account(cp.key)
        done = int(await cp.read(default=b"0"))
        for step in range(done, 3):
            await cp.write(account.write(b"%d" % (step + 1)))
            await cp.flush()
            if step == 1:
                raise LookupError("the first attempt's")
        return item

    return fn


_policy = RetryPolicy(on=LookupError, retries=3, wait_initial=0.001, wait_jitter=0)


async def running(place: Place) -> None:
    """A run with a retry, and the result of one that is done."""
    fn = flaky(place)

    async def rerun(rt: Runtime) -> None:
        assert await rt.run(fn, "k", key="k", retry=_policy) == "k"

    place.rerun = rerun
    async with place.runtime() as rt:
        for what in ("run", "run, done before"):
            with place.step(what):
                await rt.run(fn, "k", key="k", retry=_policy)


async def mapping(place: Place) -> None:
    """A map that is taken to its end, and one that is left early."""
    fn = flaky(place)
    items = [f"item{n}" for n in range(3)]

    async def later() -> AsyncIterator[str]:
        for item in items:
            await anyio.lowlevel.checkpoint()
            yield item

    async def rerun(rt: Runtime) -> None:
        async with rt.map(fn, items, key="{item}", retry=_policy) as outcomes:
            assert sorted([one.unwrap() async for one in outcomes]) == items

    place.rerun = rerun
    async with place.runtime() as rt:
        over = rt.map(fn, later(), key="{item}", max_concurrency=2, retry=_policy)
        async with place.block("map", over) as outcomes:
            with place.points.doing("map, iterating"):
                results = [one.unwrap() async for one in outcomes]
        assert sorted(results) == items
        early = rt.map(fn, (f"early{n}" for n in range(3)), key="{item}", retry=_policy)
        async with place.block("map, early", early) as outcomes:
            with place.points.doing("map, iterating"):
                await anext(outcomes)


PROGRAMS = (opening, handle, saving, moving, deleting, alone, running, mapping)


def temporary(directory: Path) -> list[str]:
    """Files that are to be there only while something is under way."""
    return [
        os.path.join(where, name)
        for where, names, files in os.walk(directory)
        for name in names + files
        if name.startswith((".tmp-", ".restoring-")) or name.endswith(".aside")
    ]
