"""Where a program runs, and the account of what must be stored."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import anyio
import anyio.lowlevel

from aiocheckpoint import Checkpointer, Runtime
from aiocheckpoint.abc import Store
from aiocheckpoint.stores import open_store
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import Wrapper

from ..support import files, stored_state
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
        self.spooled: Pair | None = None
        """What only the spool has, until the key is opened."""
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

    def opened(self) -> Store:
        return open_store(self.store) if isinstance(self.store, str) else self.store

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


def temporary(directory: Path) -> list[str]:
    """Files that are to be there only while something is under way."""
    return [
        os.path.join(where, name)
        for where, names, files in os.walk(directory)
        for name in names + files
        if name.startswith((".tmp-", ".restoring-")) or name.endswith(".aside")
    ]


def spooled(directory: Path) -> list[Path]:
    """What is in the spool, wherever the store has it."""
    places = ("spool", "store/.spool", "store-spool")
    return [path for place in places for path in files(directory / place)]
