"""Bad input and bad surroundings: a clear error that names what to do, or simply right."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

import aiocheckpoint
from aiocheckpoint import (
    Checkpointer,
    ClosedError,
    CodecError,
    FlushTimeoutError,
    RetryPolicy,
    Runtime,
    StoreError,
    StoreUnavailableError,
)
from aiocheckpoint.stores.memory import MemoryStore

from .children import number_of, read_back, run, small_disk, state, store_state
from .support import io_threads_end, listed, true

once = pytest.mark.parametrize("anyio_backend", [pytest.param(("asyncio", {}), id="asyncio")])
LOCAL = ["sqlite", "file"]


async def never(cp: Checkpointer[bytes]) -> None:
    raise AssertionError("this must not run")


async def opened(store: Any, key: str = "k", **options: Any) -> None:
    async with aiocheckpoint.open(store, key, **options) as cp:
        await cp.write(b"x")


# Which store.


@pytest.mark.parametrize("url", ["nope:x", "sqlite3:x.db", "jobs.db", "", ":", "mysql:x"])
async def test_an_unknown_scheme_lists_the_known_ones(url: str) -> None:
    with pytest.raises(ValueError, match=r"memory:.*sqlite:.*file:") as caught:
        await opened(url)
    assert repr(url) in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["sqlite:", "file:", "sqlite::memory:", "sqlite://host/path.db", "file://host/p", "memory:x"],
)
async def test_a_url_without_a_usable_path_says_how_to_write_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"path|'memory:'") as caught:
        await opened(url)
    assert url.partition("//host")[0] in str(caught.value)  # a host may have a password before it


@pytest.mark.parametrize("store", [None, 5, b"sqlite:x", ["memory:"], MemoryStore, object()])
async def test_what_is_no_store_is_refused(store: Any) -> None:
    with pytest.raises(TypeError, match="store="):
        await opened(store)


@pytest.mark.parametrize("scheme", LOCAL)
@once
async def test_a_missing_directory_is_named_and_not_made(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="create it first") as caught:
        await opened(f"{scheme}:{tmp_path}/missing/s")
    assert f"{tmp_path}/missing" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", LOCAL)
@once
async def test_a_file_where_a_directory_should_be_is_named(scheme: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    inner = "/s" if scheme == "sqlite" else ""
    for url in (f"{scheme}:{tmp_path}/file{inner}", f"{scheme}:{tmp_path}/file/s"):
        with pytest.raises(StoreError, match="file") as caught:
            await opened(url)
        assert ";" in str(caught.value)  # what is wrong; what to do
    assert (tmp_path / "file").read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@once
async def test_a_directory_where_a_database_should_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a directory; name a file in it"):
        await opened(f"sqlite:{tmp_path}")
    assert list(tmp_path.iterdir()) == []


@once
async def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "s.db").write_bytes(b"something else entirely" * 1000)
    with pytest.raises(StoreError, match="not an SQLite database; name another path"):
        await opened(f"sqlite:{tmp_path}/s.db")
    assert (tmp_path / "s.db").read_bytes() == b"something else entirely" * 1000
    assert {path.name for path in tmp_path.iterdir()} == {"s.db"}


def test_a_directory_that_may_not_be_written_is_named() -> None:
    body = """
        import aiocheckpoint.stores.sqlite, aiocheckpoint.stores.file, encodings.idna
        if os.geteuid() == 0:
            os.setegid(65534)
            os.seteuid(65534)
        for one in (f"sqlite:{url}/s.db", f"file:{url}/s", f"file:{url}"):
            try:
                async with aiocheckpoint.open(one, "k"):
                    print("opened", flush=True)
            except aiocheckpoint.StoreError as exc:
                print(exc, flush=True)
    """
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o555)
        printed = run(body, place)
        assert len(printed) == 3
        for line in printed:
            assert "permission" in line
            assert place in line
        assert os.listdir(place) == []
        os.chmod(place, 0o755)


@pytest.mark.parametrize("scheme", LOCAL)
@once
async def test_a_read_only_file_system_is_named(scheme: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "ro", "1m", options=",ro") as disk:
        with pytest.raises(StoreError, match=r"cannot be written|Read-only|mount") as caught:
            await opened(f"{scheme}:{disk}/s")
        assert ";" in str(caught.value)


@once
async def test_a_failed_open_leaves_no_thread_and_no_key_taken(tmp_path: Path) -> None:
    for url in ("nope:x", f"sqlite:{tmp_path}", f"file:{tmp_path}/missing/s"):
        with pytest.raises((ValueError, StoreError)):
            await opened(url)
    assert io_threads_end()
    assert not [t for t in threading.enumerate() if t.name.startswith("aiocheckpoint")]


# A disk that is full.


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """While inside, there is no room left."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    try:
        yield
    finally:
        filler.unlink()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("scheme", LOCAL)
@once
async def test_writes_go_on_while_the_disk_is_full_and_all_is_stored_after(
    scheme: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        url = f"{scheme}:{disk}/s.db"
        async with Runtime(url, min_interval=0) as rt:
            async with rt.open("k") as cp:
                await cp.write(state(1))
                await cp.flush()
                with full(disk):
                    for number in range(2, 50):
                        await cp.write(state(number, 20_000 + 100 * number))
                    await true(lambda: cp.statistics().errors > 1)
                    assert isinstance(cp.statistics().last_error, StoreUnavailableError)
                    assert "space" in str(cp.statistics().last_error)
                    for number in range(50, 100):
                        await cp.write(state(number, 20_000 + 100 * number))
                    assert number_of(await cp.read()) == 99
                    assert cp.statistics().stored < 99
                await cp.flush()
                found = await cp.latest()
                assert found is not None
                assert number_of(found.payload) == 99
            async with rt.open("k") as cp:
                assert number_of(await cp.read()) == 99
        outage = [r.getMessage() for r in caplog.records if "availab" in r.getMessage()]
        assert len(outage) == 2  # it began, it ended
        left = [path for path in disk.rglob("*") if "tmp-" in path.name]
        assert left == []


@pytest.mark.parametrize("scheme", LOCAL)
@once
async def test_leaving_while_the_disk_is_full_says_so_and_the_spool_keeps_the_state(
    scheme: str, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        url = f"{scheme}:{disk}/s.db"
        with pytest.raises(FlushTimeoutError, match="the spool keeps it") as caught:
            async with aiocheckpoint.open(url, "k", flush_timeout=0.3, min_interval=0) as cp:
                await cp.write(state(1, 9000))
                await cp.flush()
                filling = full(disk)
                filling.__enter__()
                for number in range(2, 50):
                    await cp.write(state(number, 9000))
                    await asyncio.sleep(0.001)
                    if cp.statistics().errors:
                        break
                else:
                    raise AssertionError("the disk is not full")
                await cp.write(state(99, 9000))
        filling.__exit__(None, None, None)
        assert caught.value.key == "k"
        assert caught.value.staged > caught.value.stored
        async with aiocheckpoint.open(url, "k") as cp:
            assert number_of(await cp.read()) == 99


@pytest.mark.parametrize("scheme", LOCAL)
@once
async def test_opening_on_a_full_disk_fails_in_time_or_works(scheme: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        url = f"{scheme}:{disk}/s.db"
        await opened(url)
        with full(disk):
            opening = asyncio.ensure_future(opened(url, "other"))
            await asyncio.wait([opening], timeout=0.5)
        await asyncio.wait_for(opening, 10)  # it was still trying when room came


# Hostile keys.

HOSTILE = [
    "..",
    ".",
    "/",
    "//",
    "../../etc/passwd",
    "a",
    "A",
    "a/b",
    "a/",
    "a.",
    "a ",
    " a",
    ".spool",
    ".tmp-x",
    "key",
    "head.000000000001",
    "blobs",
    "%2e%2e",
    "%",
    "~",
    "-rf",
    "👩‍🚀",
    "é",
    "e\u0301",
    "ﬁ",
    "con",
    "a:b",
    "a\\b",
    "'; DROP TABLE aiocheckpoint_heads; --",
    "x" * 200,
    "X" * 200,
    "é" * 100,
    "\u202etxt",
]


@pytest.mark.parametrize("scheme", ["memory", *LOCAL])
@once
async def test_hostile_keys_are_keys_like_any_other(scheme: str, tmp_path: Path) -> None:
    place = tmp_path / "a" / "b" / "place"
    place.mkdir(parents=True)
    url = "memory:" if scheme == "memory" else f"{scheme}:{place}/s"
    async with Runtime(url, min_interval=0) as rt:
        async with contextlib.AsyncExitStack() as stack:
            for number, key in enumerate(HOSTILE, 1):
                cp = await stack.enter_async_context(rt.open(key))
                assert await cp.read() is None
                await cp.write(state(number))
            big = await stack.enter_async_context(rt.open("../big"))
            await big.write(b"x" * (2 << 20))
        assert await listed(rt.keys()) == sorted([*HOSTILE, "../big"])
        for number, key in enumerate(HOSTILE, 1):
            async with rt.open(key) as cp:
                assert number_of(await cp.read()) == number
                await cp.write(b"again")
        assert await listed(rt.keys("a/")) == ["a/", "a/b"]
        for key in [*HOSTILE, "../big"]:
            await rt.delete(key)
            assert await rt.latest(key) is None
        assert await listed(rt.keys()) == []
    outside = [path for path in tmp_path.rglob("*") if place not in (path, *path.parents)]
    assert sorted(outside) == [tmp_path / "a", tmp_path / "a" / "b"]


# Options.

NO_SECONDS = [-1, -0.001, math.nan, math.inf, -math.inf, "1", b"", [], timedelta(seconds=1)]
NO_COUNT = [0, -1, 1.0, 2.5, math.nan, "2", True, None, []]
RUNTIME = {
    "keep": NO_COUNT,
    "min_interval": NO_SECONDS,
    "flush_timeout": [*NO_SECONDS, None],
    "grace": [*NO_SECONDS, None],
    "spool": [5, "", b"dir", False, []],
}
CASES = [(name, value) for name, values in RUNTIME.items() for value in values]


@pytest.mark.parametrize(("name", "value"), CASES)
def test_an_option_of_a_runtime_that_makes_no_sense_is_named(name: str, value: Any) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises((TypeError, ValueError), match=f"{name}="):
        Runtime("memory:", **options)
    with pytest.raises((TypeError, ValueError), match=f"{name}="):
        aiocheckpoint.run(never, store="memory:", key="k", **options)
    if name != "grace":
        with pytest.raises((TypeError, ValueError), match=f"{name}="):
            aiocheckpoint.open("memory:", "k", **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [(n, v) for n, v in CASES if n in ("keep", "min_interval", "flush_timeout") and v is not None],
)
def test_an_option_of_a_handle_that_makes_no_sense_is_named(name: str, value: Any) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises((TypeError, ValueError), match=f"{name}="):
        Runtime("memory:").open("k", **options)


NO_WAIT = [-1, -0.001, math.nan, "1", timedelta(seconds=-1), []]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("retries", value) for value in [-1, 1.0, math.nan, "1", None, True]],
        *[("wait_initial", value) for value in [*NO_WAIT, None]],
        *[("wait_max", value) for value in [*NO_WAIT, None]],
        *[("wait_jitter", value) for value in [*NO_WAIT, None]],
        *[("attempt_timeout", value) for value in NO_WAIT],
        *[("deadline", value) for value in NO_WAIT],
        *[("wait_exp_base", value) for value in [0, 0.5, -2, math.nan, "2", None]],
        *[("on", value) for value in [None, 5, "x", BaseException, (ValueError, 5), ("x",)]],
    ],
)
def test_an_option_of_a_policy_that_makes_no_sense_is_named(name: str, value: Any) -> None:
    options: dict[str, Any] = {"on": ValueError, name: value}
    with pytest.raises((TypeError, ValueError), match=f"{name}="):
        RetryPolicy(**options)


@pytest.mark.parametrize("retry", [-1, 1.5, math.nan, "3", [], True])
async def test_retries_that_make_no_sense_are_refused(retry: Any) -> None:
    async with Runtime("memory:") as rt:
        with pytest.raises((TypeError, ValueError), match="retr"):
            await rt.run(never, key="k", retry=retry)
        assert await rt.latest("k") is None


async def test_zero_is_fine_where_it_means_something() -> None:
    calls = 0

    async def flaky(cp: Checkpointer[bytes]) -> int:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ValueError
        return calls

    policy = RetryPolicy(on=ValueError, retries=2, wait_initial=0, wait_jitter=0, wait_max=0)
    async with Runtime("memory:", min_interval=0, grace=0) as rt:
        assert await rt.run(flaky, key="k", retry=policy) == 3
        with pytest.raises(AssertionError):
            await rt.run(never, key="other", retry=0)
    async with Runtime("memory:", flush_timeout=0) as rt, rt.open("k") as cp:
        assert await cp.read() is None  # nothing staged, nothing to wait for


@pytest.mark.parametrize(
    ("fn", "options"),
    [(5, {"key": "k"}), ("text", {"key": "k"}), (never, {}), (None, {"key": "k"})],
)
async def test_what_cannot_be_run_is_refused(fn: Any, options: dict[str, Any]) -> None:
    async with Runtime("memory:") as rt:
        with pytest.raises(TypeError, match=r"key=|callable|function"):
            await rt.run(fn, **options)
        assert await listed(rt.keys()) == []


async def test_a_result_that_will_not_encode_is_a_codec_error_that_keeps_the_state() -> None:
    async def task(cp: Checkpointer[bytes]) -> object:
        await cp.write(b"progress")
        return object()

    async with Runtime("memory:") as rt:
        with pytest.raises(CodecError, match=r"cannot be stored as its result.*codec="):
            await rt.run(task, key="k", retry=3)
        found = await rt.latest("k")
        assert found is not None
        assert (found.payload, found.attempt, found.status) == (b"progress", 1, "failed")


# Closed, forked, elsewhere.

USES: dict[str, Callable[[Checkpointer[bytes]], Any]] = {
    "write": lambda cp: cp.write(b"x"),
    "write of another type": lambda cp: cp.write([1]),  # type: ignore[arg-type]
    "write_nowait": lambda cp: cp.write_nowait(b"x"),
    "read": lambda cp: cp.read(),
    "flush": lambda cp: cp.flush(),
    "latest": lambda cp: cp.latest(),
    "delete": lambda cp: cp.delete(),
}


@pytest.mark.parametrize("use", USES)
async def test_a_closed_handle_says_so(use: str) -> None:
    store = MemoryStore()
    async with Runtime(store) as rt:
        async with rt.open("k") as cp:
            await cp.write(b"kept")
        with pytest.raises(ClosedError, match="open the key again"):
            result = USES[use](cp)
            await result
        assert cp.key == "k"
        assert cp.statistics().stored == 1
        found = await rt.latest("k")
        assert found is not None
        assert found.payload == b"kept"


async def test_a_closed_or_unopened_runtime_says_so() -> None:
    async def every_use(rt: Runtime) -> None:
        uses: list[Callable[[], Any]] = [
            lambda: rt.open("k").__aenter__(),
            lambda: rt.latest("k"),
            lambda: anext(rt.keys()),
            lambda: rt.delete("k"),
            lambda: rt.run(never, key="k"),
        ]
        for use in uses:
            with pytest.raises(ClosedError):
                await use()
        rt.stop()

    rt = Runtime("memory:")
    await every_use(rt)
    rt = Runtime("memory:")
    async with rt:
        pass
    await every_use(rt)
    with pytest.raises(ClosedError, match="make a new one"):
        async with rt:
            raise AssertionError


async def test_a_handle_whose_runtime_has_ended_is_flushed_and_closed() -> None:
    store = MemoryStore()
    async with Runtime(store) as rt:
        opening = rt.open("k")
        cp = await opening.__aenter__()
        await cp.write(b"kept")
    with pytest.raises(ClosedError):
        for _ in range(1000):
            await cp.write(b"late")
            await anyio.sleep(0.001)
    with contextlib.suppress(ClosedError):
        await opening.__aexit__(None, None, None)
    async with Runtime(store) as rt, rt.open("k") as cp:
        assert await cp.read() == b"kept"


@pytest.mark.parametrize("scheme", LOCAL)
def test_a_forked_child_is_told_to_open_the_key_itself(scheme: str, tmp_path: Path) -> None:
    body = """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        async with Runtime(url, min_interval=0) as rt:
            async with rt.open("k") as cp:
                await cp.write(state(1))
                await cp.flush()
                child = os.fork()
                if child == 0:
                    try:
                        for use in (
                            lambda: cp.write_nowait(state(66)),
                            lambda: cp.write(state(66)).send(None),
                            lambda: rt.latest("k").send(None),
                        ):
                            try:
                                use()
                            except aiocheckpoint.ClosedError as exc:
                                assert "process" in str(exc), exc
                                say(1)
                            except BaseException as exc:
                                os.write(1, repr(exc).encode() + b"\\n")
                    finally:
                        os._exit(0)
                os.waitpid(child, 0)
                await cp.write(state(2))
        say(2)
    """
    url = f"{scheme}:{tmp_path}/s.db"
    assert run(body, url) == ["1"] * 3 + ["2"]
    assert number_of(read_back(url)) == 2


def test_a_forked_child_that_exits_normally_disturbs_nothing(tmp_path: Path) -> None:
    body = """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        async with Runtime(url, min_interval=3600) as rt:
            async with rt.open("k") as cp:
                await cp.write(state(1))
                await cp.flush()
                await cp.write(state(2))
                child = os.fork()
                if child == 0:
                    sys.exit(0)  # by way of every handler on this stack
                os.waitpid(child, 0)
                assert cp.statistics().spooled
                await cp.write(state(3))
                die()
    """
    url = f"sqlite:{tmp_path}/s.db"
    run(body, url)
    assert number_of(read_back(url)) == 3


def test_writing_from_another_loop_says_what_to_call_instead() -> None:
    store = MemoryStore()
    box: list[Checkpointer[bytes]] = []
    ready, done = threading.Event(), threading.Event()

    async def own() -> None:
        async with aiocheckpoint.open(store, "k", min_interval=0) as cp:
            box.append(cp)
            ready.set()
            await true(done.is_set)
            assert await cp.read() == b"99"

    async def borrow() -> None:
        (cp,) = box
        with pytest.raises(RuntimeError, match="write_nowait"):
            for number in range(10_000):
                await cp.write(b"%d" % number)
                await asyncio.sleep(0)
        for number in range(100):  # as the message says
            cp.write_nowait(b"%d" % number)
        await cp.flush()
        assert await cp.read() == b"99"

    thread = threading.Thread(target=asyncio.run, args=(own(),))
    thread.start()
    assert ready.wait(10)
    try:
        asyncio.run(borrow())
    finally:
        done.set()
        thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("scheme", LOCAL)
def test_nothing_but_the_store_is_left_behind(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}:{tmp_path}/s"
    store_state(url, state(1, 2 << 20))
    assert number_of(read_back(url)) == 1
    names = {path.name for path in tmp_path.iterdir()}
    assert names <= ({"s", "s-blobs", "s-spool"} if scheme == "sqlite" else {"s"})
    strays = [p for p in tmp_path.rglob("*") if "tmp" in p.name or p.name.endswith(("wal", "shm"))]
    assert strays == []
    spools = list(tmp_path.rglob("*spool*"))
    assert all(list(spool.iterdir()) == [] for spool in spools)
    assert io_threads_end()


def test_stop_signals_outside_the_main_thread_say_what_to_do_instead() -> None:
    async def main() -> None:
        async with Runtime("memory:", stop_signals=[signal.SIGTERM]):
            raise AssertionError

    caught: list[BaseException] = []

    def in_thread() -> None:
        try:
            asyncio.run(main())
        except RuntimeError as exc:
            caught.append(exc)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join(10)
    assert "Runtime.stop()" in str(caught[0])
    assert io_threads_end()


def test_modes_of_what_is_stored_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        store_state(f"file:{tmp_path}/s", state(1, 2 << 20))
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in tmp_path.rglob("*")}
    assert modes == {0}
