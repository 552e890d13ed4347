"""Interrupts a program at one of its points, in one of many ways, and looks at what is left."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from aiocheckpoint import Runtime, _io_thread, _packing, _unpacking
from aiocheckpoint._files import restore_tree
from aiocheckpoint._heads import read_head
from aiocheckpoint._records import decode_record
from aiocheckpoint.abc import Store
from aiocheckpoint.stores import _blobs
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import SlowStore

from ..support import files
from ._interrupting import Point, Points, slowly
from ._left import nothing_left, quiet
from ._place import TIMES, Pair, Place, spooled, temporary
from ._ways import Target, Way

_SIZES = ((_packing, "CHUNK"), (_packing, "_SMALL"), (_unpacking, "_SMALL"), (_blobs, "CHUNK"))
"""What is so small here that small trees go the way of large ones: chunk by chunk."""
Program = Callable[[Place], Coroutine[Any, Any, None]]
BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


class Kept:
    """Stores for programs, by name; the directory of one case at a time."""

    def __init__(self, scheme: str, base: Path) -> None:
        self.directory = Path(mkdtemp(dir=base))
        self.store: Store | str = MemoryStore()
        if scheme == "slow":
            self.store = SlowStore(self.store, 0.05)
        elif scheme != "memory":
            self.store = f"{scheme}:{self.directory}/store"


@dataclass
class Ending:
    """How a program ended."""

    points: list[Point]
    interrupted: bool
    delivered: bool
    error: BaseException | None = None
    caught: bool = False
    """Whether it was a scope's cancellation."""
    tasks: int = 0


def interrupt(
    program: Program,
    scheme: str,
    backend: str,
    base: Path,
    way: Way | None = None,
    at: Point | None = None,
    *,
    late: bool = False,
) -> Ending:
    """Run a program, interrupted so; raise AssertionError for whatever a guarantee excludes."""
    _warm(backend)
    kept = Kept(scheme, base)
    points = Points(at, late=late)
    place = Place(kept.store, kept.directory, points)
    with nothing_left(), quiet(), pytest.MonkeyPatch.context() as patch:
        for module, name in _SIZES:
            patch.setattr(module, name, 1 << 16)
        patch.setattr(_io_thread, "_patience", 20.0)  # this may be a busy machine
        ending = _run(program, backend, place, way)
        _check_ending(ending, way)
        ending.error = None  # its traceback would keep what it saw open
    _check_place(place, kept)
    shutil.rmtree(kept.directory)
    return ending


def _run(program: Program, backend: str, place: Place, way: Way | None) -> Ending:
    points = place.points
    ending = Ending([], interrupted=False, delivered=False)

    async def main() -> None:
        task = asyncio.current_task() if name == "asyncio" else None
        target = Target(place, anyio.CancelScope(), anyio.CancelScope(), task)
        if way is not None:
            points.interrupt(target, way.first, *way.again)
        alive = _tasks(name)
        try:
            with target.outer, target.inner:
                await points.main(program(place))
            ending.caught = target.outer.cancelled_caught or target.inner.cancelled_caught
        except BaseException as exc:
            ending.error = exc
            if not isinstance(exc, GeneratorExit):
                raise
        finally:
            ending.tasks = _tasks(name) - alive
            target.task = task = None  # it would keep the exception, and that us

    name, options = BACKENDS[backend]
    with slowly(points):
        try:
            anyio.run(main, backend=name, backend_options=options)
        except BaseException as exc:
            ending.error = exc
    ending.points = points.seen
    ending.interrupted = points.interrupted
    ending.delivered = bool(points.delivered)
    return ending


@functools.cache
def _warm(backend: str) -> None:
    """Have a backend make what it makes once in a process."""
    name, options = BACKENDS[backend]
    anyio.run(anyio.lowlevel.checkpoint, backend=name, backend_options=options)


def _tasks(name: str) -> int:
    if name == "trio":
        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


def _check_ending(ending: Ending, way: Way | None) -> None:
    """A cancellation stays one, and nothing else comes of it."""
    error = ending.error
    assert ending.tasks == 0, f"{ending.tasks} tasks are left"
    if isinstance(error, AssertionError):
        raise error  # the program's own
    if way is None or not ending.interrupted:
        if error is not None:
            raise AssertionError("the program failed") from error
        return
    expected: type[BaseException] | None = None
    if way.name == "Ctrl-C":
        expected = KeyboardInterrupt
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]  # trio's nurseries put it into groups
    elif way.name == "close":
        expected = GeneratorExit
    elif "natively" in way.first.__name__:
        expected = asyncio.CancelledError
    if expected is None:
        native = isinstance(error, asyncio.CancelledError) and len(way.again) > 0
        if error is not None and not native:
            raise AssertionError("a cancellation became an error") from error
        if way.name != "step" and ending.delivered:
            assert ending.caught or native, "a cancellation was swallowed"
    elif not isinstance(error, expected):
        raise AssertionError(f"{way.name} ended as {error!r}") from error


def _check_place(place: Place, kept: Kept) -> None:
    """What was staged is stored, files are whole or absent, and the next one can go on."""
    assert not place.faults, place.faults
    assert not temporary(kept.directory), f"left: {temporary(kept.directory)}"
    if not any(account.spooled for account in place.accounts.values()):
        assert not spooled(kept.directory), f"left in the spool: {spooled(kept.directory)}"
    for target, trees in place.restored:
        if target.exists() and os.listdir(target):
            assert _named(target) in trees, f"{target.name} is no tree that was saved"
    for account in place.accounts.values():
        for name, tree in account.gone_trees.items():
            if tree.exists():  # given back, if it was taken
                assert _named(tree) == name
                account.pairs = {pair for pair in account.pairs if pair[1] != name}
            else:
                account.pairs -= {pair for pair in account.pairs if pair in account.before[name]}
    asyncio.run(_look(place, kept))


async def _look(place: Place, kept: Kept) -> None:
    """See what the store has, with nobody's help; then open each key again."""
    found: dict[str, Pair] = {}
    store = place.opened()
    for key, account in place.accounts.items():
        found[key] = await _stored(store, key, kept.directory / f"look-{key}")
        allowed = account.pairs | ({account.spooled} if account.spooled else set())
        assert found[key] in allowed, f"{key!r} has {found[key]}, not of {allowed}"
        found[key] = account.spooled or found[key]
    if store is not kept.store:
        await store.aclose()
    async with Runtime(kept.store, spool=place.spool, min_interval=0) as rt:
        for key, pair in found.items():
            async with rt.open(key) as cp:
                again = kept.directory / f"again-{key}"
                tree = await cp.restore(again)
                now = await cp.read(), None if tree is None else _named(again)
                assert now == pair, f"{key!r} was opened with {now}, and {pair} was stored"
                if place.rerun is None:
                    await cp.write(b"again")
        if place.rerun is not None:
            await place.rerun(rt)
    assert not spooled(kept.directory), f"left in the spool: {spooled(kept.directory)}"
    store = place.opened()
    for key in found:
        head = await store.load(key)
        assert head is not None
        record, _ = decode_record(key, head.record)
        kept_names = set() if record.files is None else record.files.blobs
        assert set(await store.list_blobs(key)) == kept_names, "blobs are left that nothing names"
    if store is not kept.store:
        await store.aclose()


async def _stored(store: Store, key: str, out: Path) -> Pair:
    head = await read_head(store, key)
    if head is None:
        return None, None
    tree = head.record.files
    if tree is not None:
        await restore_tree(store, key, tree, out)
    return head.data if head.record.codec else None, None if tree is None else _named(out)


def _named(tree: Path) -> str:
    """Which of a program's trees lies here, whole."""
    paths = sorted(path.relative_to(tree).as_posix() for path in files(tree))
    assert paths == ["below/large", "small"], f"{tree.name} is no whole tree: {paths}"
    name = (tree / "small").read_bytes()
    assert (tree / "below/large").read_bytes() == name * TIMES
    return name.decode()
