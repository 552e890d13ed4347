"""Saves and restores that are cancelled or fail: what was there before is whole."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import aiocheckpoint
from aiocheckpoint import (
    Checkpointer,
    CorruptCheckpointError,
    FlushTimeoutError,
    Runtime,
    StoreError,
    StoreUnavailableError,
    _packing,
    _unpacking,
)
from aiocheckpoint.abc import Source, Store
from aiocheckpoint.stores import open_store
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import FaultyStore, Wrapper

from .children import read_back, run, small_disk
from .support import files, happened, io_threads_end, on_asyncio, true
from .trees import make, make_odd, seen


class Gated(Wrapper):
    """Stops at the n-th call of one kind, until it is let go on."""

    def __init__(self, store: Store, op: str, n: int = 1) -> None:
        super().__init__(store)
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self._op = op
        self._left = n

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        if isinstance(source, bytes):
            await self._gate("put_blob")
            await super().put_blob(key, name, source)
            return

        async def gated() -> AsyncIterator[bytes]:
            async for chunk in source:
                await self._gate("chunk")
                yield chunk

        await super().put_blob(key, name, gated())

    async def open_blob(
        self, key: str, name: str, start: int = 0, size: int | None = None
    ) -> AsyncIterator[bytes]:
        async for chunk in super().open_blob(key, name, start, size):
            await self._gate("open_blob")
            yield chunk

    async def _gate(self, op: str) -> None:
        if op != self._op:
            return
        self._left -= 1
        if self._left == 0:
            self.reached.set()
            while not self.go_on.is_set():  # noqa: ASYNC110 (another thread's event)
                await asyncio.sleep(0.001)


async def before(cp: Checkpointer[bytes], base: Path) -> Path:
    """A checkpoint that is to be there afterwards."""
    source = make(base / "before", a=b"before", large=b"before" * 1_000_000)
    await cp.save(source, state=b"before")
    return source


async def is_whole(cp: Checkpointer[bytes], base: Path) -> None:
    """The checkpoint that was there before, and nothing else, is there."""
    assert await cp.read() == b"before"
    target = base / f"whole{os.urandom(4).hex()}"
    await cp.restore(target)
    assert seen(target) == seen(base / "before")


# Cancelling.


@pytest.mark.parametrize(("op", "n"), [("chunk", 1), ("chunk", 2), ("put_blob", 1)])
@pytest.mark.parametrize("scheme", ["file", "sqlite"])
async def test_a_cancelled_save_changes_nothing(
    tmp_path: Path, scheme: str, op: str, n: int
) -> None:
    """Cancelled at the first chunk, between chunks, or before the manifest: the checkpoint before
    is whole, no temporary file stays, and the next save goes well."""
    inner = open_store(f"{scheme}:{tmp_path}/s")
    async with Runtime(inner, min_interval=0) as rt, rt.open("k") as cp:
        await before(cp, tmp_path)
    store = Gated(inner, op, n)
    source = make_odd(tmp_path / "source")
    async with Runtime(store, min_interval=0) as rt:
        async with rt.open("k") as cp:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: cp.save(source, state=b"new"))
                await happened(store.reached)
                group.cancel_scope.cancel()
            store.go_on.set()
            await is_whole(cp, tmp_path)
            await cp.write(b"before")
        async with rt.open("k") as cp:
            await is_whole(cp, tmp_path)
            await cp.save(source, state=b"new")
            await cp.restore(tmp_path / "out")
    await inner.aclose()
    assert seen(tmp_path / "out") == seen(source)
    assert not [path for path in files(tmp_path) if ".tmp-" in path.name]


@on_asyncio
async def test_a_save_that_is_cancelled_twice_changes_nothing(tmp_path: Path) -> None:
    """Two native cancels, one after the other."""
    store = Gated(MemoryStore(), "chunk", 3)
    async with Runtime(store, min_interval=0) as rt, rt.open("k") as cp:
        store._left = 0
        await before(cp, tmp_path)
        store._left = 3
        source = make(tmp_path / "new", large=os.urandom(9 << 20))
        task = asyncio.ensure_future(cp.save(source, state=b"new"))
        await happened(store.reached)
        task.cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        store.go_on.set()
        await is_whole(cp, tmp_path)


async def test_a_save_cancelled_after_it_was_staged_stands(tmp_path: Path) -> None:
    """When the files are in the store and the record is under way, leaving stores it."""
    store = FaultyStore(MemoryStore())
    source = make(tmp_path / "new", a=b"new")
    async with Runtime(store, min_interval=0) as rt:
        async with rt.open("k") as cp:
            await before(cp, tmp_path)
            with store.held():
                begun = store.next_commit()
                async with anyio.create_task_group() as group:
                    group.start_soon(lambda: cp.save(source, state=b"new"))
                    await happened(begun)
                    group.cancel_scope.cancel()
                assert await cp.read() == b"new"
        async with rt.open("k") as cp:
            assert await cp.read() == b"new"
            await cp.restore(tmp_path / "out")
    assert seen(tmp_path / "out") == seen(source)


@pytest.mark.parametrize("n", [1, 2, 4])
async def test_a_cancelled_restore_leaves_nothing(tmp_path: Path, n: int) -> None:
    """Neither a target nor a temporary one; the files can be restored afterwards."""
    inner = MemoryStore()
    source = make_odd(tmp_path / "source")
    async with aiocheckpoint.open(inner, "k") as cp:
        await cp.save(source)
    store = Gated(inner, "open_blob", n)
    out = tmp_path / "out"
    out.mkdir()
    store._left = 0  # not while the key is opened
    async with aiocheckpoint.open(store, "k") as cp:
        store._left = n
        async with anyio.create_task_group() as group:
            group.start_soon(cp.restore, out / "tree")
            await happened(store.reached)
            group.cancel_scope.cancel()
        store.go_on.set()
        await true(lambda: os.listdir(out) == [])
        await cp.restore(out / "tree")
    assert seen(out / "tree") == seen(source)


@on_asyncio
async def test_runtime_ends_after_a_restore_that_is_cancelled_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second cancel ends the wait for the restore. The end of the runtime, which comes next,
    lets it clean up all the same."""
    store = MemoryStore()
    async with aiocheckpoint.open(store, "k") as cp:
        await cp.save(make(tmp_path / "source", a=b"a"))
    making, removing, go_on = threading.Event(), threading.Event(), threading.Event()
    make_entries, end = _unpacking._Place.make, _unpacking._Place.end

    def slow_make(place: Any, batch: Any) -> None:
        making.set()
        assert go_on.wait(10)
        make_entries(place, batch)

    def seen_end(place: Any) -> None:
        removing.set()
        end(place)

    monkeypatch.setattr(_unpacking._Place, "make", slow_make)
    monkeypatch.setattr(_unpacking._Place, "end", seen_end)
    out = tmp_path / "out"
    out.mkdir()

    async def restore() -> None:
        async with aiocheckpoint.open(store, "k") as cp:
            await cp.restore(out / "tree")

    task = asyncio.ensure_future(restore())
    await happened(making)
    task.cancel()
    while task.cancelling() < 2:
        await asyncio.sleep(0)
        task.cancel()
    assert not await anyio.to_thread.run_sync(removing.wait, 0.2), "removed while it is made"
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert os.listdir(out) == []


@on_asyncio
async def test_runtime_ends_after_a_claim_that_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that stores what the spool has is not waited for when it is cancelled. The end of
    the runtime, which comes next, lets it close its files all the same."""
    memory, spool = MemoryStore(), tmp_path / "spool"
    store = FaultyStore(memory)
    with pytest.raises(FlushTimeoutError):
        async with aiocheckpoint.open(store, "k", spool=spool, flush_timeout=0) as cp:
            store.down = True
            moved = make(tmp_path / "source", large=b"x" * 300_000)
            await cp.save(moved, state=b"1", move=True)
    reached, go_on, opened = threading.Event(), threading.Event(), threading.Event()
    open_file = _packing.Packing._open

    def slow_open(packing: Any, found: Any) -> int:
        reached.set()
        assert go_on.wait(10)
        descriptor = open_file(packing, found)
        opened.set()
        return descriptor

    monkeypatch.setattr(_packing.Packing, "_open", slow_open)

    async def open_again() -> None:
        async with aiocheckpoint.open(memory, "k", spool=spool):
            raise AssertionError("it was to be cancelled")

    task = asyncio.ensure_future(open_again())
    await happened(reached)
    task.cancel()
    await asyncio.wait({task}, timeout=0.2)  # whatever is not waited for has its time to end
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert opened.is_set()
    assert io_threads_end()
    open_files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    theirs = [path for path in open_files if path.startswith(str(tmp_path))]
    assert not [path for path in theirs if "/#" not in path]  # that one has the regions, as `cp` is


# Stores that fail.


async def test_a_save_waits_for_a_store_that_is_down(tmp_path: Path) -> None:
    """It is tried again until the store is back."""
    store = FaultyStore(MemoryStore())
    source = make(tmp_path / "new", a=b"new")
    async with Runtime(store, min_interval=0) as rt, rt.open("k") as cp:
        await before(cp, tmp_path)
        store.down = True
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: cp.save(source, state=b"new"))
            failed = cp.statistics().errors
            await true(lambda: cp.statistics().errors >= failed + 2)
            assert await cp.read() == b"before"
            store.down = False
        assert await cp.read() == b"new"
        await cp.restore(tmp_path / "out")
    assert seen(tmp_path / "out") == seen(source)


async def test_a_save_gives_up_after_flush_timeout(tmp_path: Path) -> None:
    """StoreUnavailableError, and all is as it was; a record that is not stored in time is a
    FlushTimeoutError, and is stored later."""
    store = FaultyStore(MemoryStore())
    source = make(tmp_path / "new", a=b"new")
    async with Runtime(store, min_interval=0) as rt:
        async with rt.open("k", flush_timeout=0.2) as cp:
            await before(cp, tmp_path)
            store.down = True
            with pytest.raises(StoreUnavailableError):
                await cp.save(source, state=b"new")
            store.down = False
            await is_whole(cp, tmp_path)
            with store.held():
                with pytest.raises(FlushTimeoutError):
                    await cp.save(source, state=b"new")
                assert await cp.read() == b"new"
        async with rt.open("k") as cp:
            assert await cp.read() == b"new"
            await cp.restore(tmp_path / "out")
    assert seen(tmp_path / "out") == seen(source)


class Refusing(Wrapper):
    """Takes no blob: they are too large for it."""

    refuses = False

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        if self.refuses:
            raise StoreError("too large", op="put_blob", key=key)
        await super().put_blob(key, name, source)


async def test_a_store_that_refuses_files_says_so(tmp_path: Path) -> None:
    """The save raises what the store said. A moved tree is told at the next write, and a save
    that goes well mends it."""
    store = Refusing(MemoryStore())
    source = make(tmp_path / "new", a=b"new")
    async with Runtime(store, min_interval=0, spool=tmp_path / "spool") as rt, rt.open("k") as cp:
        await before(cp, tmp_path)
        store.refuses = True
        with pytest.raises(StoreError, match="too large"):
            await cp.save(source, state=b"new")
        await is_whole(cp, tmp_path)
        await cp.save(source, state=b"new", move=True)
        with pytest.raises(StoreError, match="too large"):
            await cp.flush()
        with pytest.raises(StoreError, match="too large"):
            await cp.write(b"newer")
        store.refuses = False
        await cp.save(tmp_path / "before", state=b"mended")
        await cp.write(b"after")
        await cp.restore(tmp_path / "out")
    assert seen(tmp_path / "out") == seen(tmp_path / "before")
    assert files(tmp_path / "spool") == []


async def test_answers_that_are_lost_around_a_save_lose_nothing(tmp_path: Path) -> None:
    """The record of a save was stored, the answer did not come: it is committed once more."""
    store = FaultyStore(MemoryStore())
    async with Runtime(store, min_interval=0, keep=2) as rt:
        async with rt.open("k") as cp:
            for number in range(6):
                store.lose_answers(number % 3)
                source = make(tmp_path / f"{number}", file=b"%d" % number * 1000)
                await cp.save(source, state=b"%d" % number)
        async with rt.open("k") as cp:
            assert await cp.read() == b"5"
            await cp.restore(tmp_path / "out")
    assert (tmp_path / "out" / "file").read_bytes() == b"5" * 1000


# Full disks.


@on_asyncio
async def test_a_disk_that_fills_up_in_mid_save_keeps_what_was_there(tmp_path: Path) -> None:
    """An error that names the disk; the checkpoint before is whole, and with room the save goes
    well."""
    with small_disk(tmp_path / "disk", "24m") as disk:
        source = make(tmp_path / "new", large=os.urandom(20 << 20))
        async with aiocheckpoint.open(f"file:{disk}/s", "k", flush_timeout=0.3) as cp:
            await before(cp, tmp_path)
            with pytest.raises(StoreUnavailableError, match="free some space"):
                await cp.save(source, state=b"new")
            await is_whole(cp, tmp_path)
            assert not [path for path in files(disk) if ".tmp-" in path.name]
            os.truncate(source / "large", 9 << 20)
            await cp.save(source, state=b"new")
        async with aiocheckpoint.open(f"file:{disk}/s", "k") as cp:
            assert await cp.read() == b"new"
            await cp.restore(tmp_path / "out")
        assert seen(tmp_path / "out") == seen(source)


@on_asyncio
async def test_a_disk_that_fills_up_in_mid_restore_is_left_empty(tmp_path: Path) -> None:
    """ENOSPC with a note; nothing stays, and it goes well elsewhere."""
    source = make_odd(tmp_path / "source")
    async with aiocheckpoint.open(f"file:{tmp_path}/s", "k") as cp:
        await cp.save(source)
        with small_disk(tmp_path / "disk", "4m") as disk:
            with pytest.raises(OSError, match="No space left") as caught:
                await cp.restore(disk / "tree")
            assert caught.value.errno == errno.ENOSPC
            assert "were not restored to" in caught.value.__notes__[0]
            assert os.listdir(disk) == []
        await cp.restore(tmp_path / "out")
    assert seen(tmp_path / "out") == seen(source)


async def test_a_spool_on_another_file_system_takes_no_tree(tmp_path: Path) -> None:
    """The error says what to do, and the tree stays where it was."""
    source = make(tmp_path / "source", a=b"a")
    with small_disk(tmp_path / "disk", "2m") as disk:
        async with aiocheckpoint.open("memory:", "k", spool=disk) as cp:
            with pytest.raises(OSError, match="on another file system: open with spool=") as caught:
                await cp.save(source, state=b"1", move=True)
            assert caught.value.errno == errno.EXDEV
            assert (source / "a").read_bytes() == b"a"
            assert await cp.read() is None
            await cp.save(source, state=b"1")


# Bad input.


async def test_move_needs_a_spool_and_no_link(tmp_path: Path) -> None:
    """Both errors say what to do instead; nothing is moved."""
    source = make(tmp_path / "source", a=b"a")
    (tmp_path / "link").symlink_to("source")
    async with aiocheckpoint.open("memory:", "k", spool=None) as cp:
        with pytest.raises(ValueError, match="open it with spool= a directory"):
            await cp.save(source, move=True)
    async with aiocheckpoint.open("memory:", "k", spool=tmp_path / "spool") as cp:
        with pytest.raises(OSError, match="is a link: move what it leads to"):
            await cp.save(tmp_path / "link", move=True)
        os.mkfifo(source / "fifo")
        with pytest.raises(OSError, match="is a FIFO"):
            await cp.save(source, move=True)
    assert sorted(os.listdir(source)) == ["a", "fifo"]
    assert (tmp_path / "link").is_symlink()


async def test_states_that_cannot_be_encoded_change_nothing(tmp_path: Path) -> None:
    """CodecError before anything happens, also with move=True."""
    source = make(tmp_path / "source", a=b"a")
    store = FaultyStore(MemoryStore())
    async with aiocheckpoint.open(store, "k", spool=tmp_path / "spool") as cp:
        for state in (None, object()):
            for move in (False, True):
                with pytest.raises(aiocheckpoint.CodecError):
                    await cp.save(source, state=state, move=move)  # type: ignore[arg-type]
        assert store.calls["put_blob"] == 0
    assert (source / "a").exists()


def test_an_unreadable_file_is_named_and_nothing_changes(tmp_path: Path) -> None:
    """PermissionError with the file's name, as a user that is not root."""
    body = """
        import aiocheckpoint.stores.file, encodings.idna
        from pathlib import Path
        base = Path(url)
        if os.geteuid() == 0:
            os.setegid(65534)
            os.seteuid(65534)
        (base / "tree").mkdir()
        (base / "tree" / "secret").write_bytes(b"secret")
        async with aiocheckpoint.open(f"file:{base}/s", "k") as cp:
            await cp.save(base / "tree", state=b"before")
            os.chmod(base / "tree" / "secret", 0)
            for move in (False, True):
                try:
                    await cp.save(base / "tree", state=b"new")
                except PermissionError as exc:
                    print(exc, flush=True)
            await cp.restore(base / "out")
            print((await cp.read()).decode(), (base / "out" / "secret").read_text(), flush=True)
            (base / "locked").mkdir(mode=0)
            try:
                await cp.restore(base / "locked" / "out")
            except PermissionError as exc:
                print(exc, flush=True)
            os.chmod(base / "locked", 0o700)
    """
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:
        parent.chmod(parent.stat().st_mode | 0o011)
    lines = run(body, str(tmp_path))
    assert len(lines) == 4
    assert all("Permission denied" in line for line in (*lines[:2], lines[3]))
    assert "secret" in lines[0]
    assert lines[2] == "before secret"


async def test_a_missing_pack_is_noticed_when_the_key_is_opened(tmp_path: Path) -> None:
    """With files of which blobs are gone the key does not open, rather than begin anew."""
    store = MemoryStore()
    async with aiocheckpoint.open(store, "k") as cp:
        await cp.save(make(tmp_path / "source", a=b"a"), state=b"1")
    for prefix in ("pack-", "tree-"):
        (name,) = [name for name in store._blobs["k"] if name.startswith(prefix)]
        blob = store._blobs["k"].pop(name)
        with pytest.raises(CorruptCheckpointError, match=r"missing: no " + name):
            async with aiocheckpoint.open(store, "k"):
                pass
        store._blobs["k"][name] = blob
    async with aiocheckpoint.open(store, "k") as cp:
        assert await cp.restore(tmp_path / "out")


async def test_files_that_vanish_from_the_spool_are_said_to(tmp_path: Path) -> None:
    """A moved tree that somebody removed before it was stored is an error at the next write; a
    save mends it."""
    store = FaultyStore(MemoryStore())
    spool = tmp_path / "spool"
    async with Runtime(store, min_interval=0, spool=spool) as rt, rt.open("k") as cp:
        await before(cp, tmp_path)
        store.down = True
        await cp.save(make(tmp_path / "new", a=b"new"), state=b"new", move=True)
        (tree,) = spool.rglob("*.tree")
        (tree / "a").rename(tmp_path / "taken")
        tree.rmdir()
        store.down = False
        with pytest.raises(StoreError, match="save them again"):
            await cp.flush()
        await cp.save(tmp_path / "before", state=b"again")
        await cp.restore(tmp_path / "out")
    assert seen(tmp_path / "out") == seen(tmp_path / "before")


@pytest.mark.parametrize("moment", ["moved", "staged"])
def test_a_kill_between_rename_and_staging_loses_no_older_state(
    tmp_path: Path, moment: str
) -> None:
    """A tree that was taken and not yet staged is nobody's; the state before it is there."""
    url = f"sqlite:{tmp_path}/s.db"
    run(
        """
        from pathlib import Path
        from tests.trees import make
        from aiocheckpoint import _slot, _spool
        base = Path(args[0])
        async with aiocheckpoint.open(url, "k") as cp:
            await cp.write(b"1")
            if args[1] == "moved":
                _slot.Slot.put_tree = lambda *_: die()
            else:
                plain = _slot.Slot.put_tree
                _slot.Slot.put_tree = lambda *a: (plain(*a), die())
            await cp.save(make(base / "source", a=b"a"), state=b"2", move=True)
        """,
        url,
        tmp_path,
        moment,
    )
    assert read_back(url) == (b"1" if moment == "moved" else b"2")
    assert not list(tmp_path.rglob("*.tree"))
