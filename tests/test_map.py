"""`Runtime.map`: bounds, outcomes, and every way to end before the items do."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import itertools
import logging
import sys
import threading
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aiocheckpoint import (
    Checkpointer,
    ClosedError,
    FencedError,
    KeyInUseError,
    Outcome,
    RetryPolicy,
    Runtime,
    StoppedError,
    task,
)
from aiocheckpoint._seen import Seen
from aiocheckpoint.stores.memory import MemoryStore

from .children import kill, numbers, start
from .support import listed, on_asyncio, run_script, stored_state, true

pytestmark = pytest.mark.anyio

Bytes = Checkpointer[bytes]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def rt(store: MemoryStore) -> AsyncIterator[Runtime]:
    async with Runtime(store, min_interval=0) as runtime:
        yield runtime


@task(key="double/{n}")
async def double(cp: Bytes, n: int) -> int:
    return 2 * n


@task(key="fail/{n}")
async def fail_odd(cp: Bytes, n: int) -> int:
    await cp.write(b"%d" % n)
    if n % 2:
        raise ValueError(f"{n} is odd")
    return n


class Waiting:
    """A task whose items write their number and then wait to be let go."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.running = 0
        self.most = 0
        self.go = anyio.Event()

    async def __call__(self, cp: Bytes, n: int) -> int:
        self.begun.append(n)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await cp.write(b"%d" % n)
            await self.go.wait()
        finally:
            self.running -= 1
        return n

    @staticmethod
    def key(n: int) -> str:
        return f"w/{n}"


class Source:
    """Items that know how many of them were drawn, and whether they were closed."""

    def __init__(self, items: Iterable[int], error: BaseException | None = None) -> None:
        self.items = items
        self.error = error
        self.drawn = 0
        self.closed = False

    def now(self) -> Iterator[int]:
        try:
            for item in self.items:
                self.drawn += 1
                yield item
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True

    async def later(self) -> AsyncIterator[int]:
        try:
            for item in self.items:
                await anyio.lowlevel.checkpoint()
                self.drawn += 1
                yield item
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True

    def __call__(self, kind: str) -> Iterator[int] | AsyncIterator[int]:
        return self.now() if kind == "sync" else self.later()


kinds = pytest.mark.parametrize("kind", ["sync", "async"])


async def gather(outcomes: AsyncIterator[Outcome[Any, Any]]) -> dict[Any, Outcome[Any, Any]]:
    return {outcome.item: outcome async for outcome in outcomes}


# To the end.


@kinds
async def test_each_item_has_an_outcome(rt: Runtime, kind: str) -> None:
    """Every item comes back once, with its key and its result."""
    async with rt.map(double, Source(range(100))(kind), max_concurrency=7) as outcomes:
        found = await gather(outcomes)
    assert found == {n: Outcome(n, f"double/{n}", 2 * n) for n in range(100)}
    assert found[3].unwrap() == 6
    assert await listed(rt.keys("double/", status="done")) == sorted(f"double/{n}" for n in found)


@kinds
async def test_no_items_no_outcomes(rt: Runtime, kind: str) -> None:
    """A map over nothing ends at once."""
    async with rt.map(double, Source(())(kind)) as outcomes:
        assert await gather(outcomes) == {}
        assert [outcome async for outcome in outcomes] == []


async def test_failures_are_outcomes(rt: Runtime, store: MemoryStore) -> None:
    """An item that fails leaves the others alone; unwrap() raises its very error."""
    async with rt.map(fail_odd, range(10), max_concurrency=3) as outcomes:
        found = await gather(outcomes)
    assert [n for n, outcome in sorted(found.items()) if outcome.error] == [1, 3, 5, 7, 9]
    with pytest.raises(ValueError, match="3 is odd") as caught:
        found[3].unwrap()
    assert caught.value is found[3].error
    assert await listed(rt.keys("fail/", status="failed")) == [f"fail/{n}" for n in (1, 3, 5, 7, 9)]
    assert stored_state(store, "fail/3") == b"3"


async def test_a_failure_is_an_outcome_when_its_retries_are_used_up(rt: Runtime) -> None:
    """Each item has the retries to itself."""
    tried: list[int] = []

    async def flaky(cp: Bytes, n: int) -> int:
        tried.append(n)
        if n % 2 or cp.attempt < 3:
            raise OSError
        return n

    policy = RetryPolicy(on=OSError, retries=2, wait_initial=0, wait_jitter=0)
    async with rt.map(flaky, range(4), key="{n}", retry=policy) as outcomes:
        found = await gather(outcomes)
    assert sorted(tried) == sorted([*range(4)] * 3)
    assert {n: type(outcome.error) for n, outcome in found.items() if outcome.error} == {
        1: OSError,
        3: OSError,
    }


async def test_a_fenced_item_is_an_outcome(rt: Runtime, store: MemoryStore) -> None:
    """An item that a newer attempt has taken over does not end the map."""

    async def robbed(cp: Bytes, n: int) -> int:
        if n == 1:
            async with Runtime(store) as other, other.open(cp.key):
                pass
            await cp.write(b"late")
            await cp.flush()
        return n

    async with rt.map(robbed, range(3), key="{n}") as outcomes:
        found = await gather(outcomes)
    assert isinstance(found[1].error, FencedError)
    assert (found[0].unwrap(), found[2].unwrap()) == (0, 2)


async def test_an_item_whose_key_is_open_is_an_outcome(rt: Runtime) -> None:
    """A key that somebody else has open fails that item alone."""
    async with rt.open("double/1"), rt.map(double, range(3)) as outcomes:
        found = await gather(outcomes)
    assert isinstance(found[1].error, KeyInUseError)
    assert (found[0].unwrap(), found[2].unwrap()) == (0, 4)


async def test_contexts_of_items_are_their_own(rt: Runtime) -> None:
    """What an item sets in its context no other item sees."""
    variable = contextvars.ContextVar("variable", default=-1)

    async def job(cp: Bytes, n: int) -> int:
        before = variable.get()
        variable.set(n)
        await anyio.lowlevel.checkpoint()
        return before

    async with rt.map(job, range(20), key="{n}", max_concurrency=2) as outcomes:
        assert {outcome.unwrap() async for outcome in outcomes} == {-1}


# Bounds.


@kinds
@pytest.mark.parametrize("most", [1, 3])
async def test_no_more_than_so_many_at_a_time(rt: Runtime, kind: str, most: int) -> None:
    """So many run and no more are drawn, until an outcome is taken: then one more is."""
    job, source = Waiting(), Source(itertools.count())
    with anyio.fail_after(30):
        async with rt.map(job, source(kind), key=job.key, max_concurrency=most) as outcomes:
            await true(lambda: len(job.begun) == most)
            await anyio.wait_all_tasks_blocked()
            assert source.drawn == most
            job.go.set()
            await true(lambda: job.running == 0)
            await anyio.wait_all_tasks_blocked()
            assert (source.drawn, job.most) == (most, most)
            for taken in range(1, 50):
                await anext(outcomes)
                assert source.drawn <= most + taken
                assert job.most <= most


async def test_every_slot_is_used(rt: Runtime) -> None:
    """Sixteen items run at once by default."""
    job = Waiting()
    async with rt.map(job, range(40), key=job.key) as outcomes:
        await true(lambda: job.running == 16)
        job.go.set()
        assert len(await gather(outcomes)) == 40
    assert job.most == 16


class Item:
    """An item that can be counted."""

    def __init__(self, number: int) -> None:
        self.number = number


async def test_memory_does_not_grow_with_the_items(rt: Runtime) -> None:
    """Of two thousand items each is gone soon after its outcome was taken, and so is all that ran
    it: there are as many objects of ours after a thousand items as at the end."""
    alive: weakref.WeakSet[Item] = weakref.WeakSet()
    most, ours, taken = 0, [], 0

    def items() -> Iterator[Item]:
        for number in range(2000):
            item = Item(number)
            alive.add(item)
            yield item

    async def job(cp: Bytes, item: Item) -> None:
        await cp.write(b"%d" % item.number)

    async with rt.map(job, items(), key=lambda item: f"{item.number}") as outcomes:
        async for outcome in outcomes:
            taken += 1
            del outcome
            most = max(most, len(alive))
            if taken in (1000, 1900):
                gc.collect()
                ours.append(
                    Counter(type(thing).__name__ for thing in gc.get_objects() if _our(thing))
                )
    assert most <= 16 + 2
    # what remains is the store's: one head a key. The rest are some thirty kinds of which there
    # may be as many as there are slots, those of the last few milliseconds included
    grown = ours[1] - ours[0]
    assert grown.pop("Head") <= 900 + 16
    assert all(count <= 100 for count in grown.values()), grown


async def test_keys_that_are_closed_are_forgotten(store: MemoryStore) -> None:
    """However long the interval between two commits of a key is, the writer does not remember a
    key until then that was closed long before."""

    async def job(cp: Bytes, n: int) -> None:
        await cp.write(b"%d" % n)
        if n % 2:
            await cp.flush()
            await cp.write(b"more")

    async with Runtime(store, min_interval=3600) as rt:
        async with rt.map(job, range(500), key="{n}") as outcomes:
            await gather(outcomes)
        writer = rt._running.writer
        assert not writer.holding
        assert len(writer.rounds._calendar) <= 100


def _our(thing: object) -> bool:
    return str(type(thing).__module__).startswith("aiocheckpoint")


def test_seen_keys_cost_little() -> None:
    """The set that tells two items of one key takes less than ten bytes a key, and is right."""
    seen = Seen()
    assert all(seen.add(f"key/{n}") for n in range(50_000))
    assert not any(seen.add(f"key/{n}") for n in range(50_000))
    assert sum(sys.getsizeof(bucket) for bucket in seen._buckets) < 10 * 50_000 + 1024 * 200


# Restarts.


async def test_what_is_done_is_not_run_again(store: MemoryStore) -> None:
    """A second map gives the stored results, runs what failed or is new, and asks the store of
    each item that is done for one load and nothing else."""
    calls: list[str] = []

    class Counting(MemoryStore):
        """Notes what is asked of it."""

        async def load(self, key: str) -> Any:
            calls.append(f"load {key}")
            return await super().load(key)

        async def list_blobs(self, key: str) -> list[str]:
            calls.append(f"list {key}")
            return await super().list_blobs(key)

        async def commit(self, batch: Any) -> Any:
            calls.extend(f"commit {put.key}" for put in batch)
            return await super().commit(batch)

    store = Counting()
    ran: list[int] = []
    broken = True

    async def job(cp: Bytes, n: int) -> int:
        ran.append(n)
        if n == 3 and broken:
            raise OSError
        return n * n

    async with Runtime(store) as first, first.map(job, range(5), key="{n}") as outcomes:
        await gather(outcomes)
    ran.clear()
    calls.clear()
    broken = False
    async with Runtime(store) as second, second.map(job, range(6), key="{n}") as outcomes:
        found = await gather(outcomes)
    assert {n: outcome.unwrap() for n, outcome in found.items()} == {n: n * n for n in range(6)}
    assert sorted(ran) == [3, 5]
    asked = sorted(call for call in calls if call[-1] not in "35")
    assert asked == [f"load {n}" for n in (0, 1, 2, 4)]


def test_a_killed_map_goes_on(tmp_path: Path) -> None:
    """After SIGKILL in its midst each item that had ended is not run again, each that ran goes
    on from its newest state, and all have ended at last."""
    url = f"sqlite:{tmp_path}/a.db"
    body = """
    async def job(cp, n):
        done = int(await cp.read(b"0"))
        for step in range(done, 10):
            say(n * 100 + step)
            await cp.write(b"%d" % (step + 1))
            await asyncio.sleep(0.001)
        return n

    async with Runtime(url) as rt:
        async with rt.map(job, range(200), key="{n}", max_concurrency=8) as outcomes:
            async for outcome in outcomes:
                say(1_000_000 + outcome.unwrap())
    """
    steps: list[int] = []
    ended: set[int] = set()
    for seconds in (0.5, 0.5, 60):
        process = start(body, url)
        with process:
            said = numbers(process, seconds)
            said += kill(process)
        mine = [number for number in said if number < 1_000_000]
        before, ended = ended, ended | {n - 1_000_000 for n in said if n >= 1_000_000}
        assert not before & {number // 100 for number in mine}
        steps += mine
    assert ended == set(range(200))
    assert set(steps) == {n * 100 + step for n in range(200) for step in range(10)}
    # a step is said before it is written: at most the eight that ran when it died are said twice
    assert len(steps) - len(set(steps)) <= 2 * 8


# Leaving early.


@kinds
async def test_break_stores_what_runs(rt: Runtime, store: MemoryStore, kind: str) -> None:
    """Leaving the block cancels what runs and stores its state, and closes the items; another
    map resumes them."""
    source, begun = Source(itertools.count()), []

    async def job(cp: Bytes, n: int) -> bytes:
        state = await cp.read(b"")
        begun.append(n)
        if n and not state:
            await cp.write(b"%d" % n)
            await anyio.sleep_forever()
        return state

    async with rt.map(job, source(kind), key="{n}", max_concurrency=4) as outcomes:
        async for outcome in outcomes:
            assert outcome.item == 0
            await true(lambda: len(begun) == 5)
            break
    assert source.closed
    assert source.drawn == 5
    assert rt._running.open == {}
    assert [stored_state(store, f"{n}") for n in range(1, 5)] == [b"1", b"2", b"3", b"4"]
    async with rt.map(job, range(5), key="{n}") as outcomes:
        found = await gather(outcomes)
    assert [found[n].unwrap() for n in range(5)] == [b"", b"1", b"2", b"3", b"4"]


async def test_an_error_in_the_block_is_raised_itself(rt: Runtime, store: MemoryStore) -> None:
    """What the block raises comes out as it is, in no group, once what runs has been stored."""
    job = Waiting()
    error = LookupError("mine")
    with pytest.raises(LookupError) as caught:
        async with rt.map(job, range(3), key=job.key):
            await true(lambda: len(job.begun) == 3)
            raise error
    assert caught.value is error
    assert not hasattr(error, "__notes__")
    assert job.running == 0
    assert [stored_state(store, f"w/{n}") for n in range(3)] == [b"0", b"1", b"2"]


async def test_a_cancelled_caller_leaves_cleanly(rt: Runtime, store: MemoryStore) -> None:
    """A cancelled scope ends all that runs, and stores it, before the block has been left."""
    job, source = Waiting(), Source(itertools.count())
    with anyio.CancelScope() as scope:
        async with rt.map(job, source.later(), key=job.key, max_concurrency=3) as outcomes:
            await true(lambda: len(job.begun) == 3)
            scope.cancel()
            await gather(outcomes)
    assert scope.cancelled_caught
    assert job.running == 0
    assert source.closed
    assert rt._running.open == {}
    assert [stored_state(store, f"w/{n}") for n in range(3)] == [b"0", b"1", b"2"]


@on_asyncio
@pytest.mark.parametrize("times", [1, 2, 3])
async def test_native_cancels_leave_no_task(rt: Runtime, store: MemoryStore, times: int) -> None:
    """However often the calling task is cancelled, it ends cancelled, with no other task left and
    everything stored."""
    job = Waiting()
    before = asyncio.all_tasks()

    async def caller() -> None:
        async with rt.map(job, itertools.count(), key=job.key, max_concurrency=3) as outcomes:
            await gather(outcomes)

    calling = asyncio.create_task(caller())
    await true(lambda: len(job.begun) == 3)
    for _ in range(times):
        calling.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert calling.cancelled()
    assert asyncio.all_tasks() == before
    assert rt._running.open == {}
    await rt.flush()
    assert [stored_state(store, f"w/{n}") for n in range(3)] == [b"0", b"1", b"2"]


@on_asyncio
async def test_cancelling_counts_are_left_alone(rt: Runtime) -> None:
    """A map that ends, is broken out of, or fails leaves no cancellation request on its task."""
    me = asyncio.current_task()
    assert me is not None
    job = Waiting()
    async with rt.map(double, range(3)) as outcomes:
        await gather(outcomes)
    async with rt.map(job, range(3), key=job.key):
        await true(lambda: len(job.begun) == 3)
    with pytest.raises(OSError, match="mine"):
        async with rt.map(double, range(3)):
            raise OSError("mine")
    assert me.cancelling() == 0


async def test_a_generator_around_a_map_is_closed(rt: Runtime, store: MemoryStore) -> None:
    """A generator that yields from within a map may be closed in its midst: what runs has been
    stored then, and the scopes around it are in order."""
    job = Waiting()

    async def squares() -> AsyncGenerator[int, None]:
        async with rt.map(job, range(9), key=job.key, max_concurrency=3) as outcomes:
            await true(lambda: len(job.begun) == 3)
            yield 0
            await gather(outcomes)

    with anyio.fail_after(30):
        async with aclosing(squares()) as found:
            async for _ in found:
                break
        assert job.running == 0
        assert rt._running.open == {}
        assert [stored_state(store, f"w/{n}") for n in range(3)] == [b"0", b"1", b"2"]
        await anyio.lowlevel.checkpoint()


TORN = """
import asyncio, gc, sys
import aiocheckpoint

async def job(cp, n):
    await cp.write(b"%d" % n)
    begun.append(n)
    await asyncio.sleep(1000)

async def mapping():
    async with aiocheckpoint.Runtime(sys.argv[1]) as rt:
        async with rt.map(job, range(1000), key="{n}", max_concurrency=4) as outcomes:
            async for outcome in outcomes: pass

async def main():
    global task
    task = asyncio.create_task(mapping())
    while len(begun) < 4:
        await asyncio.sleep(0.001)

async def look():
    async with aiocheckpoint.Runtime(sys.argv[1]) as rt:
        for n in range(4):
            async with rt.open(str(n)) as cp:
                print(await cp.read(), end=" ")

begun = []
"""


def test_a_loop_that_is_torn_down_stores_what_runs(tmp_path: Path) -> None:
    """asyncio.run that ends with a map under way in another task says nothing, loses nothing."""
    script = run_script(
        TORN + "asyncio.run(main())\nasyncio.run(look())", f"sqlite:{tmp_path}/a.db"
    )
    assert script.stdout == "b'0' b'1' b'2' b'3' "
    assert script.stderr == ""


def test_a_loop_that_is_closed_stores_what_runs(tmp_path: Path) -> None:
    """Nor does a loop lose anything that is closed with the map's tasks pending, which the
    garbage collector closes afterwards."""
    closing = """
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
task = None
gc.collect()
asyncio.run(look())
"""
    script = run_script(TORN + closing, f"sqlite:{tmp_path}/a.db")
    assert script.stdout == "b'0' b'1' b'2' b'3' "
    for line in script.stderr.splitlines():  # what asyncio says of it
        assert "Traceback" not in line


# Ending before the items do.


@kinds
async def test_an_iterator_that_raises(rt: Runtime, store: MemoryStore, kind: str) -> None:
    """Items that were drawn before it raised end and are outcomes; then its very exception is
    raised, once, and what was stored before is whole."""
    async with rt.open("fail/2") as cp:
        await cp.write(b"before")
    error = OSError("the list is gone")
    source = Source(range(4), error)
    found = []
    async with rt.map(fail_odd, source(kind), max_concurrency=3) as outcomes:
        with pytest.raises(OSError, match="gone") as caught:
            async for outcome in outcomes:
                found += [outcome.item]
        assert [outcome async for outcome in outcomes] == []
    assert caught.value is error
    assert sorted(found) == [0, 1, 2, 3]
    assert source.closed
    assert [stored_state(store, f"fail/{n}") for n in range(4)] == [b"0", b"1", b"2", b"3"]


@kinds
async def test_an_iterator_that_raises_while_items_run(
    rt: Runtime, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told in the log at once, and raised when they have ended."""
    job = Waiting()
    source = Source(range(2), OSError("the list is gone"))
    async with rt.map(job, source(kind), key=job.key) as outcomes:
        await true(lambda: source.closed and len(job.begun) == 2)
        await true(lambda: "the list is gone" in caplog.text)
        job.go.set()
        taken = [(await anext(outcomes)).item, (await anext(outcomes)).item]
        with pytest.raises(OSError, match="gone"):
            await anext(outcomes)
    assert sorted(taken) == [0, 1]


async def test_an_iterator_that_raised_unseen(rt: Runtime) -> None:
    """Its exception is raised when the block is left, if no `async for` came to it; an exception
    of the block has precedence, with a note."""
    source = Source((), OSError("the list is gone"))
    with pytest.raises(OSError, match="gone"):
        async with rt.map(double, source.now()):
            await true(lambda: source.closed)
    source = Source((), OSError("the list is gone"))
    with pytest.raises(LookupError) as caught:
        async with rt.map(double, source.now()):
            await true(lambda: source.closed)
            raise LookupError
    assert "the list is gone" in caught.value.__notes__[0]


async def test_generators_may_have_scopes_of_their_own(rt: Runtime) -> None:
    """An async generator may hold a task group across its yields, and be left in a cancel scope:
    one task draws from it and closes it."""
    ended = 0

    async def grouped() -> AsyncIterator[int]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            for n in range(20):
                yield n
            group.cancel_scope.cancel()

    async def scoped() -> AsyncIterator[int]:
        nonlocal ended
        with anyio.fail_after(30):
            try:
                for n in range(20):
                    await anyio.lowlevel.checkpoint()
                    yield n
            finally:
                ended += 1

    async with rt.map(double, grouped(), max_concurrency=3) as outcomes:
        assert len(await gather(outcomes)) == 20
    async with rt.map(double, scoped(), max_concurrency=3) as outcomes:
        await anext(outcomes)
    assert ended == 1


async def test_a_stop_ends_the_map(rt: Runtime, store: MemoryStore) -> None:
    """After stop() no more is drawn, what runs ends at its next write, and StoppedError is
    raised; the next map resumes."""
    began = anyio.Event()
    waited = anyio.Event()
    count = 0

    async def job(cp: Bytes, n: int) -> None:
        nonlocal count
        count += 1
        if count == 3:
            began.set()
        while True:
            await cp.write(b"%d" % n)
            await anyio.lowlevel.checkpoint()

    async def items() -> AsyncIterator[int]:
        for n in range(3):
            yield n
        waited.set()
        await anyio.sleep_forever()

    with anyio.fail_after(30):
        async with rt.map(job, items(), key="{n}") as unfinished:
            await began.wait()
            await waited.wait()
            rt.stop()
            with pytest.raises(StoppedError):
                await gather(unfinished)
    assert [stored_state(store, f"{n}") for n in range(3)] == [b"0", b"1", b"2"]
    assert await listed(rt.keys(status="running")) == ["0", "1", "2"]
    with pytest.raises(StoppedError):
        async with rt.map(double, range(3)) as outcomes:
            await gather(outcomes)


async def test_a_stop_keeps_the_outcomes_there_are(rt: Runtime) -> None:
    """What had ended when the stop came is given first."""
    job = Waiting()
    found = []
    async with rt.map(job, range(100), key=job.key, max_concurrency=4) as outcomes:
        await true(lambda: len(job.begun) == 4)
        job.go.set()
        await true(lambda: job.running == 0)
        await anyio.wait_all_tasks_blocked()
        await true(lambda: not rt._running.open)
        rt.stop()
        with pytest.raises(StoppedError):
            async for outcome in outcomes:
                found += [outcome.unwrap()]
    assert sorted(found) == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_what_is_no_exception_ends_the_map(
    rt: Runtime, store: MemoryStore, error: type[BaseException]
) -> None:
    """KeyboardInterrupt and SystemExit in an item cancel the others and come out as they are."""
    failure = error()
    begun = 0

    async def job(cp: Bytes, n: int) -> None:
        nonlocal begun
        begun += 1
        await cp.write(b"%d" % n)
        if n:
            await anyio.sleep_forever()
        while begun < 3:
            await anyio.lowlevel.checkpoint()
        raise failure

    caught: BaseException | None = None
    try:
        async with rt.map(job, range(3), key="{n}") as outcomes:
            await gather(outcomes)
    except BaseException as exc:
        caught = exc
    assert caught is failure
    assert rt._running.open == {}
    assert await listed(rt.keys(status="running")) == ["0", "1", "2"]
    assert [stored_state(store, f"{n}") for n in range(3)] == [b"0", b"1", b"2"]


@on_asyncio
async def test_a_cancelled_error_of_an_item_is_not_lost(rt: Runtime) -> None:
    """An item or an iterator that awaits something cancelled does not make the map look ended:
    the iterator raises it, as awaiting the item would."""

    async def cancelled(cp: Bytes, n: int) -> int:
        if n == 1:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        return n

    async def items() -> AsyncIterator[int]:
        yield 0
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    for fn, source in ((cancelled, itertools.count()), (double, items())):
        with pytest.raises(asyncio.CancelledError):
            async with rt.map(fn, source, key="c/{n}", max_concurrency=2) as outcomes:
                await gather(outcomes)
        assert rt._running.open == {}


# Keys and other options.


async def test_two_items_of_one_key(rt: Runtime, store: MemoryStore) -> None:
    """The second item of a key is not run, while the first runs as well as long after; what the
    first stored is whole."""
    ran = []

    async def job(cp: Bytes, item: tuple[str, int]) -> int:
        ran.append(item)
        await cp.write(b"%d" % item[1])
        return item[1]

    items = [("a", 1), ("a", 2), *[(f"{n}", n) for n in range(40)], ("a", 3)]
    async with rt.map(job, items, key=lambda item: item[0], max_concurrency=4) as outcomes:
        found = await gather(outcomes)
    for second in (("a", 2), ("a", 3)):
        assert isinstance(found[second].error, KeyInUseError)
        with pytest.raises(KeyInUseError, match="earlier item of this map has the key 'a'"):
            found[second].unwrap()
    assert found["a", 1].unwrap() == 1
    assert len(ran) == 41
    assert stored_state(store, "a") == b"1"
    async with rt.map(job, items[:2], key=lambda item: item[0]) as outcomes:
        again = await gather(outcomes)
    assert again["a", 1].unwrap() == 1
    assert isinstance(again["a", 2].error, KeyInUseError)


async def test_an_item_without_a_key_fails_alone(rt: Runtime) -> None:
    """An item of which no key can be made is an outcome; the key that it has not is empty."""

    def key(n: int) -> str:
        return {0: "zero", 1: "x" * 201}[n]

    async with rt.map(double, range(3), key=key) as outcomes:
        found = await gather(outcomes)
    assert found[0].unwrap() == 0
    assert (found[1].key, type(found[1].error)) == ("", ValueError)
    assert (found[2].key, type(found[2].error)) == ("", KeyError)


async def plain(cp: Bytes, n: int) -> int:
    return n


async def two(cp: Bytes, n: int, m: int) -> int:
    return n


@task(key="constant")
async def constant(cp: Bytes, n: int) -> int:
    return n


@pytest.mark.parametrize(
    ("fn", "items", "options", "error", "words"),
    [
        (plain, [1], {}, TypeError, "needs a key="),
        (plain, [1], {"key": "plain"}, ValueError, "all items would have one key, 'plain'"),
        (constant, [1], {}, ValueError, "all items would have one key, 'constant'"),
        (plain, [1], {"key": "{m}"}, ValueError, "not a plain parameter name"),
        (plain, [1], {"key": "{"}, ValueError, "template"),
        (plain, [1], {"key": b"{n}"}, TypeError, "key"),
        (two, [1], {"key": "{n}"}, TypeError, "one item"),
        (7, [1], {"key": "{n}"}, TypeError, "callable"),
        (double, 7, {}, TypeError, "iterable"),
        (double, [1], {"max_concurrency": 0}, ValueError, "max_concurrency=0"),
        (double, [1], {"max_concurrency": 2.5}, ValueError, "max_concurrency=2.5"),
        (double, [1], {"max_concurrency": True}, ValueError, "max_concurrency=True"),
        (double, [1], {"retry": -1}, ValueError, "retr"),
    ],
)
async def test_wrong_options_are_refused_before_anything_runs(
    rt: Runtime,
    fn: Any,
    items: Any,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    """map() itself raises, and says what to do."""
    with pytest.raises(error, match=words):
        rt.map(fn, items, **options)
    assert await listed(rt.keys()) == []


async def test_a_map_belongs_to_its_block(store: MemoryStore) -> None:
    """It needs a runtime that is entered, is entered once, and gives outcomes only inside."""
    outside = Runtime(store)
    with pytest.raises(ClosedError, match="enter the runtime"):
        outside.map(double, [1])
    async with outside as rt:
        mapping = rt.map(double, [1])
        async with mapping as outcomes:
            pass
        with pytest.raises(ClosedError, match="inside"):
            await anext(outcomes)
        with pytest.raises(ClosedError, match="once"):
            async with mapping:
                pass
    with pytest.raises(ClosedError):
        async with rt.map(double, [1]):
            pass


async def test_a_map_says_one_line(rt: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    """At INFO a map is one line, whether its items run or are done already."""
    caplog.set_level(logging.INFO, "aiocheckpoint")
    for _ in range(2):
        async with rt.map(double, range(50)) as outcomes:
            await gather(outcomes)
    line = "map of double: 50 items drawn, 50 done, 0 failed"
    assert [record.getMessage() for record in caplog.records] == [line, line]


# Progress.


async def test_progress_off_a_terminal_is_one_line(
    rt: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where stderr is no terminal the bar is one line of plain text at the end; what the program
    prints stays where it was."""
    async with rt.map(fail_odd, range(10), progress=True) as outcomes:
        async for outcome in outcomes:
            print(outcome.item)
    out, err = capsys.readouterr()
    assert sorted(map(int, out.split())) == list(range(10))
    assert "\x1b" not in err
    assert "\r" not in err
    (line,) = err.splitlines()
    assert "fail_odd" in line
    assert "10/10" in line
    assert "5 failed" in line
    assert "/s" in line


async def test_progress_without_a_length(rt: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    """Items without a length are counted without a total."""
    async with rt.map(double, iter(range(4)), progress=True) as outcomes:
        await gather(outcomes)
    assert "4/?" in capsys.readouterr().err


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


async def test_progress_on_a_terminal_is_drawn(
    rt: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal the bar is drawn in place, and the cursor is back at the end, also after a
    failure; output that goes elsewhere is left alone."""
    terminal, out = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    threads = threading.active_count()
    with pytest.raises(LookupError):
        async with rt.map(double, range(3), progress=True) as outcomes:
            await gather(outcomes)
            print("printed")
            raise LookupError
    assert out.getvalue() == "printed\n"
    assert sys.stderr is terminal
    drawn = terminal.getvalue()
    assert "3/3" in drawn
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h") == 1
    await true(lambda: threading.active_count() <= threads)


async def test_progress_without_rich(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rich, progress=True is an error that names what to install, before anything runs."""
    monkeypatch.delitem(sys.modules, "aiocheckpoint._progress", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError, match=r"pip install 'aiocheckpoint\[rich\]'"):
        rt.map(double, range(3), progress=True)
    assert await listed(rt.keys()) == []
