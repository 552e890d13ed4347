"""Faults that were once found and mended, each shown by the shortest way to it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import aiocheckpoint
from aiocheckpoint import (
    Checkpointer,
    CheckpointError,
    FencedError,
    FlushTimeoutError,
    KeyInUseError,
    RetryPolicy,
    Runtime,
    StoreError,
    StoreUnavailableError,
    _engine,
    _io_thread,
    _mapped,
    _spool,
)
from aiocheckpoint._records import Record, decode_record
from aiocheckpoint._slot import _slots
from aiocheckpoint.abc import Head, Put, Store, Version
from aiocheckpoint.stores._disk import write_durably
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing.faults import FaultyStore, SlowStore, Wrapper

from .support import happened, io_threads_end, listed, run_script, stored, stored_state, true

BIG = 2 << 20  # more than a record takes in itself


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test begins like a new process, and leaves no thread behind."""
    monkeypatch.setattr(_io_thread, "_patience", 1.0)
    yield
    assert io_threads_end()


def head(memory: MemoryStore) -> Record:
    return decode_record("k", memory._heads["k"].record)[0]


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


class Stuck(Wrapper):
    """Calls of one operation on blobs or heads begin, and while it is held go no further."""

    def __init__(self, store: Store, op: str) -> None:
        super().__init__(store)
        self.begun = threading.Event()
        self._op = op
        self._gate: Future[None] | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        gate = self._gate = Future()
        try:
            yield
        finally:
            self._gate = None
            gate.set_result(None)

    async def _enter(self, op: str) -> None:
        if op == self._op and self._gate is not None:
            self.begun.set()
            await asyncio.shield(asyncio.wrap_future(self._gate))

    async def list_blobs(self, key: str) -> list[str]:
        await self._enter("list_blobs")
        return await super().list_blobs(key)

    async def delete_blobs(self, key: str, names: Sequence[str]) -> None:
        await self._enter("delete_blobs")
        await super().delete_blobs(key, names)


# What was stored stays stored, and is what is found.


def test_slow_collector_of_an_older_claim_spares_the_state_of_a_newer_one(tmp_path: Path) -> None:
    """A blob's name is its claim's own, so that who collects what it saw hits nobody else's."""
    memory = MemoryStore()
    last = b"N" * BIG

    async def main() -> None:
        async with Runtime(memory, spool=tmp_path, min_interval=60) as first_rt:
            with pytest.raises(FencedError):
                async with first_rt.open("k") as first:
                    await first.write(b"1")
                    await first.flush()
                    await first.write(last)  # in the spool only
                    await claims(first)

    async def claims(first: Checkpointer[bytes]) -> None:
        dying = FaultyStore(memory)
        dying.fail_next(1, StoreError("killed before the head", op="commit"))
        with pytest.raises(StoreError, match="killed"):
            async with aiocheckpoint.open(dying, "k", spool=tmp_path):
                raise AssertionError("it cannot be claimed")
        assert memory._blobs["k"], "it had promoted the state"
        stuck = Stuck(memory, "delete_blobs")
        async with Runtime(memory, spool=tmp_path) as rt:
            async with Runtime(stuck, spool=None) as slow:  # without the spool: another machine
                with stuck.held():
                    async with slow.open("k"):
                        await happened(stuck.begun)
                        async with rt.open("k") as cp:
                            assert await cp.read() == last
            found = await rt.latest("k")
            assert found is not None
            assert found.payload == last

    asyncio.run(main())


def test_generation_of_a_claim_that_never_held_the_key_stands_in_for_nothing() -> None:
    """A claimant that lost has put a generation; it is older than what the holder stored since."""
    memory = MemoryStore()

    async def main() -> None:
        async with Runtime(memory, keep=2, min_interval=0) as rt:
            async with rt.open("k") as cp:
                await cp.write(b"old")
                await cp.flush()
                dying = FaultyStore(memory)
                dying.fail_next(1, StoreError("killed before the head", op="commit"))
                with pytest.raises(StoreError, match="killed"):
                    async with aiocheckpoint.open(dying, "k", keep=2):
                        raise AssertionError("it cannot be claimed")
                for number in range(5):
                    await cp.write(b"new%d" % number)
                    await cp.flush()
            record, version = memory._heads["k"]
            memory._heads["k"] = Head(record[:-1] + bytes([record[-1] ^ 1]), version)
            found = await rt.latest("k")
            assert found is not None
            assert (found.payload, found.seq) == (b"new4", 6)

    asyncio.run(main())


def test_late_claim_of_a_try_is_not_taken_for_a_newer_attempts() -> None:
    """A retry's claim that lands after it was read back for is the retry's own all the same."""
    memory = MemoryStore()

    class Late(Wrapper):
        """The second attempt's first claim lands after the load that follows its failure."""

        late: Sequence[Put] = ()
        done = False

        async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
            if not self.done and decode_record("k", batch[0].record)[0].attempt == 2:
                self.done, self.late = True, batch
                raise StoreUnavailableError("no answer in time", op="commit")
            return await super().commit(batch)

        async def load(self, key: str) -> Head | None:
            head = await super().load(key)
            if self.late:
                (answer,) = await super().commit(self.late)
                assert not isinstance(answer, StoreError)
                self.late = ()
            return head

    async def job(cp: Checkpointer[bytes]) -> bytes | None:
        if cp.attempt == 1:
            await cp.write(b"1")
            raise ValueError("try again")
        return await cp.read()

    async def main() -> None:
        store = Late(memory)
        async with Runtime(store) as rt:
            retry = RetryPolicy(on=ValueError, retries=3, wait_initial=0, wait_jitter=0)
            assert await rt.run(job, key="k", retry=retry) == b"1"
        assert store.done

    asyncio.run(main())


# Leaving.


def test_leaving_tries_a_failed_commit_again_whatever_the_interval() -> None:
    """One blip as a handle is left costs a moment, not `min_interval`."""
    memory = MemoryStore()
    store = FaultyStore(memory)

    async def main() -> None:
        async with aiocheckpoint.open(store, "k", min_interval=60, flush_timeout=2) as cp:
            await cp.write(b"1")
            await cp.flush()
            await asyncio.sleep(0.05)  # the writer has planned the next commit, for in a minute
            await cp.write(b"2")
            store.fail_next(1, StoreUnavailableError("blip", op="commit"))

    asyncio.run(main())
    assert stored(memory) == (2, b"2")


def test_leaving_after_the_grace_still_stores() -> None:
    """A stopped runtime's handle that is left late has time to flush, if the store is healthy."""
    memory = MemoryStore()

    async def main() -> None:
        async with Runtime(SlowStore(memory, 0.02), grace=1) as rt, rt.open("k") as cp:
            await cp.write(b"1")
            rt.stop()
            await asyncio.sleep(1.05)
            await cp.write(b"2")

    asyncio.run(main())
    assert stored(memory) == (2, b"2")


@pytest.mark.parametrize("retries", [0, 3])
def test_closed_coroutine_of_a_run_is_no_failure(retries: int) -> None:
    """A run whose loop is gone is interrupted: it is still running, and has burnt no retry."""
    memory = MemoryStore()
    begun: list[int] = []

    async def job(cp: Checkpointer[bytes]) -> None:
        await cp.write(b"1")
        begun.append(cp.attempt)
        await asyncio.Event().wait()

    async def work() -> None:
        async with Runtime(memory) as rt:
            await rt.run(job, key="k", retry=retries)

    async def look() -> None:
        async with Runtime(memory) as rt:
            found = await rt.latest("k")
            assert found is not None
            assert (found.status, found.burnt, found.payload) == ("running", 0, b"1")

    loop = asyncio.new_event_loop()
    coroutine = work()
    task: Any = loop.create_task(coroutine)
    loop.run_until_complete(true(lambda: bool(begun)))
    loop.close()
    task._log_destroy_pending = False
    coroutine.close()
    del task, coroutine
    gc.collect()
    assert io_threads_end()
    asyncio.run(look())


def test_cancelled_open_leaves_the_flush_it_waits_for_alone() -> None:
    """Who gives up waiting for another handle's flush does not end that flush."""
    memory = MemoryStore()
    store = FaultyStore(memory)

    async def main() -> None:
        async with Runtime(store, min_interval=60) as rt:

            async def first() -> None:
                async with rt.open("k") as cp:
                    await cp.write(b"x")
                    await cp.flush()
                    last_begun.append(store.next_commit())
                    gate.enter_context(store.held())
                    await cp.write(b"y")

            last_begun: list[threading.Event] = []
            with contextlib.ExitStack() as gate:
                task = asyncio.create_task(first())
                await true(lambda: bool(last_begun))
                await happened(last_begun[0])
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1), rt.open("k"):
                        raise AssertionError("the flush is still under way")
                await asyncio.sleep(0.05)
                assert not task.done()
            await task  # raises nothing
            assert stored(memory) == (2, b"y")

    asyncio.run(main())


def test_flush_as_its_run_ends_returns_when_its_state_is_stored() -> None:
    """A flush under way as the run's result replaces what it waits for does not wait for ever."""
    memory = MemoryStore()
    store = FaultyStore(memory)
    flushes: list[asyncio.Task[None]] = []
    handles: list[Checkpointer[bytes]] = []

    async def main() -> None:
        async with Runtime(store, flush_timeout=3, min_interval=0) as rt:

            async def job(cp: Checkpointer[bytes]) -> str:
                begun = store.next_commit()
                gate.enter_context(store.held())
                await cp.write(b"1")
                await happened(begun)
                await cp.write(b"2")
                flushes.extend(asyncio.create_task(one()) for one in (cp.flush, rt.flush))
                await asyncio.sleep(0.02)
                handles.append(cp)
                return "result"

            with contextlib.ExitStack() as gate:
                running = asyncio.create_task(rt.run(job, key="k"))
                await true(lambda: bool(handles) and handles[0]._slot.closed is not None)
                await asyncio.sleep(0.02)
            started = time.monotonic()
            await asyncio.gather(*flushes)
            assert time.monotonic() - started < 2
            assert await running == "result"

    asyncio.run(main())
    assert stored_state(memory) == b"2"


def test_exit_of_a_handle_cancelled_in_its_delete_is_prompt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is being deleted has nothing to flush, and that it is gone is no error."""

    class SlowDelete(Wrapper):
        begun = threading.Event()

        async def delete(self, key: str, expect: Version) -> None:
            self.begun.set()
            await asyncio.sleep(0.2)
            await super().delete(key, expect)

    store = SlowDelete(MemoryStore())

    async def main() -> None:
        async with Runtime(store, flush_timeout=3) as rt:

            async def work() -> None:
                async with rt.open("k", min_interval=60) as cp:
                    await cp.write(b"1")
                    await cp.flush()
                    await cp.write(b"2")
                    await cp.delete()

            task = asyncio.create_task(work())
            await happened(store.begun)
            started = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - started < 2

    asyncio.run(main())
    assert errors_in(caplog) == []


# A disk, or a store, that hangs. It is let go in the end, so that a test fails instead of hanging.
BOUND, LET_GO = 8.0, 10.0


@contextmanager
def hung() -> Iterator[Future[None]]:
    """Done at the end of the block, or after LET_GO."""
    gate: Future[None] = Future()

    def release() -> None:
        with contextlib.suppress(Exception):
            gate.set_result(None)

    timer = threading.Timer(LET_GO, release)
    timer.start()
    try:
        yield gate
    finally:
        timer.cancel()
        timer.join()
        release()


def hang_writes(monkeypatch: pytest.MonkeyPatch, gate: Future[None]) -> threading.Event:
    """From the time when the event is set, writes to files hang."""
    hangs = threading.Event()

    def write(fd: int, data: bytes) -> None:
        if hangs.is_set():
            gate.result()
        write_durably(fd, data)

    monkeypatch.setattr("aiocheckpoint.stores.file.write_durably", write)
    return hangs


def seconds_of(main: Coroutine[Any, Any, object]) -> float:
    async def timed() -> float:
        started = time.monotonic()
        await main
        return time.monotonic() - started

    return asyncio.run(timed())


def test_disk_that_hangs_holds_leaving_up_a_few_seconds_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past flush_timeout a call that never comes back from the disk is not waited for."""

    async def main() -> None:
        with pytest.raises(FlushTimeoutError):
            async with aiocheckpoint.open(f"file:{tmp_path}/s", "k", flush_timeout=0.3) as cp:
                await cp.write(b"1")
                await cp.flush()
                hangs.set()
                await cp.write(b"2")

    monkeypatch.setattr(_engine, "_CLOSING", 2.0)  # to save time
    with hung() as gate:
        hangs = hang_writes(monkeypatch, gate)
        assert seconds_of(main()) < BOUND


def test_disk_that_hangs_holds_a_cancelled_open_up_a_few_seconds_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timeout around open() is kept, nearly, although its claim hangs in the disk."""

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                async with aiocheckpoint.open(f"file:{tmp_path}/s", "k", flush_timeout=0.3):
                    raise AssertionError("it cannot be claimed")

    monkeypatch.setattr(_engine, "_CLOSING", 2.0)  # to save time
    with hung() as gate:
        hang_writes(monkeypatch, gate).set()
        assert seconds_of(main()) < BOUND


def test_store_that_never_closes_holds_leaving_up_a_few_seconds_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A store whose aclose() never returns is left to itself."""

    async def main() -> None:
        async with aiocheckpoint.open("memory:", "k", flush_timeout=0.3) as cp:
            await cp.write(b"1")

    with hung() as gate:

        async def never(self: MemoryStore) -> None:
            await asyncio.shield(asyncio.wrap_future(gate))

        monkeypatch.setattr(MemoryStore, "aclose", never)
        assert seconds_of(main()) < BOUND


# Keys that seemed to be in use, or were stuck.


def test_forked_child_opens_at_once_what_its_parent_is_leaving(tmp_path: Path) -> None:
    """A flush that was under way at a fork is the parent's; the child never waits for it."""
    script = run_script(_FORK, tmp_path)
    assert "child opened b'2'" in script.stdout


_FORK = """
import asyncio, os, sys, warnings
import aiocheckpoint
from aiocheckpoint import FencedError, Runtime
from aiocheckpoint.stores.file import FileStore
from aiocheckpoint.testing.faults import FaultyStore

url = sys.argv[1] + "/s"

async def child():
    async with asyncio.timeout(5):
        async with aiocheckpoint.open("file:" + url, "k") as cp:
            print("child opened", await cp.read(), flush=True)

async def main():
    store = FaultyStore(FileStore(url))
    async with Runtime(store, min_interval=60) as rt:
        async def work():
            async with rt.open("k") as cp:
                await cp.write(b"1")
                await cp.flush()
                leaving.append(store.next_commit())
                gates.append(store.held())
                gates[0].__enter__()
                await cp.write(b"2")
        leaving, gates = [], []
        task = asyncio.create_task(work())
        while not leaving or not leaving[0].is_set():
            await asyncio.sleep(0.005)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are threads is what this is about
            pid = os.fork()
        if pid == 0:
            asyncio._set_running_loop(None)
            try:
                with asyncio.Runner() as runner:
                    runner.run(child())
            except BaseException as exc:
                print("child failed", repr(exc), flush=True)
            os._exit(0)
        await asyncio.to_thread(os.waitpid, pid, 0)
        gates[0].__exit__(None, None, None)
        try:
            await task
        except FencedError:
            pass
    await store.aclose()

asyncio.run(main())
"""


def test_store_that_raises_file_not_found_is_an_error_once() -> None:
    """Whatever a commit raises is the store's error, and the key goes on after it."""
    memory = MemoryStore()

    class Away(Wrapper):
        away = False

        async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
            if self.away:
                self.away = False
                raise FileNotFoundError("a share was away for a moment")
            return await super().commit(batch)

    async def main() -> None:
        store = Away(memory)
        async with aiocheckpoint.open(store, "k", min_interval=0, flush_timeout=1) as cp:
            await cp.write(b"1")
            await cp.flush()
            store.away = True
            await cp.write(b"2")
            with contextlib.suppress(StoreError):  # unless it was tried again at once
                await cp.flush()
            statistics = cp.statistics()
            assert statistics.errors == 1
            assert isinstance(statistics.last_error, StoreError)
            with contextlib.suppress(StoreError):  # told of the earlier state's error
                await cp.write(b"3")
            await cp.flush()
            assert stored(memory) == (3, b"3")

    asyncio.run(main())


def test_key_that_waits_for_its_turn_in_a_batch_can_be_deleted() -> None:
    """A delete takes the commit that has not begun yet along, and does not conflict with it."""
    memory = MemoryStore()
    faulty = FaultyStore(memory)
    store = Stuck(faulty, "list_blobs")

    async def main() -> None:
        async with Runtime(store, min_interval=0, flush_timeout=4) as rt:
            async with rt.open("other") as other, rt.open("k") as cp:
                with store.held():
                    with faulty.held():
                        begun = faulty.next_commit()
                        await other.write(b"1")
                        await happened(begun)  # and a store with transactions has one at a time
                        await cp.write(b"1")
                        await asyncio.sleep(0.05)
                        deleting = asyncio.create_task(cp.delete())
                        await asyncio.sleep(0.05)
                    await asyncio.sleep(0.1)
                await deleting
            assert await rt.latest("k") is None
            assert stored_state(memory, "other") == b"1"

    asyncio.run(main())


def test_second_run_of_a_key_is_refused_during_the_backoff_of_the_first() -> None:
    """A run holds its key from its first attempt to its last, the waits between included."""
    memory = MemoryStore()
    calls = 0

    async def job(cp: Checkpointer[bytes]) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("flaky")
        return calls

    async def main() -> None:
        async with Runtime(memory) as rt:

            def run() -> Coroutine[Any, Any, int]:
                retry = RetryPolicy(on=ValueError, wait_initial=0.4, wait_jitter=0)
                return rt.run(job, key="k", retry=retry)

            first = asyncio.create_task(run())
            await true(lambda: bool(memory._heads and head(memory).burnt))
            await asyncio.sleep(0.02)
            with pytest.raises(KeyInUseError):
                await run()
            assert await first == 2
            assert await run() == 2  # done: the key is free again, and its result is stored

    asyncio.run(main())
    assert calls == 2


def test_open_that_was_used_cannot_be_entered_again_and_locks_nothing() -> None:
    """Entering what open() gave a second time says what is wrong; the key stays as it was."""

    async def main() -> None:
        async with Runtime(MemoryStore()) as rt:
            opening = rt.open("k")
            async with opening as cp:
                with pytest.raises((CheckpointError, RuntimeError)):
                    await opening.__aenter__()
                with pytest.raises(KeyInUseError):
                    await rt.open("k").__aenter__()
                await cp.write(b"1")
            with pytest.raises(
                (CheckpointError, RuntimeError), match=r"once|again|new one"
            ) as caught:
                await opening.__aenter__()
            assert not isinstance(caught.value, KeyInUseError)
            async with rt.open("k") as cp:
                assert await cp.read() == b"1"

    asyncio.run(main())


# What is left behind, in memory and in the log.


def test_closed_handles_do_not_keep_their_states() -> None:
    """However long `min_interval` is, what was closed is let go at once."""

    async def use(rt: Runtime, key: str) -> None:
        async with rt.open(key) as cp:
            await cp.write(b"x" * 1000)
            await cp.flush()
            await asyncio.sleep(0.02)  # the writer has planned its next look, for in an hour

    def kept() -> list[str]:
        gc.collect()
        mine = [slot for slot in list(_slots) if slot.key.startswith("let-go-")]
        return [slot.key for slot in mine if slot.state is not None]

    async def main() -> None:
        async with Runtime(MemoryStore(), min_interval=3600) as rt:
            for number in range(10):
                await use(rt, f"let-go-{number}")
            await true(lambda: len(kept()) <= 1, within=2)  # the newest may be in some frame yet

    asyncio.run(main())


def test_cancelled_entry_of_a_runtime_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """A runtime whose start was cancelled ends as quietly as one that was left."""

    async def enter() -> None:
        async with Runtime(MemoryStore()):
            await asyncio.Event().wait()

    async def main() -> None:
        for _ in range(5):
            task = asyncio.create_task(enter())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert io_threads_end()
    assert errors_in(caplog) == []


def test_spool_grows_again_once_the_disk_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that was full once is tried again, after a moment."""
    full, later = False, 0.0
    real: Callable[[int, int, int], None] = _mapped._reserve

    def reserve(fd: int, start: int, size: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd, start, size)

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + later)
    monkeypatch.setattr(_mapped, "_reserve", reserve)
    monkeypatch.setattr(_spool, "time", clock, raising=False)

    async def main() -> None:
        nonlocal full, later
        async with aiocheckpoint.open(MemoryStore(), "k", spool=tmp_path, min_interval=60) as cp:
            await cp.write(b"x" * 100)
            assert cp.statistics().spooled
            full = True
            await cp.write(b"x" * 5000)
            assert not cp.statistics().spooled
            full, later = False, 5.0
            await cp.write(b"x" * 5000)
            assert cp.statistics().spooled

    asyncio.run(main())


def test_busy_loop_that_yields_each_step_does_not_starve_storage() -> None:
    """Steps of pure Python that write, and let the loop turn, leave the I/O thread its share."""

    async def main() -> None:
        async with aiocheckpoint.open(MemoryStore(), "k", min_interval=0) as cp:
            seen = set[int]()
            until = time.monotonic() + 3  # it takes a small part of it
            while len(seen) < 11 and time.monotonic() < until:
                step = time.perf_counter() + 200e-6
                while time.perf_counter() < step:
                    pass
                await cp.write(b"x")
                await asyncio.sleep(0)
                seen.add(cp.statistics().stored)
            assert len(seen) >= 11, f"{len(seen) - 1} commits in 3 s"

    asyncio.run(main())


async def test_a_damaged_record_does_not_hide_other_keys(caplog: pytest.LogCaptureFixture) -> None:
    """A listing by status leaves it out and says so; the plain listing has it."""
    store = MemoryStore()
    async with Runtime(store) as rt:
        for key in ("a", "b", "c"):
            async with rt.open(key) as cp:
                await cp.write(b"x")
        head = store._heads["b"]
        store._heads["b"] = Head(head.record[:-1] + b"?", head.version)
        assert await listed(rt.keys(status="running")) == ["a", "c"]
        assert await listed(rt.keys()) == ["a", "b", "c"]
    assert "left out of the listing" in caplog.text
