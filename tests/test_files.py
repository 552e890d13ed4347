"""Files of a checkpoint: save and restore, with the state and as whole as it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

import aiocheckpoint
from aiocheckpoint import (
    Checkpointer,
    ClosedError,
    FencedError,
    Runtime,
    StoppedError,
    StoreError,
    _io_thread,
)
from aiocheckpoint._held import Held
from aiocheckpoint._records import Files, decode_record
from aiocheckpoint._region import Moved
from aiocheckpoint.abc import Head, Put, Source, Store, Version
from aiocheckpoint.stores import open_store
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import FaultyStore, Wrapper

from .children import run
from .support import files, happened, true
from .trees import make, make_odd, seen

T = TypeVar("T")


@pytest.fixture(params=["memory", "sqlite", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store that a runtime does not close: opened anew for each kind, never shared."""
    if request.param == "memory":
        return MemoryStore()
    name = "s.db" if request.param == "sqlite" else "s"
    return open_store(f"{request.param}:{tmp_path}/{name}")


@pytest.fixture
async def runtime(store: Store) -> AsyncIterator[Runtime]:
    async with Runtime(store, min_interval=0) as rt:
        yield rt


class Counting(Wrapper):
    """Counts the bytes of blobs that are put, and notes the largest chunk."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.put: dict[str, int] = {}
        self.largest = 0

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        async def counted() -> AsyncIterator[bytes]:
            chunks = _one(source) if isinstance(source, bytes) else source
            async for chunk in chunks:
                self.put[name] = self.put.get(name, 0) + len(chunk)
                self.largest = max(self.largest, len(chunk))
                yield chunk

        await super().put_blob(key, name, counted())

    @property
    def packed(self) -> int:
        """Bytes of packs."""
        return sum(size for name, size in self.put.items() if name.startswith("pack-"))


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


# What comes back.


async def test_a_file_comes_back_as_a_file(runtime: Runtime, tmp_path: Path) -> None:
    """Contents, permissions and modification time; under another name, if that is wanted."""
    source = tmp_path / "model.bin"
    for data in (b"", b"small", os.urandom(5 << 20)):
        source.write_bytes(data)
        os.chmod(source, 0o640)
        async with runtime.open("k") as cp:
            await cp.save(source, state=b"%d" % len(data))
        async with runtime.open("k") as cp:
            target = tmp_path / f"out{len(data)}"
            assert await cp.restore(target) == target
            assert await cp.read() == b"%d" % len(data)
            assert seen(target) == seen(source)


async def test_a_tree_comes_back_as_it_was(runtime: Runtime, tmp_path: Path) -> None:
    """Empty directories and files, links, permissions, names of any bytes."""
    source = make_odd(tmp_path / "source")
    async with runtime.open("k") as cp:
        await cp.save(source, state=b"x")
    async with runtime.open("k") as cp:
        await cp.restore(tmp_path / "out")
        assert seen(tmp_path / "out") == seen(source)
        (tmp_path / "there").mkdir()
        await cp.restore(tmp_path / "there")
        assert seen(tmp_path / "there") == seen(source)


async def test_an_empty_tree_is_not_no_files(runtime: Runtime, tmp_path: Path) -> None:
    """A directory without anything in it comes back; where nothing was saved nothing does."""
    (tmp_path / "empty").mkdir()
    async with runtime.open("k") as cp:
        assert await cp.restore(tmp_path / "out") is None
        assert not (tmp_path / "out").exists()
        await cp.save(tmp_path / "empty")
        await cp.restore(tmp_path / "out")
        assert seen(tmp_path / "out") == seen(tmp_path / "empty")


async def test_what_a_link_leads_to_is_saved_when_the_link_is_named(tmp_path: Path) -> None:
    """`save("latest")` saves the directory that `latest` leads to."""
    source = make(tmp_path / "epoch-9", model=b"9")
    (tmp_path / "latest").symlink_to("epoch-9")
    async with aiocheckpoint.open("memory:", "k") as cp:
        await cp.save(tmp_path / "latest")
        await cp.restore(tmp_path / "out")
        assert seen(tmp_path / "out") == seen(source)


# One record of two parts.


async def test_a_write_keeps_the_files(runtime: Runtime, tmp_path: Path) -> None:
    """After a save, newer states go with its files, in this attempt and the next."""
    source = make(tmp_path / "source", a=b"a")
    async with runtime.open("k") as cp:
        await cp.save(source, state=b"0")
        await cp.write(b"1")
        cp.write_nowait(b"2")
    async with runtime.open("k") as cp:
        assert await cp.read() == b"2"
        await cp.write(b"3")
        await cp.restore(tmp_path / "one")
    async with runtime.open("k") as cp:
        assert (await cp.read(), cp.resumed) == (b"3", True)
        await cp.restore(tmp_path / "two")
    assert seen(tmp_path / "one") == seen(tmp_path / "two") == seen(source)


async def test_a_save_without_a_state_keeps_the_state(runtime: Runtime, tmp_path: Path) -> None:
    """The newest state stays, whichever way it was written; and there may be none at all."""
    source = make(tmp_path / "source", a=b"a")
    async with runtime.open("k") as cp:
        await cp.save(source)
        assert await cp.read() is None
    async with runtime.open("k") as cp:
        assert (await cp.read(b"none"), cp.resumed) == (b"none", True)
        await cp.write(b"1")
        await cp.save(source)
        assert await cp.read() == b"1"
        cp.write_nowait(b"2")
        await cp.save(source)
    async with runtime.open("k") as cp:
        assert await cp.read() == b"2"
        assert await cp.restore(tmp_path / "out")
    found = await runtime.latest("k")
    assert found is not None
    assert (found.payload, found.files, found.files_size) == (b"2", 1, 1)


async def test_states_of_any_codec_and_size_go_with_files(tmp_path: Path) -> None:
    """Structured states, and states that are blobs themselves."""
    source = make(tmp_path / "source", a=b"a")
    store = MemoryStore()
    async with aiocheckpoint.open(store, "d", type=dict[str, int]) as structured:
        await structured.save(source, state={"step": 1})
    async with aiocheckpoint.open(store, "d", type=dict[str, int]) as structured:
        assert await structured.read() == {"step": 1}
    large = os.urandom(3 << 20)
    async with aiocheckpoint.open(store, "b") as cp:
        await cp.save(source, state=large)
        await cp.save(source)
    async with aiocheckpoint.open(store, "b") as cp:
        assert await cp.read() == large
        assert await cp.restore(tmp_path / "out")


class Pairing(Wrapper):
    """Notes each committed pair of a state and the id of its files."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.pairs: list[tuple[bytes, str]] = []

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        for put in batch:
            record, state = decode_record(put.key, put.record)
            self.pairs.append((state, "" if record.files is None else record.files.id))
        return await super().commit(batch)


async def test_no_record_ever_has_a_state_with_other_files(tmp_path: Path) -> None:
    """While one task saves and another one and a thread write, each record is of one piece.

    A state names the save that it was written after: by then `saved` has counted it.
    """
    store = Pairing(MemoryStore())
    source = make(tmp_path / "source", n=b"0")
    ids: list[str] = [""]
    saved = 0
    over = threading.Event()

    async with Runtime(store, min_interval=0) as rt, rt.open("k") as cp:

        def tree_id() -> str:
            tree = cp._slot.files
            return "" if tree is None else tree.id

        def write_from_a_thread() -> None:
            while not over.is_set():
                cp.write_nowait(b"after %d" % saved)

        async def write() -> None:
            while not over.is_set():
                for _ in range(20):
                    await cp.write(b"after %d" % saved)
                await anyio.lowlevel.checkpoint()

        thread = threading.Thread(target=write_from_a_thread)
        async with anyio.create_task_group() as group:
            group.start_soon(write)
            thread.start()
            for number in range(1, 16):
                (source / "n").write_bytes(b"%d" % number)
                await cp.save(source, state=b"with %d" % number)
                ids.append(tree_id())
                saved = number
            over.set()
            await anyio.to_thread.run_sync(thread.join)
    for state, pair_id in store.pairs:
        word, _, which = state.partition(b" ")
        if word == b"with":
            assert pair_id == ids[int(which)]
        elif state:  # written after that save was over: with its files, or with newer ones
            assert ids.index(pair_id) >= int(which)
    assert len(set(ids)) == 16


async def test_two_saves_at_once_leave_one_of_them_whole(runtime: Runtime, tmp_path: Path) -> None:
    """Both return; the state and the files of one of them are there."""
    sources = [make(tmp_path / f"{n}", file=b"%d" % n * 100_000) for n in range(4)]
    async with runtime.open("k") as cp, anyio.create_task_group() as group:
        for number, source in enumerate(sources):
            group.start_soon(lambda n, s: cp.save(s, state=b"%d" % n), number, source)
    async with runtime.open("k") as cp:
        number = int(await cp.read(b""))
        await cp.restore(tmp_path / "out")
        assert seen(tmp_path / "out") == seen(sources[number])


# What is stored.


async def test_unchanged_files_are_not_stored_again(tmp_path: Path) -> None:
    """Of a large file only the chunks that changed, of others only those that changed."""
    store = Counting(MemoryStore())
    source = make(tmp_path / "s", a=b"a" * 1000, b__c=b"c" * 2000, large=os.urandom(20 << 20))
    async with aiocheckpoint.open(store, "k") as cp:
        await cp.save(source)
        assert store.packed == 3000 + (20 << 20)
        await cp.save(source)
        assert store.packed == 3000 + (20 << 20)
        store.put.clear()
        (source / "a").write_bytes(b"A" * 1000)
        (source / "a").touch()
        await cp.save(source)
        assert store.packed == 1000
        store.put.clear()
        with (source / "large").open("r+b") as file:
            file.seek(9 << 20)
            file.write(b"changed")
        await cp.save(source)
        assert store.packed == 4 << 20
        store.put.clear()
        with (source / "large").open("ab") as file:
            file.write(b"appended")
        await cp.save(source)
        assert store.packed == 8 + 1000  # a pack that is smaller than all newer ones is merged
        await cp.restore(tmp_path / "out")
    assert seen(tmp_path / "out") == seen(source)
    async with aiocheckpoint.open(store, "k") as cp:  # another attempt knows what is there
        store.put.clear()
        await cp.save(source)
        assert store.packed == 0


async def test_old_packs_are_collected(store: Store, tmp_path: Path) -> None:
    """However often a tree changes, what is stored is a small multiple of what it is now."""
    source = make(tmp_path / "source", static=os.urandom(400_000))
    async with Runtime(store, min_interval=0) as rt, rt.open("k") as cp:
        for n in range(40):
            (source / f"{n % 7}").write_bytes(os.urandom(20_000))
            await cp.save(source)
            await cp.write(b"%d" % n)
        await cp.flush()
        found = await rt.latest("k")
        assert found is not None
        assert found.files_size == 540_000
        names: list[str] = []

        async def total() -> int:
            names[:] = await on_io(rt, store.list_blobs("k"))
            return sum([await on_io(rt, size_of(store, name)) for name in names])

        assert await total() <= 4 * found.files_size
        assert len(names) <= 16
        await cp.restore(tmp_path / "out")
    assert seen(tmp_path / "out") == seen(source)


async def size_of(store: Store, name: str) -> int:
    return sum([len(chunk) async for chunk in store.open_blob("k", name)])


async def on_io(rt: Runtime, call: Coroutine[Any, Any, T]) -> T:
    """Await a store's coroutine where it belongs."""
    return await _io_thread.result(rt._running.io.call(call))


# Moved trees.


async def test_a_moved_tree_is_taken_at_once_and_stored_behind(tmp_path: Path) -> None:
    """`move=True` returns while the store hangs; what was moved is gone from its place, and is
    stored when the store goes on; nothing stays in the spool."""
    store = FaultyStore(open_store(f"sqlite:{tmp_path}/s.db"))
    spool = tmp_path / "spool"
    async with Runtime(store, min_interval=0, spool=spool) as rt:
        async with rt.open("k") as cp:
            with store.held():
                source = make(tmp_path / "source", a=b"a", b__c=b"c")
                before = seen(source)
                await cp.save(source, state=b"1", move=True)
                assert not source.exists()
                assert await cp.read() == b"1"
                assert cp.statistics().stored == 0
            await cp.write(b"2")
        async with rt.open("k") as cp:
            assert await cp.read() == b"2"
            await cp.restore(tmp_path / "out")
            assert seen(tmp_path / "out") == before
    await store.store.aclose()
    assert files(spool) == []


async def test_a_moved_tree_is_restored_before_it_is_stored(tmp_path: Path) -> None:
    """`restore` waits for what was moved and is under way to the store."""
    store = FaultyStore(MemoryStore())
    source = make(tmp_path / "source", a=b"a")
    before = seen(source)
    async with Runtime(store, spool=tmp_path / "spool", min_interval=0) as rt, rt.open("k") as cp:
        async with anyio.create_task_group() as group:
            with store.held():
                begun = store.next_commit()
                await cp.save(source, move=True)
                group.start_soon(cp.restore, tmp_path / "out")
                await happened(begun)
                assert not (tmp_path / "out").exists()
        assert seen(tmp_path / "out") == before


async def test_of_moved_trees_the_newest_wins(tmp_path: Path) -> None:
    """While the store is down newer trees replace older ones, on the disk too."""
    store = FaultyStore(Counting(MemoryStore()))
    spool = tmp_path / "spool"
    async with Runtime(store, min_interval=0, spool=spool) as rt:
        async with rt.open("k") as cp:
            store.down = True
            for number in range(10):
                source = make(tmp_path / "source", file=b"%d" % number * 1000)
                await cp.save(source, state=b"%d" % number, move=True)
                await true(lambda: len(list(spool.glob("*/*/*.tree"))) <= 2)  # none is walked into
            store.down = False
        async with rt.open("k") as cp:
            assert await cp.read() == b"9"
            await cp.restore(tmp_path / "out")
            assert (tmp_path / "out" / "file").read_bytes() == b"9" * 1000
    assert isinstance(store.store, Counting)
    assert store.store.packed <= 2000
    assert files(spool) == []


async def test_a_moved_tree_that_is_being_stored_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer one that comes as it is about to be read replaces it afterwards; nobody is told of
    an error, and the spool is clean."""
    spool = tmp_path / "spool"
    begun, go_on = threading.Event(), threading.Event()
    async with Runtime(MemoryStore(), min_interval=0, spool=spool) as rt, rt.open("k") as cp:
        await cp.save(make(tmp_path / "before", file=b"before"))
        saves = rt._running.writer.saves
        plain = saves.upload

        async def upload(held: Held, tree: Moved) -> Files:
            begun.set()
            while not go_on.is_set():  # noqa: ASYNC110 (another thread's event)
                await asyncio.sleep(0.001)
            return await plain(held, tree)

        monkeypatch.setattr(saves, "upload", upload)
        await cp.save(make(tmp_path / "source", file=b"1"), state=b"1", move=True)
        await happened(begun)
        await cp.save(make(tmp_path / "source", file=b"2"), state=b"2", move=True)
        go_on.set()
        await cp.flush()
        assert cp.statistics().errors == 0
        await cp.restore(tmp_path / "out")
    assert (tmp_path / "out" / "file").read_bytes() == b"2"
    assert files(spool) == []


async def test_what_is_closed_before_it_is_moved_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handle that is left while a tree is looked at raises ClosedError, and the tree stays."""
    source = make(tmp_path / "source", a=b"a")
    begun, go_on = threading.Event(), threading.Event()
    async with Runtime(f"sqlite:{tmp_path}/s.db") as rt:
        saves = rt._running.writer.saves
        plain = saves.check

        async def check(held: Held, path: Path) -> None:
            begun.set()
            while not go_on.is_set():  # noqa: ASYNC110 (another thread's event)
                await asyncio.sleep(0.001)
            await plain(held, path)

        async def late(cp: Checkpointer[bytes]) -> None:
            with pytest.raises(ClosedError):
                await cp.save(source, move=True)

        monkeypatch.setattr(saves, "check", check)
        async with anyio.create_task_group() as group:
            async with rt.open("k") as cp:
                group.start_soon(late, cp)
                await happened(begun)
            go_on.set()
    assert (source / "a").read_bytes() == b"a"


async def test_one_file_can_be_moved(tmp_path: Path) -> None:
    """What is moved may be a file."""
    source = tmp_path / "file"
    source.write_bytes(b"contents")
    async with aiocheckpoint.open(f"sqlite:{tmp_path}/s.db", "k") as cp:
        await cp.save(source, move=True)
        assert not source.exists()
        await cp.restore(source)
        assert source.read_bytes() == b"contents"


KILLED = """
    from aiocheckpoint.testing import FaultyStore
    from aiocheckpoint.stores import open_store
    from pathlib import Path
    from tests.trees import make
    store = FaultyStore(open_store(url))
    base = Path(args[0])
    async with Runtime(store, spool=base / "spool", min_interval=0) as rt:
        async with rt.open("k") as cp:
            await cp.save(make(base / "first", a=b"first"), state=b"first")
            store.down = args[1] == "moved"
            with store.held():
                if args[1] == "moved":
                    await cp.save(make(base / "second", a=b"second"), state=b"second", move=True)
                else:
                    make(base / "second", a=b"second")
                    saving = asyncio.ensure_future(cp.save(base / "second", state=b"second"))
                    while (await cp.read()) != b"second":
                        await asyncio.sleep(0.001)
                await cp.write(b"third")
                die()
"""


@pytest.mark.parametrize("how", ["moved", "saved"])
@pytest.mark.parametrize("scheme", ["sqlite", "file"])
async def test_a_kill_loses_no_staged_files(tmp_path: Path, scheme: str, how: str) -> None:
    """SIGKILL while files are staged and in no record: the next open has them, with the state that
    was written after them, and the spool is clean."""
    url = f"{scheme}:{tmp_path}/s"
    run(KILLED, url, tmp_path, how)
    spool = tmp_path / "spool"
    assert files(spool)
    async with aiocheckpoint.open(url, "k", spool=spool) as cp:
        assert await cp.read() == b"third"
        await cp.restore(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == b"second"
    assert files(spool) == []
    async with aiocheckpoint.open(url, "k", spool=spool) as cp:
        await cp.restore(tmp_path / "again")
    assert seen(tmp_path / "again") == seen(tmp_path / "out")


async def test_interpreter_exit_stores_a_moved_tree(tmp_path: Path) -> None:
    """A runtime that nobody leaves stores at exit what was moved."""
    run(
        """
        from pathlib import Path
        from tests.trees import make
        rt = await Runtime(url).__aenter__()
        cp = await rt.open("k").__aenter__()
        source = make(Path(args[0]), a=b"a", large=b"large" * 2_000_000)
        await cp.save(source, state=b"1", move=True)
        """,
        f"sqlite:{tmp_path}/s.db",
        tmp_path / "source",
    )
    assert not list(tmp_path.rglob("*.tree"))
    async with aiocheckpoint.open(f"sqlite:{tmp_path}/s.db", "k") as cp:
        assert await cp.read() == b"1"
        await cp.restore(tmp_path / "out")
    assert (tmp_path / "out" / "large").read_bytes() == b"large" * 2_000_000


# Claims, runs, deleting.


async def test_a_zombie_can_neither_save_nor_harm(tmp_path: Path) -> None:
    """The older attempt's saves raise FencedError, moved ones at the next call; the newer one's
    files stay."""
    url = f"sqlite:{tmp_path}/s.db"
    mine, theirs = make(tmp_path / "new", a=b"new"), make(tmp_path / "old", a=b"old")
    async with Runtime(url, min_interval=0) as zombie:
        opening = zombie.open("k")
        old = await opening.__aenter__()
        await old.save(theirs, state=b"old")
        async with Runtime(url, min_interval=0) as rt, rt.open("k") as new:
            await new.save(mine, state=b"new")
            with pytest.raises(FencedError):
                await old.save(theirs, state=b"late")
            with pytest.raises(FencedError):
                await old.save(theirs, state=b"late", move=True)
            assert (theirs / "a").exists()  # refused, and so not taken
            with pytest.raises(FencedError):
                await opening.__aexit__(None, None, None)
            await new.restore(tmp_path / "out")
            assert await new.read() == b"new"
    assert seen(tmp_path / "out") == seen(mine)
    async with aiocheckpoint.open(url, "k") as cp:
        assert await cp.read() == b"new"
        await cp.restore(tmp_path / "again")


async def test_files_survive_attempts_and_a_stop(tmp_path: Path) -> None:
    """A retry restores what the attempt before it saved; a stop ends an attempt at its save."""
    store = MemoryStore()
    begun: list[int] = []

    @aiocheckpoint.task(key="job", retry=1)
    async def job(cp: Checkpointer[bytes], rt: Runtime) -> str:
        begun.append(cp.attempt)
        if not cp.resumed:
            await cp.save(make(tmp_path / "one", a=b"1"), state=b"1")
            raise ConnectionError
        target = tmp_path / f"restored{cp.attempt}"
        await cp.restore(target)
        if cp.attempt == 2:
            assert (target / "a").read_bytes() == b"1"
            rt.stop()
            await cp.save(make(tmp_path / "one", a=b"2"))  # no state: more is to come
            await cp.save(tmp_path / "one", state=b"2")
            raise AssertionError("the stop did not end it")
        return (target / "a").read_text() + (await cp.read(b"")).decode()

    async with Runtime(store) as rt:
        with pytest.raises(StoppedError):
            await rt.run(job.using(retry=aiocheckpoint.RetryPolicy(on=OSError, wait_jitter=0)), rt)
    async with Runtime(store) as rt:
        assert await rt.run(job, rt) == "22"
    assert begun == [1, 2, 3]


async def test_fresh_and_delete_leave_no_files(
    runtime: Runtime, store: Store, tmp_path: Path
) -> None:
    """Starting anew drops the files; deleting the key drops all its blobs."""
    source = make(tmp_path / "source", a=b"a")

    async def job(cp: Checkpointer[bytes]) -> bool:
        had = await cp.restore(tmp_path / f"out{cp.epoch}") is not None
        await cp.save(source)
        return had

    assert not await runtime.run(job, key="k")
    assert not await runtime.run(job, key="k", fresh=True)
    async with runtime.open("k") as cp:
        assert await cp.restore(tmp_path / "out")
        await cp.delete()
    assert await on_io(runtime, store.list_blobs("k")) == []
    async with runtime.open("k") as cp:
        await cp.save(source)
    await runtime.delete("k")
    assert await on_io(runtime, store.list_blobs("k")) == []


async def test_earlier_generations_keep_their_files(tmp_path: Path) -> None:
    """With keep=2 a damaged head falls back to the state before it, with the files before it."""
    store = MemoryStore()
    first, second = make(tmp_path / "1", a=b"first"), make(tmp_path / "2", a=b"second")
    for reopen in (False, True):
        key = f"k{reopen}"
        async with Runtime(store, keep=2, min_interval=0) as rt:
            async with rt.open(key) as cp:
                await cp.save(first, state=b"first")
                await cp.save(second, state=b"second")
            if reopen:  # the claim takes over what is kept
                async with rt.open(key) as cp:
                    pass
        head = store._heads[key]
        store._heads[key] = Head(head.record[:-1] + b"?", head.version)
        record, _ = decode_record(key, head.record)
        assert record.files is not None
        if not reopen:
            for name in [n for n in store._blobs[key] if n == record.files.manifest.name]:
                del store._blobs[key][name]  # the copy of the head is of no use either
        async with Runtime(store, keep=2) as rt, rt.open(key) as cp:
            state = await cp.read()
            await cp.restore(tmp_path / key)
            assert (
                (tmp_path / key / "a").read_bytes() == state == (b"second" if reopen else b"first")
            )


async def test_save_is_for_the_loop_that_opened_it(tmp_path: Path) -> None:
    """From another thread's loop it is refused before anything happens."""
    source = make(tmp_path / "source", a=b"a")
    async with aiocheckpoint.open("memory:", "k") as cp:

        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match=r"save\(\) of 'k' is for the event loop"):
                anyio.run(cp.save, source)

        await anyio.to_thread.run_sync(elsewhere)
        assert await cp.restore(tmp_path / "out") is None
