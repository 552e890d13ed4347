"""The file store against paused, killed and racing processes, and against bad disks."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiocheckpoint._errors import ConflictError, StoreError, StoreUnavailableError
from aiocheckpoint.abc import Head, Put, Version
from aiocheckpoint.stores import _blobs, _disk
from aiocheckpoint.stores import file as file_module
from aiocheckpoint.stores.file import FileStore
from aiocheckpoint.testing.contract import listed, put, read, refused

pytestmark = pytest.mark.anyio

CALLS = (
    "open",
    "pwritev",
    "pwrite",
    "fsync",
    "link",
    "listdir",
    "unlink",
    "close",
    "mkdir",
    "rename",
    "stat",
)
LONG = "x" * 200  # its directory has a `key` file

Before = Callable[[int, str], None]
Interpose = Callable[[Before | None], list[str]]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


class Interposed:
    """`os`, with `before(number, name)` called before each of the stores' system calls."""

    def __init__(self, before: Before) -> None:
        self._before = before
        self.made: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            self.made.append(name)
            self._before(len(self.made) - 1, name)
            return real(*args, **kwargs)

        return call


@pytest.fixture
def interpose(monkeypatch: pytest.MonkeyPatch) -> Interpose:
    """Have every system call announced; answers the list of those made. None ends it."""

    def interpose(before: Before | None) -> list[str]:
        calls = None if before is None else Interposed(before)
        for module in (file_module, _blobs, _disk):
            monkeypatch.setattr(module, "os", calls or os)
        return [] if calls is None else calls.made

    return interpose


class Killed(BaseException):
    """The process is no more."""


def failing(name: str, number: int) -> Before:
    def before(_: int, called: str) -> None:
        if called == name:
            raise OSError(number, os.strerror(number))

    return before


def once(at: int, then: Callable[[], None]) -> Before:
    """`then` before call number `at`; the calls that it makes itself do not count."""
    done: list[bool] = []

    def before(number: int, _: str) -> None:
        if number == at and not done:
            done.append(True)
            then()

    return before


async def prepare(root: Path, key: str, commits: int) -> Version | None:
    """A key that had so many commits, by a process that has ended."""
    store = FileStore(root)
    version = None
    for i in range(commits):
        version = await put(store, key, version, b"old %d" % i)
    await store.aclose()
    return version


async def calls_of_commit(root: Path, interpose: Interpose, key: str, after: int) -> int:
    """How many system calls a commit makes, its cleaning included."""
    version = await prepare(root, key, after)
    store = FileStore(root)
    made = interpose(lambda number, name: None)
    await put(store, key, version, b"x")
    await store.aclose()
    interpose(None)
    assert {"open", "pwritev", "link", "listdir", "fsync", "unlink", "close"} <= set(made)
    return len(made)


async def claim(root: Path, key: str, seen: list[Head | None], delete: bool = False) -> None:
    """A newer process: takes the key over and goes on for long enough to collect."""
    store = FileStore(root)
    head = await store.load(key)
    seen.append(head)
    version = head and head.version
    for i in range(4):
        version = await put(store, key, version, b"newer %d" % i)
        if delete:
            await store.delete(key, version)
            version = None
    await store.aclose()


@pytest.mark.parametrize("delete", [False, True], ids=["replaces", "deletes"])
@pytest.mark.parametrize("commits", [0, 3])
async def test_zombie(tmp_path: Path, interpose: Interpose, commits: int, delete: bool) -> None:
    """A process that is paused before any of its system calls, and wakes late, changes nothing."""
    won = []
    for at in range(await calls_of_commit(tmp_path / "count", interpose, LONG, commits)):
        root = tmp_path / f"{at}"
        version = await prepare(root, LONG, commits)
        zombie = FileStore(root)
        old = await zombie.load(LONG)
        seen: list[Head | None] = []

        def newer(root: Path = root, seen: list[Head | None] = seen) -> None:
            asyncio.run(claim(root, LONG, seen, delete))

        interpose(once(at, newer))
        (answer,) = await zombie.commit([Put(LONG, version, b"zombie")])
        await zombie.aclose()
        interpose(None)

        store = FileStore(root)
        if isinstance(answer, StoreError):
            assert isinstance(answer, ConflictError)
            assert seen in ([old], [Head(b"zombie", commits + 1)])
        elif answer != commits + 1:
            # It found the key deleted, and created it: that is no zombie's, but anybody's right.
            assert delete
            assert version is None
            assert await store.load(LONG) == Head(b"zombie", answer)
            await store.aclose()
            continue
        else:
            assert seen == [Head(b"zombie", answer)]
            await refused(put(store, LONG, answer, b"zombie again"))
        won.append(not isinstance(answer, StoreError))
        head = await store.load(LONG)
        assert (head and head.record) == (None if delete else b"newer 3")
        assert await listed(store) == ([] if delete else [LONG])
        await store.aclose()
    assert won == sorted(won)  # late at first, then in time: its link and its look are the border
    assert True in won
    assert False in won


async def test_two_zombies(root: Path, interpose: Interpose) -> None:
    """What one zombie has left does not make another one's predecessor."""
    store = FileStore(root)
    two = await put(store, "k", await put(store, "k", None, b"one"), b"two")
    three = await put(store, "k", two, b"three")
    seen: list[Head | None] = []

    def before_link(_: int, name: str) -> None:
        if name == "link":
            interpose(None)
            asyncio.run(claim(root, "k", seen))
            interpose(before_look)

    def before_look(_: int, name: str) -> None:
        if name == "listdir":  # `three`, long gone, has been made anew by the first zombie
            interpose(None)
            assert "head.000000000003" in names(root / "k")
            asyncio.run(second_zombie())
            seen.append(None)

    async def second_zombie() -> None:
        second = FileStore(root)
        await refused(put(second, "k", three, b"second zombie"))
        await second.aclose()

    interpose(before_link)
    await refused(put(store, "k", two, b"first zombie"))
    assert len(seen) == 2
    head = await store.load("k")
    assert head is not None
    assert head.record == b"newer 3"
    await store.aclose()


async def test_what_has_been_read_is_never_taken_back(root: Path, interpose: Interpose) -> None:
    """A slow process finds its record replaced, while the one who has read it, and replaced it,
    has not looked yet whether he may: he may."""
    slow, quick = FileStore(root), FileStore(root)
    one = await put(slow, "k", None, b"one")
    linked, may_look = threading.Event(), threading.Event()
    thread = threading.local()
    replacing: list[asyncio.Future[Version]] = []
    loop = asyncio.get_running_loop()

    async def replace() -> Version:
        head = await quick.load("k")
        assert head is not None
        assert head.record == b"slow"
        return await put(quick, "k", head.version, b"quick")

    def before(_: int, name: str) -> None:
        if name == "link":
            thread.linked = True
        elif name == "listdir" and getattr(thread, "linked", False):
            thread.linked = False
            if not replacing:  # the slow one looks
                future = asyncio.run_coroutine_threadsafe(replace(), loop)
                replacing.append(asyncio.wrap_future(future, loop=loop))
                assert linked.wait(10)
            else:
                linked.set()
                assert may_look.wait(10)

    interpose(before)
    await refused(put(slow, "k", one, b"slow"))
    seen = await slow.load("k")
    may_look.set()
    version = await replacing[0]
    interpose(None)
    assert seen == Head(b"quick", version)
    assert await slow.load("k") == seen
    for store in (slow, quick):
        await store.aclose()


@pytest.mark.parametrize("commits", [0, 3])
async def test_killed(tmp_path: Path, interpose: Interpose, commits: int) -> None:
    """A process that dies before any of its system calls leaves the old record or the new one."""
    for at in range(await calls_of_commit(tmp_path / "count", interpose, LONG, commits)):
        root = tmp_path / f"{at}"
        version = await prepare(root, LONG, commits)
        store = FileStore(root)
        old = await store.load(LONG)

        def dead(number: int, _: str, at: int = at) -> None:
            if number >= at:
                raise Killed  # its cleaning is not done either

        interpose(dead)
        try:
            acknowledged = await put(store, LONG, version, b"new") == commits + 1
        except Killed:
            acknowledged = False
        await store.aclose()
        interpose(None)
        store = FileStore(root)
        head = await store.load(LONG)
        assert head == Head(b"new", commits + 1) or (head == old and not acknowledged)
        version = await put(store, LONG, head and head.version, b"after")
        assert await store.load(LONG) == Head(b"after", version)
        await store.aclose()


async def chunks(*data: bytes) -> AsyncIterator[bytes]:
    for chunk in data:
        yield chunk


async def test_a_blob_in_chunks_is_durable_before_it_has_its_name(
    root: Path, interpose: Interpose
) -> None:
    """Every chunk is written, then all synced, then named, then the directories are synced."""
    store = FileStore(root)
    made = interpose(lambda number, name: None)
    await store.put_blob("k", "b", chunks(b"x", b"y", b"z"))
    interpose(None)
    assert await read(store.open_blob("k", "b")) == b"xyz"
    await store.aclose()
    kept = [name for name in made if name in ("pwrite", "fsync", "rename")]
    assert kept[:5] == ["pwrite", "pwrite", "pwrite", "fsync", "rename"]
    assert kept[5:] == ["fsync"] * 3  # blobs, the key's directory, the root


@pytest.mark.parametrize(("flag", "name"), [(True, "pwritev"), (False, "pwrite"), (False, "fsync")])
async def test_disk_fails(
    root: Path, interpose: Interpose, monkeypatch: pytest.MonkeyPatch, flag: bool, name: str
) -> None:
    """When a file cannot be made durable it is thrown away, and the next commit makes another;
    also where writing and syncing take two calls."""
    if not flag:
        monkeypatch.setattr(_disk, "_SYNC_FLAG", 0)
    store = FileStore(root)
    version = await put(store, "k", None, b"one")
    interpose(failing(name, errno.EIO))
    with pytest.raises(StoreUnavailableError, match=r"commit 'k': .*jobs/k: .*; the disk fails"):
        await put(store, "k", version, b"two")
    with pytest.raises(StoreUnavailableError, match=r"put_blob 'k'"):
        await store.put_blob("k", "b", b"x")
    if not flag:  # what comes in chunks is written in one call a chunk, and synced at the end
        with pytest.raises(StoreUnavailableError, match=r"put_blob 'k'"):
            await store.put_blob("k", "b", chunks(b"x", b"y", b"z"))
    interpose(None)
    assert await store.load("k") == (b"one", version)
    assert await store.list_blobs("k") == []
    await put(store, "k", version, b"two")
    await store.aclose()
    assert names(root / "k") == ["blobs", "head.000000000001", "head.000000000002"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EMFILE, StoreUnavailableError),
        (errno.ESTALE, StoreUnavailableError),
        (errno.EACCES, StoreError),
        (errno.EROFS, StoreError),
        (errno.ENXIO, StoreError),
    ],
)
async def test_errors(
    root: Path, interpose: Interpose, number: int, kind: type[StoreError]
) -> None:
    """What may pass is told from what will not, with the path and what to do."""
    store = FileStore(root)
    version = await put(store, "k", None, b"one")
    interpose(failing("open", number))
    for call in (put(store, "k", version, b"2"), store.load("k"), read(store.open_blob("k", "b"))):
        with pytest.raises(StoreError, match=r"'k': .*jobs/k.*; \w+") as caught:
            await call
        assert type(caught.value) is kind
        assert isinstance(caught.value.__cause__, OSError)
    await store.aclose()


async def test_leftovers_are_removed(root: Path) -> None:
    """What a killed process has left goes with the next commit, temporary files after an hour."""
    store = FileStore(root)
    version = await put(store, "k", None, b"one")
    for name in ("head.000000000002", "head.000000000003", ".tmp-old", ".tmp-new", "notes.txt"):
        (root / "k" / name).write_bytes(b"torn")
    os.utime(root / "k" / ".tmp-old", (0, time.time() - 7200))
    await refused(put(store, "k", version, b"two"))
    await put(store, "k", 3, b"two")
    await store.aclose()
    assert names(root / "k") == [".tmp-new", "head.000000000003", "head.000000000004", "notes.txt"]


async def test_directory_that_went_back_in_time(root: Path) -> None:
    """A version that the directory does not have yet conflicts, and leaves nothing behind."""
    store = FileStore(root)
    version = await put(store, "k", None, b"one")
    await refused(put(store, "k", 7, b"from the future"))
    assert await store.load("k") == (b"one", version)
    await store.aclose()


async def test_vanished_directory(root: Path) -> None:
    """A directory that is gone is an error, not a key that was never written."""
    store = FileStore(root)
    version = await put(store, "k", None, b"one")
    root.rename(root.with_name("elsewhere"))
    calls = (
        store.load("k"),
        put(store, "k", version, b"2"),
        put(store, "new", None, b"1"),
        store.put_blob("k", "b", b"x"),
        store.list_blobs("k"),
        listed(store),
    )
    for call in calls:
        with pytest.raises(StoreError, match="it was moved or deleted") as caught:
            await call
        assert type(caught.value) is StoreError
    await store.aclose()


async def test_damaged_heads(root: Path) -> None:
    """A head that is no plain file is an error; one cut to nothing is not a deleted key."""
    store = FileStore(root)
    for key in ("link", "dir", "fifo", "cut"):
        await put(store, key, None, b"one")
        (root / key / "head.000000000001").unlink()
    (root / "secret").write_bytes(b"secret")
    (root / "link" / "head.000000000001").symlink_to(root / "secret")
    (root / "dir" / "head.000000000001").mkdir()
    os.mkfifo(root / "fifo" / "head.000000000001")
    (root / "cut" / "head.000000000001").touch()
    for key in ("link", "dir", "fifo"):
        with pytest.raises(StoreError, match="where a file should; move it away"):
            await store.load(key)
    assert await store.load("cut") == (b"", 1)
    await store.aclose()


async def test_foreign_files(root: Path) -> None:
    """What somebody else put into the directory is no key, and does no harm."""
    store = FileStore(root)
    await put(store, "k", None, b"one")
    for name in ("README", "lost+found", "%zz", "%ff", ".spool", "empty", "x%~0", "é"):
        (root / name).mkdir()
    (root / "file").write_bytes(b"x")
    assert await listed(store) == ["k"]
    assert await store.load("empty") is None
    with pytest.raises(StoreError, match="a file stands where a directory should"):
        await store.load("file")
    with pytest.raises(StoreError, match="a file stands where a directory should"):
        await put(store, "file", None, b"x")
    await store.aclose()


async def test_deletion_mark_is_no_record(root: Path) -> None:
    """The one record that would read as a deleted key is refused."""
    store = FileStore(root)
    with pytest.raises(StoreError, match="means a deleted key"):
        await put(store, "k", None, file_module._DELETED)
    await store.aclose()


async def test_readable(root: Path) -> None:
    """Keys are found under their names, few files each, and a deleted key keeps no record."""
    store = FileStore(root)
    version = None
    for i in range(5):
        version = await put(store, "train/42", version, b"%d" % i)
    deleted = await put(store, "gone", None, b"secret")
    await store.delete("gone", deleted)
    await store.put_blob("train/42", "model.bin", b"x")
    await store.aclose()
    assert names(root) == ["gone", "train%2f42"]
    heads = ["head.000000000004", "head.000000000005"]
    assert names(root / "train%2f42") == ["blobs", *heads]
    assert (root / "train%2f42" / heads[1]).read_bytes() == b"4"
    assert names(root / "gone") == ["head.000000000002"]


async def test_descriptors_and_threads_are_bounded(root: Path, interpose: Interpose) -> None:
    """Many keys at once hold few descriptors, and closing ends the threads."""
    store = FileStore(root)
    threads = set(threading.enumerate())
    most = 0

    def held() -> int:
        """The open descriptors of the store: other tests' may be closed at any time."""
        inside = 0
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                inside += os.readlink(f"/proc/self/fd/{number}").startswith(str(root))
        return inside

    def before(_: int, name: str) -> None:
        nonlocal most
        most = max(most, held())

    interpose(before)
    await store.commit([Put(f"{i}", None, b"x") for i in range(200)])
    await store.aclose()
    assert 0 < most <= 3 * 16 + 2
    assert held() == 0
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)
        assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        await store.load("k")
    await store.aclose()


async def test_constructor(tmp_path: Path) -> None:
    """What is wrong with the path is said at once."""
    (tmp_path / "file").touch()
    for path, message in {
        "file": "is a file, not a directory",
        "no/dir": "create it first",
    }.items():
        with pytest.raises(StoreError, match=message) as caught:
            FileStore(tmp_path / path)
        assert caught.value.op == "open"
    store = FileStore(tmp_path / "made")
    assert (tmp_path / "made").is_dir()
    assert store.identity == f"file:{tmp_path / 'made'}"
    assert store.spool_dir == tmp_path / "made" / ".spool"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from tmpfs(tmp_path / "disk", "size=256k")


async def test_disk_full(small_disk: Path) -> None:
    """A full disk is passing: what was stored stays, and commits go on once there is room."""
    store = FileStore(small_disk / "jobs")
    version = await put(store, "k", None, b"one")
    (small_disk / "ballast").write_bytes(bytes(100_000))
    for _ in range(3):
        with pytest.raises(StoreUnavailableError, match="free some space"):
            await put(store, "k", version, bytes(200_000))
        with pytest.raises(StoreUnavailableError, match="free some space"):
            await store.put_blob("k", "b", bytes(200_000))
    assert await store.load("k") == (b"one", version)
    (small_disk / "ballast").unlink()
    await put(store, "k", version, bytes(200_000))
    await store.aclose()


async def test_read_only(tmp_path: Path) -> None:
    """A directory that cannot be written is refused when it is opened, and still read if later."""
    for disk in tmpfs(tmp_path / "disk", "size=256k"):
        store = FileStore(disk / "jobs")
        version = await put(store, "k", None, b"one")
        tmpfs_read_only = ["mount", "-o", "remount,ro", str(disk)]
        process = await asyncio.create_subprocess_exec(*tmpfs_read_only)
        assert await process.wait() == 0
        with pytest.raises(StoreError, match="mount the file system for writing") as caught:
            await put(store, "k", version, b"two")
        assert type(caught.value) is StoreError
        assert await store.load("k") == (b"one", version)
        await store.aclose()
        with pytest.raises(StoreError, match="cannot be written"):
            FileStore(disk / "jobs")


def tmpfs(path: Path, options: str) -> Iterator[Path]:
    """A small disk of its own, where the tests may mount one."""
    path.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


async def test_an_empty_key_file(root: Path) -> None:
    """A `key` file that damage has emptied names no key, and does not keep the others from view."""
    store = FileStore(root)
    await put(store, LONG, None, b"x")
    await put(store, "k", None, b"x")
    (file,) = root.glob("*/key")
    file.write_bytes(b"")
    assert await listed(store) == ["k"]
    await store.aclose()


async def test_a_temporary_file_that_others_take_for_stale(
    root: Path, interpose: Interpose
) -> None:
    """A process whose clock is wrong may remove it at any moment: what is linked is stored."""
    store = FileStore(root)
    version = await put(store, "k", None, b"x")

    def remove(number: int, name: str) -> None:
        if name == "listdir":
            for path in (root / "k").glob(".tmp-*"):
                path.unlink()

    interpose(remove)
    await put(store, "k", version, b"y")
    interpose(None)
    head = await store.load("k")
    assert head is not None
    assert head.record == b"y"
    await store.aclose()
