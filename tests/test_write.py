"""`write()`: staged at once, stored behind, the newest wins."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import aiocheckpoint
from aiocheckpoint import (
    Checkpointer,
    ClosedError,
    CodecError,
    Runtime,
    StoreError,
    StoreUnavailableError,
)
from aiocheckpoint._io_thread import IOThread
from aiocheckpoint._slot import Attention
from aiocheckpoint.abc import Put, Version
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import FaultyStore, Wrapper

from .support import happened, io_threads_end, run_script, stored, stored_state, true

pytestmark = pytest.mark.anyio


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def store(memory: MemoryStore) -> Iterator[FaultyStore]:
    """A store with switches; after the test no I/O thread is left."""
    yield FaultyStore(memory)
    assert io_threads_end()


class CountingStore(Wrapper):
    """Keeps the size of each commit's record, and how many are under way at a time."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.sizes: list[int] = []
        self.running = 0
        self.most = 0

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        self.running += 1
        self.most = max(self.most, self.running)
        self.sizes += [len(put.record) for put in batch]
        await asyncio.sleep(0.02)
        self.running -= 1
        return await super().commit(batch)


# Staging.


async def test_each_write_has_a_higher_seq(store: FaultyStore) -> None:
    """write() and write_nowait() return seqs that rise from 1."""
    async with aiocheckpoint.open(store, "k") as cp:
        seqs = [await cp.write(b"a"), cp.write_nowait(b"b"), await cp.write(b"c")]
        assert seqs == [1, 2, 3]
        assert cp.statistics().staged == 3
    assert stored(store) == (3, b"c")
    async with aiocheckpoint.open(store, "k") as cp:
        assert await cp.write(b"d") == 4


async def test_read_gives_the_default_then_the_newest_state(store: FaultyStore) -> None:
    """read() gives the default, then what was written last, also after a new open."""
    async with aiocheckpoint.open(store, "k") as cp:
        assert await cp.read() is None
        assert await cp.read(default=b"0") == b"0"
        assert not cp.resumed
        await cp.write(b"a")
        assert await cp.read(default=b"0") == b"a"
        cp.write_nowait(b"b")
        assert await cp.read() == b"b"
        await cp.write(b"c")
        assert await cp.read() == b"c"
    async with aiocheckpoint.open(store, "k") as cp:
        assert await cp.read(default=b"0") == b"c"
        assert cp.resumed
        assert cp.epoch == 2


async def test_empty_bytes_are_a_state(store: FaultyStore) -> None:
    """b"" is a state like any other, and not None."""
    async with aiocheckpoint.open(store, "k") as cp:
        await cp.write(b"")
        assert await cp.read(default=b"0") == b""
    async with aiocheckpoint.open(store, "k") as cp:
        assert cp.resumed
        assert await cp.read(default=b"0") == b""


async def test_none_is_no_state(store: FaultyStore) -> None:
    """Writing None is a CodecError, and stages nothing."""
    async with aiocheckpoint.open(store, "k") as cp:
        await cp.write(b"a")
        with pytest.raises(CodecError, match="None cannot be a state"):
            await cp.write(None)  # type: ignore[arg-type]
        with pytest.raises(CodecError, match="None cannot be a state"):
            cp.write_nowait(None)  # type: ignore[arg-type]
        assert cp.statistics().staged == 1
    assert stored(store) == (1, b"a")


@pytest.mark.parametrize("nowait", [False, True], ids=["write", "write_nowait"])
async def test_state_changed_after_write_is_stored_as_it_was(
    store: FaultyStore, nowait: bool
) -> None:
    """A bytearray or dict that is changed after write() is stored as it was at the call."""
    async with Runtime(store) as rt, rt.open("array") as one, rt.open("tree", type=dict) as two:
        array = bytearray(b"as it was")
        tree = {"a": [1, 2]}
        with store.held():
            if nowait:
                one.write_nowait(array)  # type: ignore[arg-type]
                two.write_nowait(tree)
            else:
                await one.write(array)  # type: ignore[arg-type]
                await two.write(tree)
            array[:] = b"too late."
            tree["a"].append(3)
        assert await one.read() == b"as it was"
        assert await two.read() == {"a": [1, 2]}
    assert stored_state(store, "array") == b"as it was"
    async with aiocheckpoint.open(store, "tree", type=dict) as again:
        assert await again.read() == {"a": [1, 2]}


async def test_closed_handle_raises_closed_error(store: FaultyStore) -> None:
    """Every use of a handle that has been left is a ClosedError that says what to do."""
    async with aiocheckpoint.open(store, "k") as cp:
        await cp.write(b"a")
    for use in (cp.write(b"b"), cp.read(), cp.flush(), cp.latest(), cp.delete()):
        with pytest.raises(ClosedError, match="open the key again"):
            await use
    with pytest.raises(ClosedError, match="open the key again"):
        cp.write_nowait(b"b")
    assert cp.statistics().stored == 1


async def test_writes_coalesce(store: FaultyStore) -> None:
    """What a newer state replaces while a commit is under way is never stored."""
    async with aiocheckpoint.open(store, "k", min_interval=0) as cp:
        with store.held():
            begun = store.next_commit()
            await cp.write(b"0")
            await happened(begun)
            for n in range(1, 100):
                cp.write_nowait(b"%d" % n)
            statistics = cp.statistics()
            assert (statistics.staged, statistics.stored) == (100, 0)
            assert statistics.lag > 0
        await cp.flush()
        statistics = cp.statistics()
        assert (statistics.staged, statistics.stored) == (100, 100)
        assert statistics.coalesced == 98
        assert statistics.bytes == len(b"0") + len(b"99")
        assert statistics.lag == 0
        assert statistics.errors == 0
        assert statistics.last_error is None
    assert store.calls["commit"] == 3  # the claim, 0, 99
    assert stored(store) == (100, b"99")


async def test_memory_is_bounded_while_the_store_is_slow(memory: MemoryStore) -> None:
    """One commit of a key is under way at a time, and one state waits, however many are written."""
    counting = CountingStore(memory)
    async with aiocheckpoint.open(counting, "k", min_interval=0) as cp:
        with anyio.move_on_after(0.3):
            while True:
                await cp.write(b"x" * 1000)
        slot = cp._slot
        assert len(slot._foreign) == 0
        for _ in range(100):
            cp.write_nowait(b"x" * 1000)
        assert len(slot._foreign) == 1
    assert counting.most == 1
    assert len(counting.sizes) < 25
    assert max(counting.sizes) < 2000, "states are not gathered"
    assert io_threads_end()


async def test_memory_is_bounded_while_the_store_is_down(store: FaultyStore) -> None:
    """While the store is down no more than two states of a key are alive."""
    alive = 0

    class State:
        """Not kept once encoded, and its encoding is counted."""

    class Counted(bytes):
        def __new__(cls, data: bytes) -> Counted:
            nonlocal alive
            alive += 1
            return super().__new__(cls, data)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    class CountingCodec:
        name = "counting"

        def encode(self, state: State, /) -> bytes:
            return Counted(b"x")

        def decode(self, data: bytes, /) -> State:
            return State()

    codec = CountingCodec()
    async with aiocheckpoint.open(store, "k", codec=codec, min_interval=0) as cp:
        store.down = True
        begun = store.commit_begun(store.calls["commit"] + 2)
        while not begun.is_set():
            await cp.write(State())
            cp.write_nowait(State())
            assert alive <= 4  # own and foreign, one of them just replaced; one under way
            await anyio.lowlevel.checkpoint()
        store.down = False


# The loop.


async def test_tight_loop_lets_siblings_run(store: FaultyStore) -> None:
    """A tight loop of write() yields every now and then, without any other await."""
    turns = 0

    async def sibling() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with aiocheckpoint.open(store, "k") as cp, anyio.create_task_group() as group:
        group.start_soon(sibling)
        while turns < 20:
            await cp.write(b"x")
        group.cancel_scope.cancel()


async def test_tight_loop_is_cancellable(store: FaultyStore) -> None:
    """A cancelled scope ends a tight loop of write(), and the last state written is stored."""
    seq = 0
    async with aiocheckpoint.open(store, "k") as cp:
        with anyio.move_on_after(0.05) as scope:
            while True:
                seq = await cp.write(b"%d" % seq)
    assert scope.cancelled_caught
    last = stored(store)
    assert last is not None
    assert last[0] in (seq, seq + 1)  # cancelled in the write: staged all the same
    assert last[1] == b"%d" % (last[0] - 1)


async def test_writer_at_work_hears_of_other_keys_without_being_called(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that are first written to while another is at work cost no crossing of threads."""
    async with Runtime(store, min_interval=3600) as rt, AsyncExitStack() as stack:
        cps = [await stack.enter_async_context(rt.open(f"{n}")) for n in range(50)]
        await cps[0].write(b"first")
        await true(lambda: cps[0]._rounds.going)
        posted: list[object] = []
        with monkeypatch.context() as patch:
            patch.setattr(IOThread, "post", lambda io, fn, *args: posted.append(fn))
            for cp in cps[1:]:
                await cp.write(b"too")
                cp.write_nowait(b"and again")
        assert posted == []
        await true(lambda: all(cp.statistics().stored > 0 for cp in cps))


async def test_yield_of_one_key_counts_for_all(store: FaultyStore) -> None:
    """Of many keys in turn only the first write yields, until it is time again."""
    async with Runtime(store) as rt, AsyncExitStack() as stack:
        cps = [await stack.enter_async_context(rt.open(f"{n}")) for n in range(10)]
        await cps[0].write(b"yields, as none has yet")
        cps[0]._pace.yielded = time.monotonic() + 3600
        for cp in cps:
            with pytest.raises(StopIteration):  # it returns at once
                cp.write(b"x").send(None)
        cps[0]._pace.yielded = 0.0
        late = cps[1].write(b"x")
        cps[1]._slot.attention = Attention()
        late.send(None)
        late.close()


async def test_commit_happens_while_the_task_computes(store: FaultyStore) -> None:
    """A state is stored while its task computes and never yields."""
    async with aiocheckpoint.open(store, "k", min_interval=0) as cp:
        for n in range(3):
            await cp.write(b"%d" % n)
            begun = store.next_commit()
            seq = await cp.write(b"again %d" % n)
            _compute_until(cp, seq)
            assert begun.is_set()
            assert stored(store) == (seq, b"again %d" % n)


def _compute_until(cp: Checkpointer[bytes], seq: int) -> None:
    """Never yields to the loop."""
    until = time.monotonic() + 10
    while cp.statistics().stored != seq:
        assert time.monotonic() < until, "no commit came"


async def test_due_while_nothing_waits(store: FaultyStore) -> None:
    """`due` is True while a state would be stored at once, and False while one is under way."""
    due = []
    async with aiocheckpoint.open(store, "k", min_interval=60) as cp:
        due.append(cp.due)
        with store.held():
            begun = store.next_commit()
            await cp.write(b"a")
            await happened(begun)
            due.append(cp.due)
        await cp.flush()
        due.append(cp.due)  # the next one waits for min_interval
    assert due == [True, False, False]
    async with aiocheckpoint.open(store, "k", min_interval=0) as cp:
        await cp.write(b"b")
        await true(lambda: cp.due)
        assert stored(store) == (2, b"b")


async def test_min_interval_holds_back_commits_but_not_flushes(store: FaultyStore) -> None:
    """The first state goes at once, the second waits for min_interval, a flush does not."""
    async with aiocheckpoint.open(store, "k", min_interval=60) as cp:
        await cp.write(b"a")
        await true(lambda: cp.statistics().stored == 1)
        await cp.write(b"b")
        await anyio.sleep(0.05)
        assert cp.statistics().stored == 1
        await cp.flush()
        assert stored(store) == (2, b"b")
        await cp.write(b"c")
    assert stored(store) == (3, b"c")


# Threads.


async def test_write_nowait_from_threads(store: FaultyStore) -> None:
    """Four threads and the loop write at once: the highest seq is what is stored."""
    seqs: dict[int, bytes] = {}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        async with aiocheckpoint.open(store, "k", min_interval=0) as cp:

            def write(name: int) -> None:
                for n in range(500):
                    state = b"%d %d" % (name, n)
                    seqs[cp.write_nowait(state)] = state

            threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
            for thread in threads:
                thread.start()
            n = 0
            while any(thread.is_alive() for thread in threads):
                state = b"own %d" % n
                seqs[await cp.write(state)] = state
                n += 1
    finally:
        sys.setswitchinterval(interval)
    assert len(seqs) == 2000 + n
    assert sorted(seqs) == list(range(1, len(seqs) + 1))
    assert stored(store) == (len(seqs), seqs[len(seqs)])


@pytest.mark.parametrize("spooled", [False, True], ids=["no-spool", "spool"])
async def test_write_nowait_while_the_handle_is_left(
    store: FaultyStore, tmp_path: Any, spooled: bool
) -> None:
    """What write_nowait staged before it began to raise ClosedError is stored, to the last."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    spool = tmp_path if spooled else None
    try:
        async with Runtime(store, min_interval=0, spool=spool) as rt:
            for turn in range(20):
                last = [0] * 4
                async with rt.open(f"k{turn}") as cp:

                    def write(name: int, cp: Checkpointer[bytes], last: list[int]) -> None:
                        try:
                            while True:
                                last[name] = cp.write_nowait(b"x")
                        except ClosedError:
                            pass

                    threads = [
                        threading.Thread(target=write, args=(name, cp, last)) for name in range(4)
                    ]
                    for thread in threads:
                        thread.start()
                    while not all(last):
                        await anyio.lowlevel.checkpoint()
                for thread in threads:
                    thread.join()
                assert stored(store, f"k{turn}") == (max(last), b"x")
    finally:
        sys.setswitchinterval(interval)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_write_from_a_loop_in_another_thread(store: FaultyStore) -> None:
    """write() from another thread's loop soon is an error that says what to call instead, also
    while the owning loop writes."""
    errors: list[Exception] = []

    async with aiocheckpoint.open(store, "k", min_interval=0) as cp:

        async def write() -> None:
            with anyio.fail_after(10):
                while True:
                    await cp.write(b"other")
                    await asyncio.sleep(0)

        def run() -> None:
            try:
                asyncio.run(write())
            except Exception as exc:
                errors.append(exc)

        for own in (False, True):
            thread = threading.Thread(target=run)
            thread.start()
            while thread.is_alive():
                if own:
                    await cp.write(b"own")
                await anyio.lowlevel.checkpoint()
        for error in errors:
            assert isinstance(error, RuntimeError)
            assert "write_nowait()" in str(error)
        assert len(errors) == 2


# The store fails.


async def test_permanent_error_surfaces_on_the_next_write(store: FaultyStore) -> None:
    """A commit that was refused for good raises at the next write, which is staged all the same."""
    error = StoreError("forbidden", op="commit", key="k")
    async with aiocheckpoint.open(store, "k", min_interval=0) as cp:
        store.fail_next(1, error)
        with store.held():
            await cp.write(b"a")
        await true(lambda: cp.due)
        assert cp.statistics().last_error is error
        with pytest.raises(StoreError, match="forbidden") as caught:
            while True:
                await cp.write(b"b")
        assert caught.value is error
        await cp.flush()  # that one is allowed again
        await cp.write(b"c")
        assert cp.statistics().errors == 1
    assert stored_state(store) == b"c"


async def test_permanent_error_surfaces_in_write_nowait(store: FaultyStore) -> None:
    """write_nowait raises a background error as well."""
    async with aiocheckpoint.open(store, "k", min_interval=0) as cp:
        store.fail_next(1, StoreError("forbidden", op="commit", key="k"))
        with store.held():
            cp.write_nowait(b"a")
        await true(lambda: cp.due)
        with pytest.raises(StoreError, match="forbidden"):
            cp.write_nowait(b"b")
    assert stored(store) == (2, b"b")


async def test_permanent_error_surfaces_in_flush(store: FaultyStore) -> None:
    """flush() raises what prevents it."""
    async with aiocheckpoint.open(store, "k", min_interval=60) as cp:
        await cp.write(b"a")
        await cp.flush()
        await cp.write(b"b")
        store.fail_next(1, StoreError("too large", op="commit", key="k"))
        with pytest.raises(StoreError, match="too large"):
            await cp.flush()
        await cp.flush()
    assert stored(store) == (2, b"b")


async def test_permanent_error_surfaces_on_exit(store: FaultyStore) -> None:
    """Leaving raises what prevents the flush, and does not hang."""
    with pytest.raises(StoreError, match="forbidden"):
        async with aiocheckpoint.open(store, "k") as cp:
            store.fail_next(100, StoreError("forbidden", op="commit", key="k"))
            cp.write_nowait(b"a")
    assert stored(store) == (0, b"")


async def test_permanent_error_does_not_mask_an_exception(
    store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """With an exception in flight it becomes a note to it, and one ERROR line."""
    with pytest.raises(LookupError, match="body") as caught:
        async with aiocheckpoint.open(store, "k") as cp:
            store.fail_next(100, StoreError("forbidden", op="commit", key="k"))
            cp.write_nowait(b"a")
            raise LookupError("body")
    (note,) = caught.value.__notes__
    assert "forbidden" in note
    assert "'k'" in note
    assert [r.levelname for r in caplog.records] == ["ERROR"]
    assert isinstance(cp.statistics().last_error, StoreError)


async def test_error_of_write_is_raised_once_on_the_way_out(store: FaultyStore) -> None:
    """A block ended by write()'s StoreError ends with that error."""
    error = StoreError("forbidden", op="commit", key="k")
    with pytest.raises(StoreError, match="forbidden") as caught:
        async with aiocheckpoint.open(store, "k", min_interval=0) as cp:
            store.fail_next(100, error)
            while True:
                await cp.write(b"a")
    assert caught.value is error


async def test_unexpected_error_of_a_store_is_a_store_error(memory: MemoryStore) -> None:
    """What a store raises against its contract surfaces as a StoreError with a cause."""

    class Broken(Wrapper):
        broken = False

        async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
            if self.broken:
                raise ZeroDivisionError("oops")
            return await super().commit(batch)

    broken = Broken(memory)
    with pytest.raises(StoreError, match="ZeroDivisionError: oops") as caught:
        async with aiocheckpoint.open(broken, "k") as cp:
            broken.broken = True
            await cp.write(b"a")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert io_threads_end()


async def test_outage_is_retried_and_logged_once(
    store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Passing failures are retried while newer states coalesce; each outage logs its beginning
    and its end, and nothing else is logged at warning or above, never a line per write."""
    caplog.set_level(logging.WARNING, "aiocheckpoint")
    async with Runtime(store, min_interval=0) as rt, rt.open("a") as a, rt.open("b") as b:
        for outage in range(2):
            store.down = True
            third = store.commit_begun(store.calls["commit"] + 4)
            n = 0
            while not third.is_set():
                await a.write(b"%d %d" % (outage, n))
                await b.write(b"%d %d" % (outage, n))
                n += 1
                await anyio.lowlevel.checkpoint()
            await true(lambda: isinstance(a.statistics().last_error, StoreUnavailableError))
            assert a.statistics().errors > 0
            assert a.statistics().lag > 0
            store.down = False
            await a.flush()
            await b.flush()
            assert stored_state(store, "a") == b"%d %d" % (outage, n - 1)
            assert a.statistics().lag == 0
        assert a.statistics().coalesced > 0
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 4, messages
    for begin, end in (messages[:2], messages[2:]):
        assert "is unavailable" in begin
        assert "the store is down" in begin
        assert "is available again" in end


async def test_outage_that_ends_in_a_refusal(
    store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage whose only key is then refused does not keep later outages from being logged."""
    caplog.set_level(logging.WARNING, "aiocheckpoint")
    async with aiocheckpoint.open(store, "k", min_interval=0) as cp:
        store.fail_next(1, StoreUnavailableError("down", op="commit"))
        store.fail_next(1, StoreError("forbidden", op="commit"))
        await cp.write(b"a")
        await true(lambda: cp.statistics().errors == 2)
        store.fail_next(1, StoreUnavailableError("down again", op="commit"))
        with pytest.raises(StoreError, match="forbidden"):
            await cp.write(b"b")
        await cp.flush()
    begun = [r for r in caplog.records if "is unavailable" in r.getMessage()]
    assert len(begun) == 2


async def test_outage_that_ends_in_a_delete(
    store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A key deleted during an outage does not keep later outages from being logged."""
    caplog.set_level(logging.WARNING, "aiocheckpoint")
    async with Runtime(store, min_interval=0) as rt:
        async with rt.open("k") as cp:
            store.fail_next(6, StoreUnavailableError("down", op="commit"))
            await cp.write(b"a")
            await true(lambda: cp.statistics().errors >= 5)
            await cp.delete()
        store.fail_next(100, StoreUnavailableError("down", op="commit"))
        store._errors.clear()
        async with rt.open("other") as cp:
            store.fail_next(1, StoreUnavailableError("down again", op="commit"))
            await cp.write(b"a")
            await cp.flush()
    begun = [r for r in caplog.records if "is unavailable" in r.getMessage()]
    assert len(begun) == 2


async def test_lost_answers_lose_nothing(store: FaultyStore) -> None:
    """A commit that took effect although its answer was lost fences nobody and is made good."""
    store.lose_answers(1)  # the claim's
    async with aiocheckpoint.open(store, "k", min_interval=0) as cp:
        for n in range(3):
            store.lose_answers(1)
            await cp.write(b"%d" % n)
            await cp.flush()
            assert stored(store) == (n + 1, b"%d" % n)
        store.lose_answers(2)
        await cp.write(b"last")
    assert stored(store) == (4, b"last")


async def test_keys_of_a_store_without_transactions_do_not_wait_for_each_other(
    memory: MemoryStore,
) -> None:
    """In a store without transactions a key whose commit hangs holds up no other."""

    class OneByOne(FaultyStore):
        transactional = False

    store = OneByOne(memory)
    async with Runtime(store, min_interval=0) as rt, rt.open("slow") as slow, rt.open("k") as cp:
        with store.held():
            begun = store.next_commit()
            await slow.write(b"slow")
            await happened(begun)
            store._gate, gate = None, store._gate
            await cp.write(b"quick")
            await cp.flush()
            assert slow.statistics().stored == 0
            store._gate = gate
    assert stored_state(memory, "slow") == b"slow"
    assert io_threads_end()


# Forks.


def test_write_in_a_forked_child(tmp_path: Any) -> None:
    """A forked child's write raises ClosedError that says what to do; the parent's go on, and the
    child may open a handle of its own."""
    source = """
import asyncio, os, sys, warnings
import aiocheckpoint
warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads

async def main():
    async with aiocheckpoint.open(sys.argv[1], "k", min_interval=0) as cp:
        await cp.write(b"parent")
        child = os.fork()
        if not child:
            try:
                for write in (cp.write, cp.write_nowait):
                    try:
                        result = write(b"child")
                        if write == cp.write:
                            await result
                    except aiocheckpoint.ClosedError as exc:
                        assert "belongs to the parent process" in str(exc), exc
                        assert "open the key again" in str(exc), exc
                    else:
                        os._exit(3)
                os._exit(0)
            except BaseException as exc:
                print(repr(exc), file=sys.stderr, flush=True)
                os._exit(4)
        assert os.waitpid(child, 0)[1] == 0
        await cp.write(b"parent again")
        await cp.flush()
        await cp.write(b"last")
    async with aiocheckpoint.open(sys.argv[1], "k") as cp:
        assert await cp.read() == b"last"

asyncio.run(main())
"""
    run_script(source, f"file:{tmp_path}/jobs")


def test_forked_child_leaves_and_ends(tmp_path: Any) -> None:
    """A forked child that leaves its parent's block, and ends, neither hangs nor harms."""
    source = """
import asyncio, os, selectors, sys, warnings
import aiocheckpoint
warnings.simplefilter("ignore", DeprecationWarning)

def loop():  # one that shares no epoll with the parent's
    return asyncio.SelectorEventLoop(selectors.SelectSelector())

async def main():
    async with aiocheckpoint.open(sys.argv[1], "k", min_interval=60) as cp:
        await cp.write(b"first")
        await cp.flush()
        await cp.write(b"parent")
        child = os.fork()
        if not child:
            return
        os.waitpid(child, 0)
        files = [name for _, _, names in os.walk(sys.argv[2]) for name in names]
        assert any(name.endswith(".0") for name in files), files  # the spool is still there
    async with aiocheckpoint.open(sys.argv[1], "k") as cp:
        assert await cp.read() == b"parent"
        assert cp.epoch == 2

with asyncio.Runner(loop_factory=loop) as runner:
    runner.run(main())
"""
    run_script(source, f"file:{tmp_path}/jobs", tmp_path)
