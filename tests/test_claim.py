"""Claims and fences: the newest claimant wins, and nobody else changes anything afterwards."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

import aiocheckpoint
from aiocheckpoint import (
    Checkpointer,
    CheckpointError,
    ClosedError,
    CorruptCheckpointError,
    FencedError,
    KeyInUseError,
    NonRecoverableError,
    Runtime,
    StoreError,
    StoreUnavailableError,
)
from aiocheckpoint._heads import GENERATION, STATE
from aiocheckpoint.abc import Head, Put, Source, Store, Version
from aiocheckpoint.stores import open_store
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing.faults import FaultyStore, SlowStore, Wrapper

from .children import number_of, numbers, read_back, start, state
from .support import happened, listed, stored_state, true

once = pytest.mark.parametrize("anyio_backend", [pytest.param(("asyncio", {}), id="asyncio")])
BIG = 5 << 20

Stores = Callable[[], Store]


@pytest.fixture(params=["memory", "sqlite", "file"])
def another(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    """Makes stores that are one and the same, as seen by one more process each."""
    made: list[Store] = []

    def make() -> Store:
        if request.param == "memory":
            made[:] = made or [MemoryStore()]
            return made[0]
        path = {"sqlite": "s.db", "file": "s"}[request.param]
        made.append(open_store(f"{request.param}:{tmp_path}/{path}"))
        return made[-1]

    yield make

    async def close() -> None:
        for store in made:
            await store.aclose()

    asyncio.run(close())


@pytest.fixture(params=["sqlite", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:{tmp_path}/s.db" if request.param == "sqlite" else f"file:{tmp_path}/s"


async def fenced(cp: Checkpointer[bytes], data: bytes = b"zombie") -> FencedError:
    """Write until a commit has been tried and refused."""
    with anyio.fail_after(10), pytest.raises(FencedError) as caught:
        while True:
            await cp.write(data)
            await anyio.sleep(0.002)
    return caught.value


class History:
    """Watches a key: the epoch and seq of its records must never fall."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    async def watch(self, rt: Runtime, key: str = "k") -> None:
        while True:
            found = await rt.latest(key)
            if found is not None:
                now = (found.epoch, found.seq)
                assert not self.seen or self.seen[-1] <= now
                self.seen.append(now)
            await anyio.sleep(0.002)


# Two on one key.


async def test_the_newer_of_two_handles_wins() -> None:
    store, history = MemoryStore(), History()
    async with Runtime(store) as onlooker, anyio.create_task_group() as tg:
        tg.start_soon(history.watch, onlooker)
        async with Runtime(store, min_interval=0) as new_rt:
            with pytest.raises(FencedError) as left:
                async with aiocheckpoint.open(store, "k", min_interval=0) as old:
                    for number in range(1, 20):
                        await old.write(state(number))
                    await old.flush()
                    async with new_rt.open("k") as new:
                        assert number_of(await new.read()) == 19
                        assert new.epoch == old.epoch + 1
                        error = await fenced(old)
                        assert "newer attempt" in str(error)
                        with pytest.raises(FencedError):
                            await old.write(b"again")
                        with pytest.raises(FencedError):
                            old.write_nowait(b"again")
                        with pytest.raises(FencedError):
                            await old.flush()
                        with pytest.raises(FencedError):
                            await old.delete()
                        assert isinstance(old.statistics().last_error, CheckpointError)
                        for number in range(20, 40):
                            await new.write(state(number))
                        await new.flush()
            assert "newer attempt" in str(left.value)
        tg.cancel_scope.cancel()
    assert number_of(stored_state(store)) == 39
    assert history.seen[-1][0] >= 1


@once
async def test_the_newer_of_two_runtimes_wins_on_every_store(another: Stores) -> None:
    history = History()
    first, second = Runtime(another(), min_interval=0), Runtime(another())
    async with first, second, Runtime(another()) as onlooker, anyio.create_task_group() as tg:
        tg.start_soon(history.watch, onlooker)
        with pytest.raises(FencedError):
            async with first.open("k") as old:
                await old.write(state(1))
                await old.flush()
                async with second.open("k") as new:
                    await fenced(old)
                    assert number_of(await new.read()) == 1
                    await new.write(state(2))
        found = await onlooker.latest("k")
        assert found is not None
        assert number_of(found.payload) == 2
        tg.cancel_scope.cancel()


ZOMBIE = """
    async with aiocheckpoint.open(url, "k", min_interval=0) as cp:
        await cp.write(state(1))
        await cp.flush()
        say(1)
        sys.stdin.readline()
        until = time.monotonic() + 10
        try:
            while time.monotonic() < until:
                await cp.write(state(666))
                await asyncio.sleep(0.001)
        except FencedError:
            say(2)
        os._exit(0)
"""


@pytest.mark.parametrize("meanwhile", ["claimed", "deleted", "deleted and begun anew"])
def test_a_zombie_process_that_wakes_up_is_fenced(url: str, meanwhile: str) -> None:
    async def meddle() -> int:
        async with Runtime(url) as rt:
            if meanwhile != "claimed":
                await rt.delete("k")
            if meanwhile == "deleted":
                return 0
            async with rt.open("k") as cp:
                assert number_of(await cp.read()) == (1 if meanwhile == "claimed" else 0)
                await cp.write(state(2))
                await cp.flush()
                return cp.epoch

    async def look() -> tuple[int, int]:
        async with Runtime(url) as rt:
            found = await rt.latest("k")
            return (found.epoch, number_of(found.payload)) if found else (0, 0)

    with start(ZOMBIE, url) as process:
        assert numbers(process, 0) == [1]
        epoch = asyncio.run(meddle())
        assert process.stdin is not None
        process.stdin.write(b"wake\n")
        process.stdin.close()
        process.stdin = None
        assert numbers(process, 10) == [2]
    assert process.returncode == 0
    assert asyncio.run(look()) == (epoch, 2 if epoch else 0)
    assert number_of(read_back(url)) == (2 if epoch else 0)


@once
async def test_a_zombie_of_a_deleted_run_cannot_touch_the_one_begun_anew(another: Stores) -> None:
    async with Runtime(another(), min_interval=0) as sleepy, Runtime(another()) as awake:
        with pytest.raises(FencedError):
            async with sleepy.open("k") as zombie:
                await zombie.write(b"old" * 500_000)
                await zombie.flush()
                await awake.delete("k")
                async with awake.open("k") as cp:
                    assert await cp.read() is None
                    assert cp.epoch == 1
                    await cp.write(b"new" * 500_000)
                    await cp.flush()
                    await fenced(zombie, b"old" * 600_000)
                    with pytest.raises(FencedError):
                        await zombie.delete()
                    found = await cp.latest()
                    assert found is not None
                    assert found.payload == b"new" * 500_000
        async with awake.open("k") as cp:
            assert await cp.read() == b"new" * 500_000


@once
async def test_deleting_through_the_handle_ends_the_run(another: Stores) -> None:
    async with Runtime(another()) as rt:
        async with rt.open("k") as cp:
            await cp.write(b"x" * BIG)
            await cp.flush()
            await cp.delete()
            with pytest.raises(ClosedError, match="deleted"):
                await cp.write(b"y")
        assert await rt.latest("k") is None
        assert await listed(rt.keys()) == []
        async with rt.open("k") as cp:
            assert await cp.read() is None
            assert not cp.resumed


@once
async def test_deleting_an_open_key_fences_its_handle(another: Stores) -> None:
    async with Runtime(another(), min_interval=0) as rt, Runtime(another()) as other:
        await other.delete("k")  # absent is no error
        with pytest.raises(FencedError, match="deleted"):
            async with rt.open("k") as cp:
                await cp.write(b"x")
                await cp.flush()
                await other.delete("k")
                error = await fenced(cp)
                assert "deleted" in str(error)
        assert await other.latest("k") is None


def test_of_processes_that_open_a_key_at_once_one_is_left(url: str) -> None:
    body = """
        try:
            async with aiocheckpoint.open(url, "k", min_interval=0) as cp:
                say(cp.epoch)
                until = time.monotonic() + 8
                while time.monotonic() < until:
                    await cp.write(state(cp.epoch))
                    await asyncio.sleep(0.002)
                    if cp.epoch == 6:
                        await asyncio.sleep(0.5)
                        break
        except FencedError:
            say(0)
    """
    children = [start(body, url) for _ in range(6)]
    said = [numbers(child, 20) for child in children]
    for child in children:
        child.communicate(timeout=20)
        assert child.returncode == 0
    assert sorted(said) == [[1, 0], [2, 0], [3, 0], [4, 0], [5, 0], [6]]
    assert number_of(read_back(url)) == 6


@once
async def test_of_runtimes_that_open_a_key_at_once_all_but_the_last_are_fenced(
    another: Stores,
) -> None:
    count = 8
    ended: dict[int, BaseException | None] = {}
    everybody = anyio.Event()
    epochs: list[int] = []

    async def compete() -> None:
        async with Runtime(another(), min_interval=0) as rt:
            epoch = 0
            try:
                async with rt.open("k") as cp:
                    epoch = cp.epoch
                    epochs.append(epoch)
                    if len(epochs) == count:
                        everybody.set()
                    await everybody.wait()
                    if epoch < count:
                        await fenced(cp)
                    else:
                        await cp.write(b"last")
                    await cp.flush()
                ended[epoch] = None
            except FencedError as exc:
                ended[epoch] = exc

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tg:
            for _ in range(count):
                tg.start_soon(compete)
    assert sorted(epochs) == list(range(1, count + 1))
    assert [epoch for epoch, exc in ended.items() if exc is None] == [count]
    async with Runtime(another()) as rt:
        found = await rt.latest("k")
        assert found is not None
        assert (found.epoch, found.payload) == (count, b"last")


# In one runtime.


async def test_a_key_is_opened_once_at_a_time_in_a_runtime() -> None:
    async with Runtime("memory:") as rt:
        async with rt.open("k") as cp:
            with pytest.raises(KeyInUseError, match="share its checkpointer"):
                async with rt.open("k"):
                    raise AssertionError
            await cp.write(b"1")
            async with rt.open("other"):
                pass
        async with rt.open("k") as cp:
            assert await cp.read() == b"1"
            assert (cp.epoch, cp.attempt, cp.resumed) == (2, 2, True)


async def test_a_failed_open_leaves_the_key_free() -> None:
    store = FaultyStore(MemoryStore())
    async with Runtime(store) as rt:
        store.fail_next(1, StoreError("no", op="commit", key="k"))
        with pytest.raises(StoreError):
            async with rt.open("k"):
                raise AssertionError
        async with rt.open("k") as cp:
            await cp.write(b"x")


async def test_an_open_cancelled_in_mid_claim_leaves_the_key_openable_at_once() -> None:
    memory = MemoryStore()
    store = FaultyStore(memory)
    async with Runtime(store, min_interval=0) as rt:
        for _ in range(3):
            with store.held():
                begun = store.next_commit()
                async with anyio.create_task_group() as tg:
                    tg.start_soon(rt.open("k").__aenter__)
                    await happened(begun)
                    tg.cancel_scope.cancel()
                began = time.monotonic()
                # the claim's commit cannot be called back: it may still come to pass
            async with rt.open("k") as cp:
                await cp.write(b"x")
                await cp.flush()
            assert time.monotonic() - began < 5
    assert stored_state(memory) == b"x"


async def test_a_key_opened_again_at_once_adopts_the_flush_under_way() -> None:
    memory = MemoryStore()
    store = SlowStore(memory, 0.0)
    async with Runtime(store, min_interval=0) as rt:
        opening = rt.open("k")
        cp = await opening.__aenter__()
        store.seconds = 0.3
        await cp.write(b"newest")
        async with anyio.create_task_group() as tg:
            tg.start_soon(opening.__aexit__, None, None, None)
            await true(lambda: "k" not in rt._running.open)
            async with rt.open("k") as again:
                assert await again.read() == b"newest"


@pytest.mark.parametrize("kind", ["memory", "sqlite", "file"])
@once
async def test_what_a_failed_flush_left_is_taken_over_by_the_next_open(
    kind: str, tmp_path: Path
) -> None:
    inner = MemoryStore() if kind == "memory" else open_store(f"{kind}:{tmp_path}/s")
    store = FaultyStore(inner)
    async with Runtime(store, min_interval=0, spool=None) as rt:
        with pytest.raises(aiocheckpoint.FlushTimeoutError):
            async with rt.open("k", flush_timeout=0.1) as cp:
                await cp.write(b"1")
                await cp.flush()
                store.down = True
                await cp.write(b"2")
        async with anyio.create_task_group() as tg:

            async def reopen() -> None:
                async with rt.open("k") as again:
                    assert await again.read() == b"2"
                    await again.write(b"3")
                    await again.flush()
                    head = await rt.latest("k")
                    assert head is not None
                    assert head.epoch == again.epoch
                    assert head.claim == again._held.record.claim.hex()

            tg.start_soon(reopen)
            await anyio.sleep(0.2)
            store.down = False
    async with Runtime(inner, spool=None) as rt:
        found = await rt.latest("k")
        assert found is not None
        assert found.payload == b"3"
    await inner.aclose()


@once
async def test_no_batch_has_two_commits_of_one_key(tmp_path: Path) -> None:
    batches: list[list[str]] = []

    class Recording(FaultyStore):
        async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
            batches.append([put.key for put in batch])
            return await super().commit(batch)

    inner = open_store(f"sqlite:{tmp_path}/s.db")
    store = Recording(inner)
    async with Runtime(store, min_interval=0, spool=None) as rt, rt.open("other") as other:
        first, second = rt.open("k", flush_timeout=0.05), rt.open("k")
        cp = await first.__aenter__()
        with store.held():
            begun = store.next_commit()
            await other.write(b"x")
            await happened(begun)
            await cp.write(b"1")  # its commit waits behind the one that is held
            with pytest.raises(aiocheckpoint.FlushTimeoutError):
                await first.__aexit__(None, None, None)
            opening = asyncio.create_task(second.__aenter__())
            await true(lambda: bool(rt._running.writer.commits._ready))
        new = await opening
        found = await new.latest()
        assert found is not None
        assert (found.epoch, found.payload) == (2, b"1")
        await second.__aexit__(None, None, None)
    assert all(len(set(batch)) == len(batch) for batch in batches)
    await inner.aclose()


# Look-ups.


@once
async def test_looking_up_claims_nothing(another: Stores) -> None:
    store = another()
    async with Runtime(another()) as rt, Runtime(store) as other, rt.open("k") as cp:
        await cp.write(b"x")
        await cp.flush()
        before = await store.load("k")
        found = await other.latest("k")
        assert found is not None
        assert (found.payload, found.seq, found.epoch) == (b"x", 1, 1)
        assert (found.status, found.attempt, found.codec) == ("running", 1, "bytes")
        assert await cp.latest() == found
        assert await listed(other.keys()) == ["k"]
        assert await listed(other.keys(status="running")) == ["k"]
        assert await other.latest("absent") is None
        assert await store.load("k") == before
        await cp.write(b"y")
        await cp.flush()


@once
async def test_keys_are_listed_by_prefix_and_status(another: Stores) -> None:
    async def finish(cp: Checkpointer[bytes]) -> int:
        await cp.write(b"x")
        return 7

    async def fail(cp: Checkpointer[bytes]) -> None:
        raise NonRecoverableError("no")

    async with Runtime(another()) as rt:
        for key in ("a", "a/b", "a/c", "ab", "b%", "É", "é"):
            async with rt.open(key) as cp:
                await cp.write(b"x")
        assert await rt.run(finish, key="a/done") == 7
        with pytest.raises(NonRecoverableError):
            await rt.run(fail, key="a/failed")
        everything = ["a", "a/b", "a/c", "a/done", "a/failed", "ab", "b%", "É", "é"]
        assert await listed(rt.keys()) == everything
        assert await listed(rt.keys("a/")) == everything[1:5]
        assert await listed(rt.keys("a/", status="done")) == ["a/done"]
        assert await listed(rt.keys(status="failed")) == ["a/failed"]
        assert await listed(rt.keys("%")) == []
        assert await listed(rt.keys("b%")) == ["b%"]
        assert await listed(rt.keys("é")) == ["é"]
        await rt.delete("a/done")
        assert await listed(rt.keys("a/", status="done")) == []
        async for key in rt.keys():  # breaking off leaves nothing open
            assert key == "a"
            break


# Answers that are lost, stores that forget.


@pytest.mark.parametrize("lost", [1, 2, 3])
async def test_a_claim_whose_answer_was_lost_is_adopted(lost: int) -> None:
    memory = MemoryStore()
    store = FaultyStore(memory)
    store.lose_answers(lost)
    async with Runtime(store, min_interval=0) as rt, rt.open("k") as cp:
        assert (cp.epoch, cp.attempt) == (1, 1)
        await cp.write(b"x")
        await cp.flush()
        assert store.calls["commit"] == lost + 2
    assert stored_state(memory) == b"x"


@pytest.mark.parametrize("lost", [1, 2, 3])
async def test_a_commit_whose_answer_was_lost_is_committed_once_more(lost: int) -> None:
    memory = MemoryStore()
    store = FaultyStore(memory)
    async with Runtime(store, min_interval=0) as rt:
        async with rt.open("k") as cp:
            before = store.calls["commit"]
            store.lose_answers(lost)
            await cp.write(b"x")
            await cp.flush()
            assert store.calls["commit"] > before + lost  # read back is not yet durable
            await cp.write(b"y")
        assert stored_state(memory) == b"y"
        async with rt.open("k") as cp:
            assert await cp.read() == b"y"
            assert cp.epoch == 2


async def test_a_lost_answer_does_not_hide_that_somebody_else_claimed() -> None:
    memory = MemoryStore()
    store = FaultyStore(memory)
    async with Runtime(store, min_interval=0) as rt, Runtime(memory) as other:
        with pytest.raises(FencedError):
            async with rt.open("k") as cp:
                store.lose_answers(1)
                await cp.write(b"x")
                await true(lambda: stored_state(memory) == b"x")
                async with other.open("k") as new:
                    assert await new.read() == b"x"
                    await fenced(cp)
    assert stored_state(memory) == b"x"


async def test_a_store_that_went_back_in_time_is_claimed_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = MemoryStore()
    async with Runtime(memory, min_interval=0) as rt:
        async with rt.open("k") as cp:
            await cp.write(b"early" * 300_000)
        heads, blobs = dict(memory._heads), copy.deepcopy(memory._blobs)
        async with rt.open("k") as cp:
            await cp.write(b"later" * 300_000)
            await cp.flush()
            memory._heads, memory._blobs = heads, blobs
            await cp.write(b"latest" * 300_000)
            await cp.flush()
            found = await cp.latest()
            assert found is not None
            assert found.payload == b"latest" * 300_000
            assert found.epoch == cp.epoch == 2
            await cp.write(b"last")
    assert stored_state(memory) == b"last"
    assert len([r for r in caplog.records if "went back in time" in r.getMessage()]) == 1


async def test_a_store_that_went_back_within_a_claim_gets_the_newest_state() -> None:
    memory = MemoryStore()
    async with Runtime(memory, min_interval=0) as rt:
        async with rt.open("k") as cp:
            await cp.write(b"early" * 300_000)
            await cp.flush()
            heads, blobs = dict(memory._heads), copy.deepcopy(memory._blobs)
            for number in range(5):
                await cp.write(b"%d" % number * 1_500_000)
                await cp.flush()
            memory._heads, memory._blobs = heads, blobs
            await cp.write(b"9" * 1_500_000)
        async with rt.open("k") as cp:
            assert await cp.read() == b"9" * 1_500_000


async def test_blobs_that_a_store_forgot_between_blob_and_head_are_put_again() -> None:
    class Forgetful(Wrapper):
        """Goes back in time right after one blob was put."""

        snapshot: tuple[dict[str, Head], dict[str, dict[str, bytes]]] | None = None

        async def put_blob(self, key: str, name: str, source: Source) -> None:
            await super().put_blob(key, name, source)
            if self.snapshot is not None:
                (memory._heads, memory._blobs), self.snapshot = self.snapshot, None

    memory = MemoryStore()
    store = Forgetful(memory)
    async with Runtime(store, min_interval=0) as rt:
        async with rt.open("k") as cp:
            await cp.write(b"1")
            await cp.flush()
            snapshot = dict(memory._heads), copy.deepcopy(memory._blobs)
            await cp.write(b"2")
            await cp.flush()
            store.snapshot = snapshot
            await cp.write(b"3" * 1_500_000)
        async with rt.open("k") as cp:
            assert await cp.read() == b"3" * 1_500_000


# Damage and history.


def damage(store: MemoryStore, key: str = "k") -> None:
    record, version = store._heads[key]
    store._heads[key] = Head(record[:-1] + bytes([record[-1] ^ 1]), version)


def damage_blob(store: MemoryStore, name: str, key: str = "k") -> None:
    data = store._blobs[key][name]
    store._blobs[key][name] = data[:100] + bytes([data[100] ^ 1]) + data[101:]


async def fill(store: Store, keep: int, *states: bytes) -> None:
    async with Runtime(store, keep=keep, min_interval=0) as rt, rt.open("k") as cp:
        for one in states:
            await cp.write(one)
            await cp.flush()


@once
async def test_a_damaged_head_falls_back_to_the_newest_good_generation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = MemoryStore()
    await fill(memory, 3, b"1", b"2", b"3", b"4")
    damage(memory)
    async with Runtime(memory, keep=3) as rt:
        found = await rt.latest("k")
        assert found is not None
        assert found.payload == b"4"  # the generation of the very head
        names = [n for n in memory._blobs["k"] if n.startswith(GENERATION)]
        damage_blob(memory, max(names))
        caplog.clear()
        async with rt.open("k") as cp:
            assert await cp.read() == b"3"
            assert cp.epoch == 2
            falls = [r for r in caplog.records if "falling back" in r.getMessage()]
            assert len(falls) == 1
            assert "seq 3" in falls[0].getMessage()
            await cp.write(b"5")
        async with rt.open("k") as cp:
            assert await cp.read() == b"5"


@once
async def test_a_damaged_blob_falls_back_to_the_generation_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = MemoryStore()
    await fill(memory, 3, *(b"%d" % n * BIG for n in (1, 2, 3, 4)))
    blobs = sorted((n for n in memory._blobs["k"] if n.startswith(STATE)), key=lambda n: n[-1])
    damage_blob(memory, blobs[-1])
    async with Runtime(memory, keep=3) as rt, rt.open("k") as cp:
        assert await cp.read() == b"3" * BIG
        assert len([r for r in caplog.records if "falling back" in r.getMessage()]) == 1
        memory._blobs["k"].pop(blobs[-2])
    async with Runtime(memory, keep=3) as rt:
        with caplog.at_level(logging.ERROR, "aiocheckpoint"):
            found = await rt.latest("k")
        assert found is not None
        assert found.payload == b"2" * BIG


@pytest.mark.parametrize("what", ["head", "blob", "missing blob", "cut blob"])
@once
async def test_damage_without_history_is_an_error_and_never_a_start_from_zero(what: str) -> None:
    memory = MemoryStore()
    await fill(memory, 1, b"0" * BIG, b"1" * BIG)
    (_, version) = memory._heads["k"]
    (name,) = [n for n in memory._blobs["k"] if n.endswith("-2")]
    if what == "head":
        damage(memory)
    elif what == "blob":
        damage_blob(memory, name)
    elif what == "missing blob":
        del memory._blobs["k"][name]
    else:
        memory._blobs["k"][name] = memory._blobs["k"][name][:-1]
    called = False

    async def task(cp: Checkpointer[bytes]) -> None:
        nonlocal called
        called = True

    async with Runtime(memory) as rt:
        for _ in range(2):  # it stays so
            with pytest.raises(CorruptCheckpointError, match="keep=2") as caught:
                async with rt.open("k"):
                    raise AssertionError
            assert "delete() the key" in str(caught.value)
            with pytest.raises(CorruptCheckpointError):
                await rt.run(task, key="k", retry=3)
            with pytest.raises(CorruptCheckpointError):
                await rt.latest("k")
        assert not called
        assert memory._heads["k"].version == version
        await rt.delete("k")  # the way out that the message names
        async with rt.open("k") as cp:
            assert await cp.read() is None


@once
async def test_damage_on_disk_is_found_and_history_mends_it(url: str, tmp_path: Path) -> None:
    import sqlite3

    async with Runtime(url, keep=2, min_interval=0, spool=None) as rt, rt.open("k") as cp:
        for one in (b"first", b"second"):
            await cp.write(one)
            await cp.flush()
    if url.startswith("sqlite"):
        with sqlite3.connect(tmp_path / "s.db") as db:
            db.execute("UPDATE aiocheckpoint_heads SET record = substr(record, 1, 60)")
        db.close()
    else:
        head = max((tmp_path / "s" / "k").glob("head.*"))
        head.write_bytes(head.read_bytes()[:60])
    async with Runtime(url, spool=None) as rt, rt.open("k") as cp:
        assert await cp.read() == b"second"


# Blobs.


async def blobs_of(store: Store, prefix: str = "") -> list[str]:
    return [name for name in await store.list_blobs("k") if name.startswith(prefix)]


async def settled(store: Store, count: int) -> list[str]:
    """The blobs, once as many are left: they are collected in the background."""
    for _ in range(1000):
        if len(names := await blobs_of(store)) == count:
            break
        await anyio.sleep(0.005)
    return names


@once
async def test_large_states_are_stored_as_blobs_and_old_ones_collected(another: Stores) -> None:
    store = another()
    async with Runtime(another(), min_interval=0) as rt:
        async with rt.open("k") as cp:
            for number in range(1, 6):
                await cp.write(state(number, BIG))
                await cp.flush()
            # one generation more than `keep` stays, for readers that are under way
            names = await settled(store, 2)
            assert sorted(int(name.rpartition("-")[2]) for name in names) == [4, 5]
            found = await cp.latest()
            assert found is not None
            assert (number_of(found.payload), found.size) == (5, BIG - BIG % 2)
        async with rt.open("k") as cp:
            assert number_of(await cp.read()) == 5
            assert len(await settled(store, 1)) == 1  # what the record does not name goes
            await cp.write(b"small")
            await cp.flush()
            await cp.write(b"smaller")
            await cp.flush()
            assert await settled(store, 0) == []


@once
async def test_history_keeps_as_many_generations_as_asked_for(another: Stores) -> None:
    store = another()
    async with Runtime(another(), keep=3, min_interval=0) as rt:
        async with rt.open("k") as cp:
            for number in range(1, 9):
                await cp.write(state(number, 2 << 20))
                await cp.flush()
            await settled(store, 8)
            assert len(await blobs_of(store, GENERATION)) == 4
            assert len(await blobs_of(store, STATE)) == 4
        async with rt.open("k", keep=1) as cp:
            assert number_of(await cp.read()) == 8
            await cp.write(b"x")
            await cp.flush()
            await cp.write(b"y")
            await cp.flush()
            assert await settled(store, 0) == []


@once
async def test_blobs_of_a_dead_claim_are_collected_by_the_next(another: Stores) -> None:
    store = another()
    async with Runtime(another(), min_interval=0) as rt:
        async with rt.open("k") as cp:
            await cp.write(state(1, BIG))
        for name in ("state-0123-9", f"{GENERATION}00000001-0000000009-0123"):
            await store.put_blob("k", name, b"put by a claim that died before its commit")
        async with rt.open("k") as cp:
            assert number_of(await cp.read()) == 1
            (name,) = await settled(store, 1)
            assert name.endswith("-1")


async def test_a_reader_that_finds_a_blob_gone_reads_the_head_again() -> None:
    class Stale(Wrapper):
        """Answers the first load with an older head."""

        head: Head | None = None

        async def load(self, key: str) -> Head | None:
            head, self.head = self.head, None
            return head or await super().load(key)

    memory = MemoryStore()
    store = Stale(memory)
    await fill(memory, 1, state(1, BIG))
    old = memory._heads["k"]
    await fill(memory, 1, *(state(n, BIG) for n in (2, 3, 4)))
    async with Runtime(store) as rt:
        store.head = old
        found = await rt.latest("k")
        assert found is not None
        assert number_of(found.payload) == 4
        store.head = old
        async with rt.open("k") as cp:
            assert number_of(await cp.read()) == 4


async def test_no_blob_is_deleted_after_a_failed_commit() -> None:
    memory = MemoryStore()
    store = FaultyStore(memory)
    async with Runtime(store, min_interval=0) as rt, rt.open("k") as cp:
        await cp.write(state(1, BIG))
        await cp.flush()
        store.fail_next(2, StoreUnavailableError("no", op="commit"))
        await cp.write(state(2, BIG))
        await cp.flush()
        assert store.calls["delete_blobs"] == 0
        names = [int(name.rpartition("-")[2]) for name in memory._blobs["k"]]
        assert sorted(names) == [1, 2]
        await cp.write(state(3, BIG))
        await cp.flush()
        assert [int(n.rpartition("-")[2]) for n in sorted(await settled(memory, 2))] == [2, 3]


@once
async def test_readers_never_fail_while_large_states_are_written(url: str) -> None:
    async with Runtime(url, min_interval=0) as rt, Runtime(url) as other, rt.open("k") as cp:
        await cp.write(state(1, 2 << 20))
        await cp.flush()
        reading = True

        async def read() -> None:
            while reading:
                found = await other.latest("k")
                assert found is not None
                number_of(found.payload)

        async with anyio.create_task_group() as tg:
            for _ in range(2):
                tg.start_soon(read)
            for number in range(2, 12):
                await cp.write(state(number, 2 << 20))
                await cp.flush()
            reading = False


async def test_the_store_is_described_in_the_log_of_a_claim(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "aiocheckpoint")
    memory = MemoryStore()
    async with Runtime(memory, min_interval=0) as rt, rt.open("k") as cp:
        for number in range(200):
            await cp.write(b"%d" % number)
        await cp.flush()
    lines = [r.getMessage() for r in caplog.records if r.name == "aiocheckpoint"]
    assert lines == [f"claimed 'k' in {memory.identity}: epoch 1, attempt 1, seq 0"]
