"""Leaving never loses: every door out of a block stores what was staged."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

import aiocheckpoint
from aiocheckpoint import Checkpointer, FlushTimeoutError, Runtime, StoreError, _io_thread
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import FaultyStore, SlowStore

from .support import (
    Script,
    files,
    io_threads_end,
    on_asyncio,
    poll,
    run_script,
    stored,
    stored_state,
    true,
    with_new_loop,
)

pytestmark = pytest.mark.anyio

DELAY = 0.5
LAST = b"4"

NewLoop = Callable[[], asyncio.AbstractEventLoop]


class Place:
    """A store in memory that takes its time once a handle is open on it, and a spool."""

    def __init__(self, directory: Path) -> None:
        self.memory = MemoryStore()
        self.faulty = FaultyStore(self.memory)
        self.store = SlowStore(self.faulty, 0)
        self.spool = directory / "spool"
        self.delay = DELAY

    def open(
        self, key: str = "k", **options: Any
    ) -> AbstractAsyncContextManager[Checkpointer[Any]]:
        return aiocheckpoint.open(self.store, key, **{"spool": self.spool, **options})

    async def stage(self, cp: Checkpointer[Any]) -> None:
        """Stage five states at once, the last of which is LAST."""
        self.store.seconds = self.delay
        for n in range(5):
            await cp.write(b"%d" % n)

    async def work(self, ready: anyio.Event | None = None) -> None:
        """Stage, and then never end."""
        async with self.open() as cp:
            await self.stage(cp)
            if ready is not None:
                ready.set()
            await anyio.sleep_forever()


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Place]:
    """A place of which nothing is left: no thread, and no file once all is stored."""
    monkeypatch.setattr(_io_thread, "_patience", 1.0)  # as in a new process
    place = Place(tmp_path)
    if "uvloop" in request.node.name:
        place.delay = DELAY / 3  # to save time: the loop is another, the paths are asyncio's
    yield place
    assert io_threads_end()
    assert stored_state(place.memory) is None or files(place.spool) == []


# Doors: how a block may end. Each is given `work`, which stages and never ends by itself.

Work = Callable[[anyio.Event], Coroutine[Any, Any, None]]


async def by_scope(work: Work) -> None:
    async with anyio.create_task_group() as group:
        ready = anyio.Event()
        group.start_soon(work, ready)
        await ready.wait()
        group.cancel_scope.cancel()


async def by_timeout(work: Work) -> None:
    ready = anyio.Event()
    with pytest.raises(TimeoutError), anyio.fail_after(60) as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(work, ready)
            await ready.wait()
            scope.deadline = anyio.current_time()


async def by_failing_sibling(work: Work) -> None:
    ready = anyio.Event()

    async def fail() -> None:
        await ready.wait()
        raise LookupError("sibling")

    with pytest.raises(ExceptionGroup) as caught:
        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            group.start_soon(work, ready)
    assert caught.group_contains(LookupError)


@pytest.mark.parametrize("door", [by_scope, by_timeout, by_failing_sibling])
async def test_cancelled_block_stores_the_last_state(
    place: Place, door: Callable[[Work], Awaitable[None]]
) -> None:
    """A block cancelled by a scope, a timeout or a failing sibling stores what was staged."""
    await door(place.work)
    assert stored(place.memory) == (5, LAST)


async def test_block_that_returns_stores_the_last_state(place: Place) -> None:
    """Once a block has been left, what it staged is stored."""
    async with place.open() as cp:
        await place.stage(cp)
    assert stored(place.memory) == (5, LAST)


async def test_block_that_raises_stores_the_last_state(place: Place) -> None:
    """A block that raises stores what it staged, and its exception goes on as it was."""
    with pytest.raises(LookupError, match="body") as caught:
        async with place.open() as cp:
            await place.stage(cp)
            raise LookupError("body")
    assert stored(place.memory) == (5, LAST)
    assert not hasattr(caught.value, "__notes__")


async def test_state_staged_while_cancelled_is_stored(place: Place) -> None:
    """What a block stages in its own clean-up, after the cancellation, is stored too."""
    with anyio.CancelScope() as scope:
        async with place.open() as cp:
            try:
                await place.stage(cp)
                scope.cancel()
                await anyio.sleep_forever()
            finally:
                cp.write_nowait(b"cleaned up")
    assert scope.cancelled_caught
    assert stored(place.memory) == (6, b"cleaned up")


# asyncio's own ways.


@on_asyncio
async def test_asyncio_timeout_stores_the_last_state(place: Place) -> None:
    """A block that asyncio.timeout ends stores what was staged."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await place.work()
    assert stored(place.memory) == (5, LAST)


@on_asyncio
async def test_failing_sibling_in_asyncio_group_stores_the_last_state(place: Place) -> None:
    """A block whose sibling fails in an asyncio.TaskGroup stores what was staged."""
    ready = anyio.Event()

    async def fail() -> None:
        await ready.wait()
        raise LookupError("sibling")

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(place.work(ready))
            group.create_task(fail())
    assert stored(place.memory) == (5, LAST)


@on_asyncio
@pytest.mark.parametrize("times", [1, 2, 3])
async def test_native_cancels_store_the_last_state(place: Place, times: int) -> None:
    """One, two and three Task.cancel() in quick succession cancel the task and lose nothing."""
    ready = anyio.Event()
    task = asyncio.create_task(place.work(ready))
    await ready.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert io_threads_end()  # it carries on past the third
    assert stored(place.memory) == (5, LAST)


@on_asyncio
async def test_native_cancel_of_a_block_that_is_returning(place: Place) -> None:
    """A task cancelled twice while its exit waits for the store ends Cancelled, all stored."""
    returning = anyio.Event()

    async def work() -> None:
        async with place.open() as cp:
            await place.stage(cp)
            returning.set()

    task = asyncio.create_task(work())
    await returning.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert io_threads_end()
    assert stored(place.memory) == (5, LAST)


@with_new_loop
def test_teardown_of_the_loop_stores_the_last_state(place: Place, new_loop: NewLoop) -> None:
    """A task still pending when asyncio.run's main returns loses nothing."""
    tasks = []

    async def main() -> None:
        ready = anyio.Event()
        tasks.append(asyncio.create_task(place.work(ready)))
        await ready.wait()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert tasks[0].cancelled()
    assert stored(place.memory) == (5, LAST)


@with_new_loop
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_pending_task_of_a_closed_loop_stores_the_last_state(
    place: Place, new_loop: NewLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """A task whose loop was closed under it loses nothing when it is garbage-collected."""
    loop = new_loop()
    tasks = []

    async def main() -> None:
        ready = anyio.Event()
        tasks.append(asyncio.ensure_future(place.work(ready)))
        await ready.wait()

    loop.run_until_complete(main())
    loop.close()
    with caplog.at_level(logging.CRITICAL, "asyncio"):  # "Task was destroyed but it is pending"
        tasks.clear()
        gc.collect()
    assert io_threads_end()
    assert stored(place.memory) == (5, LAST)


@with_new_loop
def test_loop_closed_while_the_exit_waits(place: Place, new_loop: NewLoop) -> None:
    """A task that waits in its exit as the loop is closed loses nothing either."""
    loop = new_loop()
    loop.set_exception_handler(lambda *_: None)
    handles: list[Checkpointer[Any]] = []

    async def work() -> None:
        async with place.open() as cp:
            handles.append(cp)
            await place.stage(cp)

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(work())
        await true(lambda: bool(handles) and handles[0]._slot.closed is not None)
        return task

    task = loop.run_until_complete(main())
    loop.close()
    poll(lambda: stored(place.memory) == (5, LAST))
    assert not task.done()
    # anyio keeps a task that is inside a cancel scope for ever: its runtime ends with the process
    handles[0]._io.finish()


async def test_closed_coroutine_stores_the_last_state(place: Place) -> None:
    """coroutine.close() waits for the store and raises nothing."""
    ready = anyio.Event()
    coroutine = place.work(ready)
    await _Driven(coroutine, ready.is_set)
    coroutine.close()
    assert io_threads_end()
    assert stored(place.memory) == (5, LAST)


class _Driven:
    """Awaits a coroutine by hand, up to a point at which it is left where it is."""

    def __init__(self, coroutine: Any, until: Callable[[], bool]) -> None:
        self._coroutine = coroutine
        self._until = until

    def __await__(self) -> Any:
        value: Any = None
        while True:
            yielded = self._coroutine.send(value)
            if self._until():
                return
            value = yield yielded


async def generate(place: Place) -> AsyncGenerator[int, None]:
    async with place.open() as cp:
        await place.stage(cp)
        yield 1
        raise AssertionError("nobody asks for more")


async def test_closed_generator_stores_the_last_state(place: Place) -> None:
    """aclose() of an async generator with an open handle stores what was staged."""
    async with aclosing(generate(place)) as generator:
        assert await anext(generator) == 1
    assert io_threads_end()
    assert stored(place.memory) == (5, LAST)


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_collected_generator_stores_the_last_state(place: Place) -> None:
    """An async generator that is dropped with an open handle stores what was staged."""
    generator = generate(place)
    assert await anext(generator) == 1
    del generator
    gc.collect()
    await true(lambda: stored_state(place.memory) == LAST)
    assert await anyio.to_thread.run_sync(io_threads_end)


def test_coroutine_closed_on_the_io_thread(place: Place) -> None:
    """The garbage collector may close a block on the I/O thread itself: nothing hangs."""
    coroutines: list[Any] = []
    io: list[_io_thread.IOThread] = []

    async def work() -> None:
        async with place.open() as cp:
            await place.stage(cp)
            io.append(cp._io)
            await anyio.sleep_forever()

    async def main() -> None:
        coroutine = work()
        await _Driven(coroutine, lambda: bool(io))
        coroutines.append(coroutine)

    asyncio.run(main())
    io[0].post(lambda: coroutines.pop().close())
    assert io_threads_end()
    assert stored(place.memory) == (5, LAST)


# The store is down.


async def test_exit_while_the_store_is_down(place: Place) -> None:
    """Past flush_timeout leaving raises FlushTimeoutError, which says how far it came."""
    with pytest.raises(FlushTimeoutError, match=r"'k'.*seq 6.*seq 1") as caught:
        async with place.open(flush_timeout=0.2) as cp:
            await cp.write(b"stored")
            await cp.flush()
            place.faulty.down = True
            await place.stage(cp)
    error = caught.value
    assert (error.key, error.staged, error.stored) == ("k", 6, 1)
    assert isinstance(error, TimeoutError)
    assert stored(place.memory) == (1, b"stored")
    assert files(place.spool), "the spool keeps what the store did not take"
    place.faulty.down = False
    place.store.seconds = 0
    async with place.open() as cp:
        assert await cp.read() == LAST


async def test_exit_with_an_exception_while_the_store_is_down(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed flush becomes a note to the exception in flight, and does not mask it."""
    with pytest.raises(LookupError, match="body") as caught:
        async with place.open(flush_timeout=0.2, spool=None) as cp:
            place.faulty.down = True
            await place.stage(cp)
            raise LookupError("body")
    (note,) = caught.value.__notes__
    assert "staged seq 5, stored seq 0" in note
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1
    assert isinstance(cp.statistics().last_error, FlushTimeoutError)


async def test_cancelled_exit_while_the_store_is_down(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Under cancellation it stays a cancellation; the failure is logged and in the statistics."""
    cps: list[Checkpointer[Any]] = []
    with anyio.CancelScope() as scope:
        async with place.open(flush_timeout=0.2, spool=None) as cp:
            cps.append(cp)
            place.faulty.down = True
            await place.stage(cp)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    _check_reported(cps[0], caplog)


@on_asyncio
@pytest.mark.parametrize("times", [1, 2, 3])
async def test_native_cancels_while_the_store_is_down(
    place: Place, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    """However often it is cancelled, the task ends Cancelled, with one ERROR line."""
    cps: list[Checkpointer[Any]] = []
    ready = anyio.Event()

    async def work() -> None:
        async with place.open(flush_timeout=0.3, spool=None) as cp:
            cps.append(cp)
            place.faulty.down = True
            await place.stage(cp)
            ready.set()
            await anyio.sleep_forever()

    task = asyncio.create_task(work())
    await ready.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert io_threads_end()
    _check_reported(cps[0], caplog)


def _check_reported(cp: Checkpointer[Any], caplog: pytest.LogCaptureFixture) -> None:
    (error,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert error.name == "aiocheckpoint"
    assert "staged seq 5, stored seq 0" in error.getMessage()
    last = cp.statistics().last_error
    assert isinstance(last, FlushTimeoutError)
    assert (last.key, last.staged, last.stored) == ("k", 5, 0)


@on_asyncio
async def test_a_hundred_double_cancels_while_the_store_is_down(place: Place) -> None:
    """A hundred handles, each cancelled twice with the store down, stall the loop for about one
    second in all."""
    stalls: list[float] = []

    async def watch() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            stalls.append(time.monotonic() - before - 0.01)

    async with Runtime(place.store, flush_timeout=20, spool=None) as rt:
        cps: list[Checkpointer[Any]] = []

        async def work(n: int) -> None:
            async with rt.open(f"k{n}") as cp:
                cps.append(cp)
                await cp.write(b"x")
                await asyncio.sleep(60)

        tasks = [asyncio.create_task(work(n)) for n in range(100)]
        await true(lambda: len(cps) == 100)
        await cps[-1].flush()
        place.faulty.down = True
        for cp in cps:
            cp.write_nowait(b"y")
        watcher = asyncio.create_task(watch())
        await asyncio.sleep(0)
        for _ in range(2):
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0.02)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        await asyncio.sleep(0.02)
        watcher.cancel()
        assert sum(stalls) < 2
        place.faulty.down = False
    assert all(stored_state(place.memory, f"k{n}") == b"y" for n in range(100))


# Opening again.


@on_asyncio
async def test_open_right_after_a_double_cancel(place: Place) -> None:
    """An open right after a double cancel waits for the flush under way and sees its state."""
    ready = anyio.Event()
    task = asyncio.create_task(place.work(ready))
    await ready.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    async with place.open() as cp:
        assert await cp.read() == LAST
        assert cp.epoch == 2
    with pytest.raises(asyncio.CancelledError):
        await task


@on_asyncio
async def test_open_in_the_same_runtime_right_after_a_double_cancel(place: Place) -> None:
    """The key is free as soon as its task is told to end, and the newest state is seen."""
    async with Runtime(place.store, spool=place.spool) as rt:

        async def work() -> None:
            async with rt.open("k") as cp:
                await place.stage(cp)
                ready.set()
                await anyio.sleep_forever()

        ready = anyio.Event()
        task = asyncio.create_task(work())
        await ready.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        async with rt.open("k") as cp:
            assert await cp.read() == LAST
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("spooled", [True, False], ids=["spool", "no-spool"])
async def test_open_after_a_flush_that_timed_out(place: Place, spooled: bool) -> None:
    """An open in the process takes over what a timed-out flush could not store, spool or not."""
    spool = place.spool if spooled else None
    async with Runtime(place.store, flush_timeout=0.2, spool=spool) as rt:
        with pytest.raises(FlushTimeoutError):
            async with rt.open("k") as cp:
                place.faulty.down = True
                await place.stage(cp)
        place.faulty.down = False
        place.store.seconds = 0
        async with rt.open("k") as cp:
            assert await cp.read() == LAST
            assert await cp.write(b"newer") == 6
            await cp.flush()
    assert stored(place.memory) == (6, b"newer")


@on_asyncio
@pytest.mark.parametrize("spooled", [True, False], ids=["spool", "no-spool"])
async def test_open_during_a_flush_that_will_time_out(place: Place, spooled: bool) -> None:
    """An open of the key while its flush, left behind by a double cancel, meets a store that is
    down waits for it to end and takes over what it could not store."""
    spool = place.spool if spooled else None
    ready = anyio.Event()
    async with Runtime(place.store, flush_timeout=0.3, spool=spool) as rt:

        async def work() -> None:
            async with rt.open("k") as cp:
                place.faulty.down = True
                await place.stage(cp)
                ready.set()
                await anyio.sleep_forever()

        task = asyncio.create_task(work())
        await ready.wait()
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)

        async def mend() -> None:
            await asyncio.sleep(0.6)
            place.store.seconds = 0
            place.faulty.down = False

        mending = asyncio.create_task(mend())
        async with rt.open("k") as cp:
            assert await cp.read() == LAST
            await cp.write(b"newer")
        await mending
        with pytest.raises(asyncio.CancelledError):
            await task
    assert stored(place.memory) == (6, b"newer")


async def test_rest_is_stored_after_a_flush_that_timed_out(place: Place) -> None:
    """While the runtime lives, what a timed-out flush left is stored once the store is back."""
    async with Runtime(place.store, flush_timeout=0.2, spool=place.spool) as rt:
        with pytest.raises(FlushTimeoutError):
            async with rt.open("k") as cp:
                place.faulty.down = True
                await place.stage(cp)
        place.faulty.down = False
        await true(lambda: stored_state(place.memory) == LAST)


# Entered here, left there.


async def test_refusal_after_a_flush_that_timed_out_is_told(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """If the rest is refused for good later, there is one ERROR line: it is tried no more."""
    async with Runtime(place.store, flush_timeout=0.2, spool=None) as rt:
        with pytest.raises(FlushTimeoutError):
            async with rt.open("k") as cp:
                place.faulty.down = True
                await place.stage(cp)
        place.faulty.fail_next(1, StoreError("forbidden", op="commit", key="k"))
        place.faulty.down = False
        await true(lambda: "leaving 'k': commit 'k': forbidden" in caplog.messages)
    assert len([line for line in caplog.records if line.levelno >= logging.ERROR]) == 1


async def test_open_entered_and_left_in_different_tasks(place: Place) -> None:
    """A handle may be entered in one task and left in another, as fixtures are."""
    opening = place.open()
    async with anyio.create_task_group() as group:

        async def enter() -> None:
            await place.stage(await opening.__aenter__())

        group.start_soon(enter)
    async with anyio.create_task_group() as group:
        group.start_soon(opening.__aexit__, None, None, None)
    assert stored(place.memory) == (5, LAST)


async def test_runtime_entered_and_left_in_different_tasks(place: Place) -> None:
    """So may a runtime, and a handle of it in yet other tasks."""
    rt = Runtime(place.store, spool=place.spool)
    opening = rt.open("k")
    async with anyio.create_task_group() as group:
        group.start_soon(rt.__aenter__)
    async with anyio.create_task_group() as group:

        async def enter() -> None:
            await place.stage(await opening.__aenter__())

        group.start_soon(enter)
    async with anyio.create_task_group() as group:
        group.start_soon(opening.__aexit__, None, None, None)
    assert stored(place.memory) == (5, LAST)
    async with anyio.create_task_group() as group:
        group.start_soon(rt.__aexit__, None, None, None)


async def test_runtime_left_before_its_handle(place: Place) -> None:
    """A runtime that is left first flushes its open handles; later writes raise ClosedError."""
    rt = Runtime(place.store, spool=place.spool)
    async with rt:
        opening = rt.open("k")
        cp = await opening.__aenter__()
        await place.stage(cp)
    assert stored(place.memory) == (5, LAST)
    for _ in range(2):
        with pytest.raises(aiocheckpoint.ClosedError):
            await cp.write(b"late")
        with pytest.raises(aiocheckpoint.ClosedError):
            cp.write_nowait(b"late")
    await opening.__aexit__(None, None, None)
    assert stored(place.memory) == (5, LAST)


async def test_writes_while_the_runtime_is_left(place: Place) -> None:
    """A task that writes while its runtime is left gets ClosedError, and what write() returned
    before is stored."""
    rt = Runtime(place.store, min_interval=0, spool=place.spool)
    seqs: list[int] = []

    async def write() -> None:
        with pytest.raises(aiocheckpoint.ClosedError):
            while True:
                seqs.append(await cp.write(b"%d" % len(seqs)))

    async with anyio.create_task_group() as group, rt:
        cp = await rt.open("k").__aenter__()
        await rt.open("other").__aenter__()
        group.start_soon(write)
        await true(lambda: len(seqs) > 100)
        place.store.seconds = DELAY
    last = stored(place.memory)
    assert last in ((seqs[-1], b"%d" % (seqs[-1] - 1)), (seqs[-1] + 1, b"%d" % seqs[-1]))


async def test_handle_left_late_in_a_runtime_that_gives_up(place: Place) -> None:
    """A handle with a longer flush_timeout, left while its runtime gives up, does not hang."""
    rt = Runtime(place.store, flush_timeout=0.2, spool=None)
    await rt.__aenter__()
    opening = rt.open("k", flush_timeout=30)
    cp = await opening.__aenter__()
    place.faulty.down = True
    await place.stage(cp)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(rt.__aexit__, None, None, None)
            await true(lambda: cp._slot.closed is not None)
            with pytest.raises(FlushTimeoutError):
                await opening.__aexit__(None, None, None)


async def test_runtime_left_before_its_handle_with_the_store_down(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """If that flush fails, leaving the handle says so."""
    rt = Runtime(place.store, spool=None, flush_timeout=0.2)
    async with rt:
        opening = rt.open("k")
        cp = await opening.__aenter__()
        place.faulty.down = True
        await place.stage(cp)
    _check_reported(cp, caplog)
    with pytest.raises(FlushTimeoutError):
        await opening.__aexit__(None, None, None)


async def test_runtime_and_handle_left_at_once(place: Place) -> None:
    """A handle may be left while its runtime is being left, and both wait for the store."""
    rt = Runtime(place.store, spool=place.spool)
    await rt.__aenter__()
    opening = rt.open("k")
    await place.stage(await opening.__aenter__())
    async with anyio.create_task_group() as group:
        group.start_soon(rt.__aexit__, None, None, None)
        group.start_soon(opening.__aexit__, None, None, None)
    assert stored(place.memory) == (5, LAST)


# Processes. The store is durable, and what is looked at is the store, not the spool.

PRELUDE = """
import asyncio, sys, warnings
warnings.simplefilter("ignore", ResourceWarning)  # of the store that nobody closes
import anyio
import aiocheckpoint
from aiocheckpoint.stores.sqlite import SqliteStore
from aiocheckpoint.testing import SlowStore, FaultyStore

store = SlowStore(SqliteStore(sys.argv[1]), 0)

async def stage(cp):
    store.seconds = 0.5
    for n in range(5):
        await cp.write(b"%d" % n)

async def work(*_):
    async with aiocheckpoint.open(store, "k") as cp:
        await stage(cp)
        print("ready", flush=True)
        await anyio.sleep_forever()
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def in_database(database: Path) -> tuple[int, bytes] | None:
    """What the store holds, and that no spool is left beside it."""

    async def look() -> tuple[int, bytes] | None:
        async with Runtime(database) as rt:
            found = await rt.latest("k")
        return None if found is None else (found.seq, found.payload)

    found = asyncio.run(look())
    assert io_threads_end()
    left = [path for path in files(database.parent) if not path.name.startswith(database.name)]
    spool = [path for path in left if "spool" in str(path)]
    assert spool == []
    return found


@pytest.mark.parametrize(
    "runner", ["asyncio.run(work())", "import trio; trio.run(work)"], ids=["asyncio", "trio"]
)
def test_ctrl_c_stores_the_last_state(database: Path, runner: str) -> None:
    """Ctrl-C ends the program by KeyboardInterrupt, with everything stored."""
    script = Script(PRELUDE + runner, database)
    assert script.line() == "ready"
    script.signal(signal.SIGINT)
    assert script.end() == -signal.SIGINT
    assert "KeyboardInterrupt" in script.stderr
    assert in_database(database) == (5, LAST)


@pytest.mark.parametrize(
    "runner", ["asyncio.run(work())", "import trio; trio.run(work)"], ids=["asyncio", "trio"]
)
def test_second_ctrl_c_stores_the_last_state(database: Path, runner: str) -> None:
    """An impatient second Ctrl-C loses nothing either."""
    script = Script(PRELUDE + runner, database)
    assert script.line() == "ready"
    script.signal(signal.SIGINT)
    time.sleep(0.1)
    script.signal(signal.SIGINT)
    script.end()
    assert in_database(database) == (5, LAST)


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_sigterm_stores_the_last_state(database: Path, backend: str) -> None:
    """SIGTERM under aiocheckpoint.run stops at the next write; the exit code is 143."""
    source = f"""
async def task(cp):
    await stage(cp)
    print("ready", flush=True)
    n = 5
    while True:
        await cp.write(b"%d" % n)
        n += 1
        await anyio.sleep(0.01)
aiocheckpoint.run(task, store=store, key="k", backend={backend!r})
"""
    script = Script(PRELUDE + source, database)
    assert script.line() == "ready"
    script.signal(signal.SIGTERM)
    assert script.end() == 143
    found = in_database(database)
    assert found is not None
    seq, data = found
    assert data == b"%d" % (seq - 1)
    assert seq >= 5


IN_THREAD = """
import threading
ready = threading.Event()
async def late():
    kept.append(aiocheckpoint.open(store, "k"))
    cp = await kept[0].__aenter__()
    ready.set()
    await asyncio.sleep(0.3)  # by then the main thread has ended
    await stage(cp)
threading.Thread(target=asyncio.run, args=[late()]).start()
ready.wait()
"""


@pytest.mark.parametrize(
    ("url", "source"),
    [
        pytest.param(
            "sqlite", "asyncio.new_event_loop().run_until_complete(begin())", id="stopped loop"
        ),
        pytest.param(
            "sqlite",
            "asyncio.new_event_loop().run_until_complete(begin()); sys.exit(0)",
            id="sys.exit",
        ),
        pytest.param("file", "asyncio.run(begin())", id="asyncio.run on files"),
        pytest.param("sqlite", "import trio; trio.run(begin)", id="trio.run"),
        pytest.param("sqlite", IN_THREAD, id="thread"),
        pytest.param("file", IN_THREAD, id="thread on files"),
    ],
)
def test_interpreter_exit_stores_the_last_state(tmp_path: Path, url: str, source: str) -> None:
    """A program that ends with a handle open, entered and never left, loses nothing."""
    prelude = PRELUDE
    target = tmp_path / "jobs.db"
    if url == "file":
        target = tmp_path / "jobs"
        prelude = prelude.replace("sqlite", "file").replace("SqliteStore", "FileStore")
    begin = """
kept = []
async def begin():
    kept.append(aiocheckpoint.open(store, "k"))
    await stage(await kept[0].__aenter__())
"""
    script = run_script(prelude + begin + source, target)
    assert script.stderr == ""

    async def look() -> tuple[int, bytes] | None:
        async with Runtime(target) as rt:
            found = await rt.latest("k")
        return None if found is None else (found.seq, found.payload)

    assert asyncio.run(look()) == (5, LAST)
    assert [path for path in files(tmp_path) if "spool" in str(path)] == []


def test_sys_exit_inside_the_block_stores_the_last_state(database: Path) -> None:
    """sys.exit() within a block is one more exception that is in flight while it flushes."""
    source = """
async def main():
    async with aiocheckpoint.open(store, "k") as cp:
        await stage(cp)
        sys.exit(7)
asyncio.run(main())
"""
    script = Script(PRELUDE + source, database)
    assert script.end() == 7
    assert script.stderr == ""
    assert in_database(database) == (5, LAST)


def test_interpreter_exit_with_the_store_down(database: Path) -> None:
    """With the store down the interpreter ends after flush_timeout, with one ERROR line, and the
    spool keeps the state for the next open."""
    source = """
import logging
logging.basicConfig(format="%(levelname)s %(message)s")
faulty = FaultyStore(store)
async def main():
    global opening
    opening = aiocheckpoint.open(faulty, "k", flush_timeout=0.3)
    cp = await opening.__aenter__()
    faulty.down = True
    await stage(cp)
asyncio.run(main())
"""
    script = run_script(PRELUDE + source, database)
    assert script.stderr.count("ERROR") == 1
    assert "staged seq 5, stored seq 0" in script.stderr

    async def look() -> object:
        async with aiocheckpoint.open(database, "k") as cp:
            return await cp.read()

    assert asyncio.run(look()) == LAST
    assert in_database(database) == (5, LAST)


def test_trio_cancels_many_handles_at_once(place: Place) -> None:
    """On trio, too, many handles are left at once without one waiting for another."""

    async def main() -> None:
        async with Runtime(place.store, spool=None) as rt, trio.open_nursery() as nursery:
            staged: list[int] = []

            async def work(n: int) -> None:
                async with rt.open(f"k{n}") as cp:
                    await cp.write(b"x")
                    staged.append(n)
                    await trio.sleep_forever()

            for n in range(20):
                nursery.start_soon(work, n)
            await true(lambda: len(staged) == 20)
            place.store.seconds = DELAY
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert all(stored_state(place.memory, f"k{n}") == b"x" for n in range(20))
