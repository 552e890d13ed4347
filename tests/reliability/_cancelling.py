"""Interrupts a program at one of its points, in one of many ways, and looks at what is left."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from aiocheckpoint import Runtime, _io_thread
from aiocheckpoint._files import restore_tree
from aiocheckpoint._heads import read_head
from aiocheckpoint._records import decode_record
from aiocheckpoint.abc import Store
from aiocheckpoint.stores import open_store
from aiocheckpoint.stores.memory import MemoryStore

from ..support import files
from ._interrupting import Point, Points, slowly
from ._programs import TIMES, Pair, Place, temporary

Program = Callable[[Place], Coroutine[Any, Any, None]]
BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


@dataclass
class Target:
    """What can be cancelled around a program."""

    place: Place
    inner: anyio.CancelScope
    outer: anyio.CancelScope
    task: asyncio.Task[Any] | None
    """None on trio."""

    def cancel_inner(self) -> None:
        self.inner.cancel()

    def cancel_outer(self) -> None:
        self.outer.cancel()

    def cancel_step(self) -> None:
        if self.place.scope is not None:
            self.place.scope.cancel()

    def cancel_natively(self) -> None:
        assert self.task is not None
        self.task.cancel()

    def cancel_natively_twice(self) -> None:
        self.cancel_natively()
        self.cancel_natively()

    @trio.lowlevel.enable_ki_protection  # so that trio brings it where the program waits
    def ctrl_c(self) -> None:
        signal.raise_signal(signal.SIGINT)

    def close(self) -> BaseException:
        return GeneratorExit()


@dataclass(frozen=True)
class Way:
    """A way to interrupt: what comes at the point, and what at the suspensions after it."""

    name: str
    first: Callable[[Target], BaseException | None]
    again: tuple[Callable[[Target], BaseException | None], ...] = ()
    native: bool = False
    """For asyncio's loops alone."""
    behind: bool = True
    """Whether it can come while something runs in the I/O thread."""

    def for_backend(self, backend: str) -> bool:
        return backend != "trio" or not self.native


_T = Target
WAYS = {
    way.name: way
    for way in (
        Way("scope", _T.cancel_inner),
        Way("scope twice", _T.cancel_inner, (_T.cancel_outer,)),
        Way("step", _T.cancel_step),
        Way("native", _T.cancel_natively, native=True),
        Way("native twice", _T.cancel_natively, (_T.cancel_natively,), native=True),
        Way("native twice at once", _T.cancel_natively_twice, native=True),
        Way("native thrice", _T.cancel_natively, (_T.cancel_natively,) * 2, native=True),
        Way("scope, then native", _T.cancel_inner, (_T.cancel_natively,), native=True),
        Way("Ctrl-C", _T.ctrl_c),
        Way("close", _T.close, native=True, behind=False),
    )
}


class Kept:
    """Stores for programs, by name; the directory of one case at a time."""

    def __init__(self, scheme: str, base: Path) -> None:
        self.directory = Path(mkdtemp(dir=base))
        self.store: Store | str = MemoryStore()
        if scheme != "memory":
            self.store = f"{scheme}:{self.directory}/store"

    def opened(self) -> Store:
        return open_store(self.store) if isinstance(self.store, str) else self.store


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
    with _nothing_left(), _quiet(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_io_thread, "_patience", 1.0)  # as in a new process
        ending = _run(program, backend, place, way)
    _check_ending(ending, way)
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
    if way is None or not ending.interrupted:
        if error is not None:
            raise AssertionError("the program failed") from error
        return
    expected: type[BaseException] | None = None
    if way.name == "Ctrl-C":
        expected = KeyboardInterrupt
    elif way.name == "close":
        expected = GeneratorExit
    elif any("native" in act.__name__ for act in (way.first,)):
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
    assert not temporary(kept.directory), f"left: {temporary(kept.directory)}"
    for spool in ("spool", "store/.spool", "store-spool"):
        left = files(kept.directory / spool)
        assert not left, f"left in the spool: {left}"
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
    store = kept.opened()
    for key, account in place.accounts.items():
        found[key] = await _stored(store, key, kept.directory / f"look-{key}")
        assert found[key] in account.pairs, f"{key!r} has {found[key]}, not of {account.pairs}"
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
    store = kept.opened()
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
    name = (tree / "small").read_bytes()
    assert sorted(path.relative_to(tree).as_posix() for path in files(tree)) == [
        "below/large",
        "small",
    ]
    assert (tree / "below/large").read_bytes() == name * TIMES
    return name.decode()


# What is left of the process's own.


@contextmanager
def _nothing_left() -> Iterator[None]:
    """No thread and no descriptor more afterwards."""
    threads, descriptors = set(threading.enumerate()), _descriptors()
    yield
    until = time.monotonic() + 10
    while left := set(threading.enumerate()) - threads:
        assert time.monotonic() < until, f"threads are left: {left}"
        time.sleep(0.0005)
    more = {fd: what for fd, what in _descriptors().items() if descriptors.get(fd) != what}
    assert not more, f"descriptors are left: {more}"


def _descriptors() -> dict[str, str]:
    found: dict[str, str] = {}
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "asyncio" or record.levelno >= logging.ERROR:
            self.records.append(record)


@contextmanager
def _quiet() -> Iterator[None]:
    """No loop complains of what nobody awaited, and the package of no failure."""
    heard = _Heard()
    loggers = [logging.getLogger(name) for name in ("asyncio", "aiocheckpoint")]
    for logger in loggers:
        logger.addHandler(heard)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(heard)
    said = [record.getMessage() for record in heard.records]
    assert not said, f"the log has {said}"
