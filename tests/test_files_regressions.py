"""Faults of files that were once found and mended, each shown by the shortest way to it."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import anyio
import pytest
import xxhash

import aiocheckpoint
from aiocheckpoint import (
    Checkpointer,
    ClosedError,
    FencedError,
    FlushTimeoutError,
    Runtime,
    StoreError,
    StoreUnavailableError,
    _region,
    _spool,
    _trees,
)
from aiocheckpoint._held import Held
from aiocheckpoint._records import Files, Record, decode_record
from aiocheckpoint.abc import Put, Store, Version
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import FaultyStore, Wrapper

from .children import read_back, run, small_disk
from .support import files, happened, on_asyncio, true
from .test_files_faults import Gated
from .trees import make, seen

MANY = {f"file{number:02}": b"%d" % number for number in range(20)}


def head(memory: MemoryStore) -> Record:
    return decode_record("k", memory._heads["k"].record)[0]


async def left_behind(store: Store, spool: Path, source: Path) -> Path:
    """The state `old` in the store; and in the spool, as an end of the process left it, the state
    `new` with a tree that was moved: where that lies."""
    async with aiocheckpoint.open(store, "k", spool=None) as cp:
        await cp.write(b"old")
    dying = FaultyStore(store)
    with pytest.raises(FlushTimeoutError):
        async with (
            Runtime(dying, spool=spool, min_interval=0, flush_timeout=0) as rt,
            rt.open("k") as cp,
        ):
            dying.down = True
            await cp.save(source, state=b"new", move=True)
    (tree,) = spool.rglob("*.tree")
    return tree


# Trees that are moved.


class Noting(Wrapper):
    """Notes how many files each record has that is committed."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.counts: list[int] = []

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        for put in batch:
            record, _ = decode_record(put.key, put.record)
            self.counts.append(0 if record.files is None else record.files.count)
        return await super().commit(batch)


@pytest.mark.parametrize("stop_at", [1, 2, 3])
async def test_trees_moved_close_together_make_no_torn_record(tmp_path: Path, stop_at: int) -> None:
    """[01] A tree that comes while the one before it is read takes nothing away from that."""
    gate = Gated(MemoryStore(), "chunk", stop_at)
    store = Noting(gate)
    async with Runtime(store, spool=tmp_path / "spool", min_interval=0) as rt, rt.open("k") as cp:
        for number in (1, 2):
            pieces = {f"{n}": bytes([number, n]) * (2 << 20) for n in range(3)}
            await cp.save(make(tmp_path / f"{number}", **pieces), state=b"%d" % number, move=True)
            await happened(gate.reached)
        gate.go_on.set()
        await cp.flush()
        assert cp.statistics().errors == 0
        assert await cp.read() == b"2"
        await cp.restore(tmp_path / "out")
    assert set(store.counts) == {0, 3}  # none, at the claim, or all
    assert (tmp_path / "out" / "1").read_bytes() == b"\2\1" * (2 << 20)
    assert files(tmp_path / "spool") == []


async def test_restore_follows_a_tree_that_replaces_the_one_it_waits_for(tmp_path: Path) -> None:
    """[02] The newer one is what it gives."""
    store = FaultyStore(MemoryStore())
    async with Runtime(store, spool=tmp_path / "spool", min_interval=0) as rt, rt.open("k") as cp:
        store.down = True
        await cp.save(make(tmp_path / "1", a=b"1"), state=b"1", move=True)
        async with anyio.create_task_group() as group:
            group.start_soon(cp.restore, tmp_path / "out")
            await true(lambda: bool(cp._held.waiters))
            await cp.save(make(tmp_path / "2", a=b"2"), state=b"2", move=True)
            store.down = False
    assert (tmp_path / "out" / "a").read_bytes() == b"2"


async def test_a_fenced_handle_moves_nothing(tmp_path: Path) -> None:
    """[03] Whoever knows that it is fenced leaves the source where it is."""
    store = MemoryStore()
    source = make(tmp_path / "source", a=b"precious")
    async with Runtime(store, spool=tmp_path / "spool", min_interval=0) as old_rt:
        opening = old_rt.open("k")
        old = await opening.__aenter__()
        async with aiocheckpoint.open(store, "k", spool=None):
            await old.write(b"late")
            with pytest.raises(FencedError):
                await old.flush()
            with pytest.raises(FencedError):
                await old.save(source, state=b"late", move=True)
            with pytest.raises(FencedError):
                await opening.__aexit__(None, None, None)
    assert (source / "a").read_bytes() == b"precious"


async def test_a_key_that_is_deleted_meanwhile_takes_no_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[03] The key is deleted while a tree is looked at: ClosedError, and the tree stays."""
    source = make(tmp_path / "source", a=b"precious")
    begun, go_on = threading.Event(), threading.Event()
    async with Runtime(MemoryStore(), spool=tmp_path / "spool", min_interval=0) as rt:
        plain = rt._running.writer.saves.check

        async def check(held: Held, path: Path) -> None:
            await plain(held, path)
            begun.set()
            while not go_on.is_set():  # noqa: ASYNC110 (another thread's event)
                await asyncio.sleep(0.001)

        async def move(cp: Checkpointer[bytes]) -> None:
            with pytest.raises(ClosedError):
                await cp.save(source, state=b"1", move=True)

        monkeypatch.setattr(rt._running.writer.saves, "check", check)
        async with rt.open("k") as cp, anyio.create_task_group() as group:
            await cp.write(b"0")
            group.start_soon(move, cp)
            await happened(begun)
            await cp.delete()
            go_on.set()
    assert (source / "a").read_bytes() == b"precious"


class HeldDelete(Wrapper):
    """A delete begins, and goes on when it is let."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.begun, self.go_on = threading.Event(), threading.Event()

    async def delete(self, key: str, expect: Version) -> None:
        self.begun.set()
        while not self.go_on.is_set():  # noqa: ASYNC110 (another thread's event)
            await asyncio.sleep(0.001)
        await super().delete(key, expect)


async def test_a_tree_that_is_moved_during_a_delete_is_set_aside(tmp_path: Path) -> None:
    """What was saved before goes with the key; what is moved meanwhile is kept."""
    store = HeldDelete(MemoryStore())
    spool = tmp_path / "spool"
    async with Runtime(store, spool=spool, min_interval=0) as rt, rt.open("k") as cp:
        await cp.save(make(tmp_path / "before", a=b"before"), state=b"0", move=True)
        await cp.flush()
        async with anyio.create_task_group() as group:
            group.start_soon(cp.delete)
            await happened(store.begun)
            await cp.save(make(tmp_path / "source", a=b"precious"), state=b"1", move=True)
            store.go_on.set()
    (kept,) = files(spool)
    assert kept.read_bytes() == b"precious"
    assert kept.parent.suffix == ".aside"


def test_a_kill_between_rename_and_staging_sets_the_files_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """[04] They are in no checkpoint: a WARNING says where they are, and no later open, nor delete
    of the spool's rest, touches them."""
    url = f"sqlite:{tmp_path}/s.db"
    run(
        """
        from pathlib import Path
        from tests.trees import make
        from aiocheckpoint import _slot
        async with aiocheckpoint.open(url, "k") as cp:
            await cp.write(b"old")
            _slot.Slot.put_tree = lambda *_: die()
            await cp.save(make(Path(args[0]), a=b"precious"), state=b"new", move=True)
        """,
        url,
        tmp_path / "source",
    )
    assert read_back(url) == b"old"
    (aside,) = tmp_path.rglob("*.aside")
    (told,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert str(aside) in told.getMessage()
    for _ in range(2):
        assert read_back(url) == b"old"
        assert (aside / "a").read_bytes() == b"precious"
    assert not list(tmp_path.rglob("*.tree"))


async def test_another_boot_sets_the_files_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """[35] What was staged before it may be half written: the state before is there, and so are
    the files, aside."""
    store = MemoryStore()
    spool = tmp_path / "spool"
    await left_behind(store, spool, make(tmp_path / "source", a=b"precious"))
    monkeypatch.setattr(_region, "boot_id", lambda: "another boot")
    for _ in range(2):
        async with aiocheckpoint.open(store, "k", spool=spool) as cp:
            assert await cp.read() == b"old"
            assert await cp.restore(tmp_path / "out") is None
        (aside,) = spool.rglob("*.aside")
        assert (aside / "a").read_bytes() == b"precious"
    assert str(aside) in caplog.text


async def test_a_move_with_a_state_too_large_for_the_spool_waits_for_the_store(
    tmp_path: Path,
) -> None:
    """[34] It returns only when both are stored, as a kill would have nothing to go by."""
    store = FaultyStore(MemoryStore())
    state = os.urandom((4 << 20) + 1)
    returned: list[int] = []
    source = make(tmp_path / "source", a=b"a")

    async with Runtime(store, spool=tmp_path / "spool", min_interval=0) as rt, rt.open("k") as cp:

        async def move() -> None:
            returned.append(await cp.save(source, state=state, move=True))

        async with anyio.create_task_group() as group:
            with store.held():
                begun = store.next_commit()
                group.start_soon(move)
                await happened(begun)
                await anyio.lowlevel.checkpoint()
                assert not source.exists()
                assert returned == []
        assert returned == [cp.statistics().stored]
        found = await cp.latest()
        assert found is not None
        assert (found.payload, found.files) == (state, 1)


async def test_a_tree_that_the_spool_names_stays_until_a_newer_one_is_stored(
    tmp_path: Path,
) -> None:
    """[05] A newer state that is too large for the spool does not take the older one's files
    along: an end of the process goes back to that, whole, and the newer files are set aside."""
    store = FaultyStore(MemoryStore())
    spool = tmp_path / "spool"
    first = make(tmp_path / "first", **MANY)
    before = seen(first)
    with pytest.raises(FlushTimeoutError):
        async with (
            Runtime(store, spool=spool, min_interval=0, flush_timeout=0) as rt,
            rt.open("k") as cp,
        ):
            store.down = True
            await cp.save(first, state=b"first", move=True)
            with pytest.raises(FlushTimeoutError):
                large = b"2" * (5 << 20)
                await cp.save(make(tmp_path / "second", a=b"2"), state=large, move=True)
            failed = cp.statistics().errors
            await true(lambda: cp.statistics().errors > failed)
    store.down = False
    async with aiocheckpoint.open(store, "k", spool=spool) as cp:
        assert await cp.read() == b"first"
        await cp.restore(tmp_path / "out")
    assert seen(tmp_path / "out") == before
    (aside,) = spool.rglob("*.aside")
    assert (aside / "a").read_bytes() == b"2"


async def test_half_a_tree_is_never_promoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[05] A removal that is cut short leaves what nobody takes for the tree."""
    store = MemoryStore()
    spool = tmp_path / "spool"
    tree = await left_behind(store, spool, make(tmp_path / "source", **MANY))

    def cut_short(path: Path) -> NoReturn:
        os.unlink(path / "file00")
        raise OSError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut_short)
        _spool.discard([tree])
    assert len(files(spool)) == len(MANY) - 1 + 1  # and the region
    async with aiocheckpoint.open(store, "k", spool=spool) as cp:
        assert await cp.read() == b"old"
        assert await cp.restore(tmp_path / "out") is None
    assert files(spool) == []


async def test_nothing_of_the_spool_is_left_after_clean_exits(tmp_path: Path) -> None:
    """[20, 37] Neither a region with a state, nor a tree, nor a directory."""
    spool = tmp_path / "s.db-spool"
    for count in (1, 60):
        async with Runtime(f"sqlite:{tmp_path}/s.db") as rt:
            for number in range(5):
                async with rt.open(f"k{number}") as cp:
                    data = {f"{n}": b"x" for n in range(count)}
                    await cp.save(make(tmp_path / "source", **data), state=b"SECRET", move=True)
        assert list(spool.rglob("*")) == []


async def test_trees_of_a_fenced_handle_are_removed_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[30] A tree takes its time, in which no other key may stand still; nothing of it is left."""
    memory = MemoryStore()
    store = FaultyStore(memory)
    plain = shutil.rmtree
    threads: list[str] = []

    def rmtree(path: Path) -> None:
        threads.append(threading.current_thread().name)
        plain(path)

    async with Runtime(store, spool=tmp_path / "spool", min_interval=0) as rt:
        with pytest.raises(FencedError):
            async with rt.open("k") as cp:
                store.down = True
                await cp.save(make(tmp_path / "source", **MANY), move=True)
                async with aiocheckpoint.open(memory, "k", spool=None):
                    pass
                store.down = False
                monkeypatch.setattr(shutil, "rmtree", rmtree)
                await cp.flush()
    assert threads
    assert "aiocheckpoint-io" not in threads
    assert files(tmp_path / "spool") == []


# Claims.


class LateClaim(Wrapper):
    """The first commit gets no answer, and lands as the second one comes."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.parked: Sequence[Put] | None = None

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        if self.parked is None:
            self.parked = batch
            raise StoreUnavailableError("no answer", op="commit")
        if self.parked:
            await self.store.commit(self.parked)
            self.parked = ()
        return await super().commit(batch)


async def test_a_claim_that_lands_late_leaves_the_key_whole(tmp_path: Path) -> None:
    """[07] The next try has put the moved tree anew: head, handle and blobs are of one of both."""
    memory = MemoryStore()
    spool = tmp_path / "spool"
    source = make(tmp_path / "source", **MANY)
    before = seen(source)
    await left_behind(memory, spool, source)
    async with (
        Runtime(LateClaim(memory), spool=spool, min_interval=0) as rt,
        rt.open("k") as cp,
    ):
        assert await cp.read() == b"new"
        await cp.restore(tmp_path / "1")
        await cp.write(b"next")
        await cp.flush()
        await cp.restore(tmp_path / "2")
    async with aiocheckpoint.open(memory, "k", spool=spool) as cp:
        assert await cp.read() == b"next"
        await cp.restore(tmp_path / "3")
    assert seen(tmp_path / "1") == seen(tmp_path / "2") == seen(tmp_path / "3") == before


async def test_a_zombie_whose_moved_tree_is_gone_is_fenced(tmp_path: Path) -> None:
    """[06] The newer attempt has taken the tree over: no StoreError that a runner would retry."""
    memory = MemoryStore()
    store = FaultyStore(memory)
    spool = tmp_path / "spool"
    async with Runtime(store, spool=spool, min_interval=0) as old_rt:
        opening = old_rt.open("k")
        old = await opening.__aenter__()
        await old.write(b"0")
        await old.flush()
        store.down = True
        await old.save(make(tmp_path / "source", a=b"1"), state=b"1", move=True)
        async with aiocheckpoint.open(memory, "k", spool=spool) as new:
            assert await new.read() == b"1"
            assert not list(spool.rglob("*.tree"))
            store.down = False
            with pytest.raises(FencedError):
                await old.flush()
            with pytest.raises(FencedError):
                await opening.__aexit__(None, None, None)
            await new.restore(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == b"1"


async def test_a_tree_that_is_stored_while_the_key_is_claimed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[12] The living older attempt stores its moved tree between our listing of the spool and
    our reading it: the claim is tried again, and finds it in the store."""
    memory = MemoryStore()
    store = FaultyStore(memory)
    spool = tmp_path / "spool"
    listed, go_on = threading.Event(), threading.Event()
    plain = _spool.left_over

    def left_over(directory: Path) -> list[Path]:
        found = plain(directory)
        listed.set()
        assert go_on.wait(10)
        return found

    async def claim() -> None:
        async with aiocheckpoint.open(memory, "k", spool=spool) as cp:
            assert await cp.read() == b"1"
            await cp.restore(tmp_path / "out")

    async with Runtime(store, spool=spool, min_interval=0) as rt, rt.open("k") as cp:
        await cp.write(b"0")
        await cp.flush()
        store.down = True
        await cp.save(make(tmp_path / "source", a=b"1"), state=b"1", move=True)
        (tree,) = spool.rglob("*.tree")
        monkeypatch.setattr(_spool, "left_over", left_over)
        async with anyio.create_task_group() as group:
            group.start_soon(claim)
            await happened(listed)
            store.down = False
            await cp.flush()
            await true(lambda: not tree.exists())
            go_on.set()
    assert (tmp_path / "out" / "a").read_bytes() == b"1"


async def test_a_superseded_handle_that_restores_is_told_so(tmp_path: Path) -> None:
    """[17] The newer attempt has replaced the files: FencedError, and not damage."""
    store = MemoryStore()
    source = make(tmp_path / "source", a=b"0")
    async with Runtime(store, spool=None, min_interval=0) as old_rt, old_rt.open("k") as old:
        await old.save(source, state=b"0")
        its = head(store).files
        assert its is not None
        async with Runtime(store, spool=None, min_interval=0) as rt, rt.open("k") as new:
            for number in range(1, 4):
                (source / "a").write_bytes(b"%d" % number * number)
                await new.save(source, state=b"%d" % number)
            await true(lambda: its.manifest.name not in store._blobs["k"])
            with pytest.raises(FencedError):
                await old.restore(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What a store does.


async def test_files_that_a_store_forgot_are_said_to_be_gone(tmp_path: Path) -> None:
    """[09] It went back in time, to before the files: no record names them, and a save mends it."""
    store = MemoryStore()
    source = make(tmp_path / "source", a=b"a")
    async with Runtime(store, spool=None, min_interval=0) as rt:
        async with rt.open("k") as cp:
            await cp.write(b"before")
            await cp.flush()
            heads, blobs = dict(store._heads), {k: dict(v) for k, v in store._blobs.items()}
            await cp.save(source, state=b"with files")
            store._heads, store._blobs = heads, blobs
            await cp.write(b"after")
            with pytest.raises(StoreError, match="save them again"):
                await cp.flush()
            await cp.save(source, state=b"again")
        async with rt.open("k") as cp:
            assert await cp.read() == b"again"
            await cp.restore(tmp_path / "out")
    assert seen(tmp_path / "out") == seen(source)


@pytest.mark.parametrize("keep", [1, 2])
async def test_a_pack_that_is_missing_is_stored_anew(tmp_path: Path, keep: int) -> None:
    """[10] The next save builds on nothing that is not there."""
    store = MemoryStore()
    source = make(tmp_path / "source", **MANY)
    async with Runtime(store, spool=None, min_interval=0) as rt:
        async with rt.open("k", keep=keep) as cp:
            await cp.save(source)
            (pack,) = [name for name in store._blobs["k"] if name.startswith("pack-")]
            del store._blobs["k"][pack]
            (source / "file00").write_bytes(b"changed")
            await cp.save(source)
        async with rt.open("k", keep=keep) as cp:
            await cp.restore(tmp_path / "out")
    assert seen(tmp_path / "out") == seen(source)


class Blip(Wrapper):
    """Cannot be read from, once."""

    left = 0

    async def open_blob(
        self, key: str, name: str, start: int = 0, size: int | None = None
    ) -> AsyncIterator[bytes]:
        if self.left:
            self.left -= 1
            raise StoreUnavailableError("a blip", op="open_blob", key=key)
        async for chunk in super().open_blob(key, name, start, size):
            yield chunk


async def test_restore_goes_on_after_a_blip(tmp_path: Path) -> None:
    """[36] Like a save, it is tried again."""
    store = Blip(MemoryStore())
    source = make(tmp_path / "source", a=b"a")
    async with aiocheckpoint.open(store, "k") as cp:
        await cp.save(source)
        store.left = 2
        await cp.restore(tmp_path / "out")
        assert store.left == 0
    assert seen(tmp_path / "out") == seen(source)
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]


# Blobs that nobody names.


async def test_cancelled_saves_do_not_stop_collection(tmp_path: Path) -> None:
    """[08] A save that is cancelled at its first wait takes back that it builds on blobs."""
    store = MemoryStore()
    source = make(tmp_path / "source", a=b"a")
    async with Runtime(store, spool=None, min_interval=0) as rt, rt.open("k") as cp:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await cp.save(source)
        for number in range(10):
            (source / "a").write_bytes(b"%d" % number)
            await cp.save(source)
        await true(lambda: len(store._blobs["k"]) <= 4)


async def test_a_delete_during_a_save_leaves_no_blobs(tmp_path: Path) -> None:
    """[15] What the save puts after the key was deleted goes as well."""
    memory = MemoryStore()
    store = Gated(memory, "chunk")
    source = make(tmp_path / "source", **MANY)
    refused: list[bool] = []
    async with Runtime(store, spool=None, min_interval=0) as rt, rt.open("k") as cp:

        async def save() -> None:
            with pytest.raises(ClosedError):
                await cp.save(source)
            refused.append(True)

        await cp.write(b"0")
        await cp.flush()
        async with anyio.create_task_group() as group:
            group.start_soon(save)
            await happened(store.reached)
            await cp.delete()
            store.go_on.set()
    assert refused
    assert memory._heads == {}
    assert memory._blobs == {}


async def test_saves_that_replace_each_other_leave_no_blobs(tmp_path: Path) -> None:
    """[31] In the end there are the blobs of the files that are in the record, and no others."""
    store = MemoryStore()
    async with Runtime(store, spool=None, min_interval=0) as rt, rt.open("k") as cp:

        async def save(task: int) -> None:
            path = tmp_path / f"{task}"
            for number in range(8):
                path.write_bytes(b"%d of %d" % (number, task))
                await cp.save(path)

        async with anyio.create_task_group() as group:
            for task in range(3):
                group.start_soon(save, task)
        for number in range(3):
            await cp.write(b"%d" % number)
            await cp.flush()
        found = head(store).files
        assert found is not None
        await true(lambda: set(store._blobs["k"]) == found.blobs)


# Of two that come at once, the later called wins.


class Interrupted:
    """Numbers; as one is drawn a signal handler writes, before or after it has its value."""

    def __init__(self, cp: Checkpointer[bytes], when: str) -> None:
        self._numbers = cp._slot.numbers
        self._cp = cp
        self._when: str | None = when

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        when, self._when = self._when, None
        if when == "before":
            self._cp.write_nowait(b"signal")
        number = next(self._numbers)
        if when == "after":
            self._cp.write_nowait(b"signal")
        return number


@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_signal_handler_that_interrupts_a_save_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, with_state: bool, move: bool
) -> None:
    """[16] What it writes is newer than what the save was called with."""
    store = MemoryStore()
    source = make(tmp_path / "source", a=b"a")
    async with Runtime(store, spool=tmp_path / "spool", min_interval=0) as rt:
        async with rt.open("k") as cp:
            await cp.write(b"0")
            monkeypatch.setattr(cp._slot, "numbers", Interrupted(cp, when))
            if with_state:
                await cp.save(source, state=b"1", move=move)
            else:
                await cp.save(source, move=move)
            assert await cp.read() == b"signal"
        async with rt.open("k") as cp:
            assert await cp.read() == b"signal"
            await cp.restore(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == b"a"


@pytest.mark.parametrize("with_state", [False, True])
async def test_a_write_during_a_save_wins_over_its_state(tmp_path: Path, with_state: bool) -> None:
    """[17] It was called later; the files are the save's."""
    memory = MemoryStore()
    store = Gated(memory, "chunk")
    source = make(tmp_path / "source", a=b"a")
    async with Runtime(store, spool=None, min_interval=0) as rt, rt.open("k") as cp:
        await cp.write(b"0")

        async def save() -> None:
            if with_state:
                await cp.save(source, state=b"1")
            else:
                await cp.save(source)

        async with anyio.create_task_group() as group:
            group.start_soon(save)
            await happened(store.reached)
            await cp.write(b"2")
            store.go_on.set()
        assert await cp.read() == b"2"
        await cp.restore(tmp_path / "out")
    assert seen(tmp_path / "out") == seen(source)
    async with aiocheckpoint.open(memory, "k") as cp:
        assert await cp.read() == b"2"
        assert await cp.restore(tmp_path / "again")


async def test_of_two_saves_the_later_called_wins(tmp_path: Path) -> None:
    """[17] Though it has ended long before the earlier one, whose files take their time."""
    memory = MemoryStore()
    store = Gated(memory, "chunk")
    first, second = make(tmp_path / "1", a=b"1"), make(tmp_path / "2", a=b"2")
    async with Runtime(store, spool=None, min_interval=0) as rt, rt.open("k") as cp:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: cp.save(first, state=b"1"))
            await happened(store.reached)
            await cp.save(second, state=b"2")
            store.go_on.set()
        assert await cp.read() == b"2"
    async with aiocheckpoint.open(memory, "k") as cp:
        assert await cp.read() == b"2"
        await cp.restore(tmp_path / "out")
    assert seen(tmp_path / "out") == seen(second)


# Trees and places.


@on_asyncio
@pytest.mark.parametrize("move", [False, True])
async def test_a_file_of_a_time_that_no_checkpoint_can_name_is_saved(
    tmp_path: Path, move: bool
) -> None:
    """[11] Past the year 2554 it gets the last time that there is a number for."""
    with small_disk(tmp_path / "disk", "2m") as disk:
        source = make(disk / "source", a=b"a")
        os.utime(source / "a", (40_000_000_000,) * 2)
        if os.stat(source / "a").st_mtime != 40_000_000_000:
            pytest.skip("this file system has no such times")
        store = MemoryStore()
        async with aiocheckpoint.open(store, "k", spool=disk / "spool") as cp:
            await cp.save(source, state=b"1", move=move)
        async with aiocheckpoint.open(store, "k") as cp:
            await cp.restore(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == b"a"


def make_deep(top: Path, length: int) -> Path:
    """A tree with a file whose path has so many bytes, or a few more."""
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    left = length - len(os.fsencode(top))
    while left > 0:
        name = "d" * 100
        os.mkdir(name, dir_fd=here)
        above, here = here, os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(above)
        left -= 101
    with open(os.open("x", os.O_WRONLY | os.O_CREAT, dir_fd=here), "wb") as file:
        file.write(b"deep")
    os.close(here)
    return top


@on_asyncio
@pytest.mark.parametrize("length", [3900, 5000])
async def test_a_moved_tree_with_paths_too_long_for_the_system_is_stored(
    tmp_path: Path, length: int
) -> None:
    """[11] In the spool they are longer than they were, perhaps too long; it does not matter."""
    source = make_deep(tmp_path / "s", length)
    spool = tmp_path / ("spool" * 40)
    before = [(found.path, found.kind, found.size) for found in _trees.scan(source)]
    store = MemoryStore()
    async with aiocheckpoint.open(store, "k", spool=spool) as cp:
        await cp.save(source, state=b"1", move=True)
    async with aiocheckpoint.open(store, "k") as cp:
        await cp.restore(tmp_path / "o")
    after = [(found.path, found.kind, found.size) for found in _trees.scan(tmp_path / "o")]
    assert [each[0] for each in after] == [each[0] for each in before]
    assert after[-1] == before[-1]
    assert not list(spool.glob("*"))


@pytest.mark.parametrize("nth", [1, 2])
async def test_a_directory_that_becomes_a_link_meanwhile_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """[24] Whoever may write in the tree swaps it as it is listed, or as it is read: nothing of
    what the link leads to is saved."""
    secret = make(tmp_path / "secret", inside=b"SECRET")
    source = make(tmp_path / "source", d__inside=b"inside")
    plain = _trees.Walk.directory
    calls: list[bytes] = []

    def directory(walk: _trees.Walk, path: bytes) -> int:
        if path == b"d":
            calls.append(path)
            if len(calls) == nth:
                (source / "d").rename(tmp_path / "d")
                (source / "d").symlink_to(secret)
        return plain(walk, path)

    monkeypatch.setattr(_trees.Walk, "directory", directory)
    store = MemoryStore()
    async with aiocheckpoint.open(store, "k") as cp:
        with pytest.raises(OSError, match="d") as caught:
            await cp.save(source, state=b"1")
        assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
        assert len(calls) == nth
        assert await cp.restore(tmp_path / "out") is None
    assert not [blob for blob in store._blobs.get("k", {}).values() if b"SECRET" in blob]


async def test_a_single_file_that_changes_meanwhile_is_named(tmp_path: Path) -> None:
    """[27] The error says which file it is, also if that is all there is."""
    store = Gated(MemoryStore(), "chunk")
    source = tmp_path / "model.bin"
    source.write_bytes(b"A" * (9 << 20))

    async with aiocheckpoint.open(store, "k") as cp:

        async def save() -> None:
            with pytest.raises(OSError, match="was changed while it was saved") as caught:
                await cp.save(source)
            assert caught.value.filename == str(source)

        async with anyio.create_task_group() as group:
            group.start_soon(save)
            await happened(store.reached)
            with source.open("ab") as file:
                file.write(b"B")
            store.go_on.set()
        assert await cp.restore(tmp_path / "out") is None


@pytest.mark.parametrize("scheme", ["sqlite", "file"])
async def test_a_directory_that_holds_the_store_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """[29] Each save would hold all those before it; moved, the store would be gone."""
    base = make(tmp_path / "base", a=b"a")
    monkeypatch.chdir(base)
    async with aiocheckpoint.open(f"{scheme}:s", "k") as cp:
        for path in (base, ".", tmp_path, base / ".." / "base"):
            for move in (False, True):
                with pytest.raises(OSError, match="holds the store"):
                    await cp.save(path, move=move)
                with pytest.raises(OSError, match=r"\] is the store"):
                    await cp.save("s", move=move)
                if scheme == "file":
                    with pytest.raises(OSError, match="is in the store"):
                        await cp.save("s/k", move=move)
        assert await cp.restore(tmp_path / "out") is None
    assert (base / "a").read_bytes() == b"a"


def test_what_a_killed_restore_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """[18] However often it is killed."""
    url = f"sqlite:{tmp_path}/s.db"
    source = make(tmp_path / "source", a=b"a", large=b"large" * 1_000_000)

    def hidden() -> list[str]:
        return [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]

    async def save() -> None:
        async with aiocheckpoint.open(url, "k") as cp:
            await cp.save(source)

    async def restore() -> None:
        async with aiocheckpoint.open(url, "k") as cp:
            await cp.restore(tmp_path / "out")

    asyncio.run(save())
    for _ in range(2):
        run(
            """
            from aiocheckpoint import _unpacking
            _unpacking._Place.finish = lambda *_: die()
            async with aiocheckpoint.open(url, "k") as cp:
                await cp.restore(args[0])
            """,
            url,
            tmp_path / "out",
        )
        assert len(hidden()) == 1
    asyncio.run(restore())
    assert hidden() == []
    assert seen(tmp_path / "out") == seen(source)


@on_asyncio
async def test_files_are_restored_into_an_empty_mount(tmp_path: Path) -> None:
    """[13] Onto which nothing can be renamed."""
    source = make(tmp_path / "source", a=b"a", b__c=b"c")
    async with aiocheckpoint.open("memory:", "k") as cp:
        await cp.save(source)
        with small_disk(tmp_path / "volume", "4m") as volume:
            await cp.restore(volume)
            assert seen(volume) == seen(source)


async def test_files_are_restored_to_places_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[13] To `.`, and to the longest names."""
    source = make(tmp_path / "source", a=b"a", b__c=b"c")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    async with aiocheckpoint.open("memory:", "k") as cp:
        await cp.save(source)
        await cp.restore(".")
        assert seen(here) == seen(source)
        for name in ("猫" * 80, "n" * 255):
            await cp.restore(tmp_path / name)
            assert seen(tmp_path / name) == seen(source)


async def test_relative_paths_mean_what_they_meant_at_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[13] Whoever changes the directory meanwhile changes no save's or restore's place."""
    make(tmp_path / "source", a=b"right")
    make(tmp_path / "elsewhere" / "source", a=b"wrong")
    begun, go_on = threading.Event(), threading.Event()
    async with Runtime(MemoryStore(), spool=None) as rt, rt.open("k") as cp:
        saves = rt._running.writer.saves
        save, restore = saves.save, saves.restore

        async def wait() -> None:
            begun.set()
            while not go_on.is_set():  # noqa: ASYNC110 (another thread's event)
                await asyncio.sleep(0.001)
            begun.clear()
            go_on.clear()

        async def late_save(*args: Any) -> Files:
            await wait()
            return await save(*args)

        async def late_restore(*args: Any) -> bool:
            await wait()
            return await restore(*args)

        monkeypatch.setattr(saves, "save", late_save)
        monkeypatch.setattr(saves, "restore", late_restore)
        for call in (lambda: cp.save("source"), lambda: cp.restore("out")):
            monkeypatch.chdir(tmp_path)
            async with anyio.create_task_group() as group:
                group.start_soon(call)
                await happened(begun)
                monkeypatch.chdir(tmp_path / "elsewhere")
                go_on.set()
    assert (tmp_path / "out" / "a").read_bytes() == b"right"


async def test_a_generation_of_a_later_version_is_kept_and_the_key_opens(tmp_path: Path) -> None:
    """What a newer aiocheckpoint has put beside the head is not read, and not collected either."""
    store = MemoryStore()
    async with Runtime(store, keep=2, min_interval=0) as rt:
        async with rt.open("k") as cp:
            await cp.save(make(tmp_path / "source", a=b"a"), state=b"1")
        later = next(name for name in sorted(store._blobs["k"]) if name.startswith("gen-"))
        frame = store._blobs["k"][later]
        body = frame[:8] + (2).to_bytes(2, "little") + frame[10:-16]
        store._blobs["k"][later] = body + xxhash.xxh3_128_digest(body)
        before = set(store._blobs["k"])
        async with rt.open("k") as cp:
            assert await cp.read() == b"1"
            await cp.restore(tmp_path / "out")
            assert before <= set(store._blobs["k"])
    assert seen(tmp_path / "out") == seen(tmp_path / "source")
