"""A runtime over Redis: the server is killed, frozen, emptied or put back, and nothing is lost."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiocheckpoint import FencedError, Runtime
from aiocheckpoint._records import decode_record
from aiocheckpoint.stores import _redis_line
from aiocheckpoint.stores.redis import RedisStore

from .. import children
from ..support import ROOT, listed, run_script, true
from ..test_docs import save_files
from .redis_server import ALWAYS, Server

pytestmark = pytest.mark.anyio

MakeRuntime = Callable[..., Runtime]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "redis", *ALWAYS) as server:
        yield server


@pytest.fixture
def runtime(server: Server, tmp_path: Path) -> MakeRuntime:
    """Makes runtimes that store as fast as they can."""
    spool = tmp_path / "spool"
    defaults: dict[str, Any] = {"min_interval": 0, "spool": spool}
    return lambda **options: Runtime(server.url, **defaults | options)


def stored(server: Server, key: str = "k") -> bytes | None:
    """The state that a key has, read past the store."""
    with server.client() as client:
        frame = client.hget(f"aiocheckpoint/head/{key}", "record")
    assert frame is None or isinstance(frame, bytes)
    return None if frame is None else decode_record(key, frame)[1]


async def test_every_loop(runtime: MakeRuntime, server: Server, tmp_path: Path) -> None:
    """States, large ones and files are stored and found again, whatever the caller's loop."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "part").write_bytes(b"p" * (9 << 20))
    async with runtime() as rt:
        async with rt.open("a/b", keep=2) as cp:
            for n in range(100):
                await cp.write(b"%d" % n)
            await cp.save(tmp_path / "tree", state=b"saved")
        async with rt.open("large") as cp:
            await cp.write(bytes(9 << 20))
        assert stored(server, "a/b") == b"saved"
        assert await listed(rt.keys()) == ["a/b", "large"]
    async with runtime() as rt:
        async with rt.open("a/b") as cp:
            assert await cp.read() == b"saved"
            await cp.restore(tmp_path / "back")
            assert (tmp_path / "back" / "part").read_bytes() == b"p" * (9 << 20)
        async with rt.open("large") as cp:
            assert await cp.read() == bytes(9 << 20)
        for key in ("a/b", "large"):
            await rt.delete(key)
    with server.client() as client:
        assert client.keys() == []


async def test_killed(runtime: MakeRuntime, server: Server) -> None:
    """A server that is killed and started again, time after time, loses nothing staged."""
    async with runtime() as rt, AsyncExitStack() as stack:
        cps = [await stack.enter_async_context(rt.open(f"k{n}")) for n in range(20)]
        for turn in range(3):
            flushed = b"flushed %d" % turn
            for cp in cps:
                await cp.write(flushed)
            await rt.flush()
            for n in range(50):
                for cp in cps:
                    await cp.write(b"%d" % n)
                if n == 25:
                    server.kill()
            server.start()
            for n in range(20):  # staged after what was stored or is still under way
                found = stored(server, f"k{n}")
                assert found == flushed or (found or b"").isdigit()
            for cp in cps:
                await cp.write(b"last %d" % turn)
            await rt.flush()
            assert {stored(server, f"k{n}") for n in range(20)} == {b"last %d" % turn}
        for cp in cps:
            await cp.write(b"left")
        server.restart()
    assert {stored(server, f"k{n}") for n in range(20)} == {b"left"}


async def test_zombie(runtime: MakeRuntime, server: Server) -> None:
    """Who was fenced stays fenced when the server is killed and started again."""
    async with runtime() as old, runtime(spool=None) as new:
        zombie = await old.open("k").__aenter__()
        await zombie.write(b"zombie")
        await zombie.flush()
        async with new.open("k") as cp:
            assert await cp.read() == b"zombie"
            await cp.write(b"newer")
            await cp.flush()
            server.restart()
            with pytest.raises(FencedError):
                await zombie.write(b"too late")
                await zombie.flush()
            server.restart()
            with pytest.raises(FencedError):
                await zombie.write(b"much too late")
                await zombie.flush()
            await cp.write(b"newest")
        assert stored(server) == b"newest"


async def test_emptied(runtime: MakeRuntime, server: Server) -> None:
    """A server that comes back empty fences all: no key is made again under an old claim."""
    server.options = ("--appendonly", "no")
    server.restart()
    async with runtime() as old, runtime(spool=None) as new:
        zombie = await old.open("k").__aenter__()
        holder = await new.open("k").__aenter__()
        await holder.write(b"state")
        await holder.flush()
        server.restart()
        for cp in (zombie, holder):
            with pytest.raises(FencedError):
                await cp.write(b"more")
                await cp.flush()
        assert stored(server) is None
        async with runtime() as later, later.open("k") as cp:
            assert not cp.resumed
            await cp.write(b"afresh")
        for cp in (zombie, holder):
            with pytest.raises(FencedError):
                await cp.write(b"more")
                await cp.flush()
        assert stored(server) == b"afresh"


async def test_put_back(
    runtime: MakeRuntime, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that comes back with an older snapshot is told the newest state again; who was
    fenced before the snapshot stays fenced."""
    server.options = ("--appendonly", "no")
    server.restart()
    async with runtime() as old, runtime(spool=None) as new:
        zombie = await old.open("k").__aenter__()
        async with new.open("k") as cp:
            await cp.write(b"in the snapshot")
            await cp.flush()
            with server.client() as client:
                client.save()
            await cp.write(b"after the snapshot")
            await cp.flush()
            server.restart()
            assert stored(server) == b"in the snapshot"
            with pytest.raises(FencedError):
                await zombie.write(b"too late")
                await zombie.flush()
            await cp.write(b"newest")
            await cp.flush()
            assert stored(server) == b"newest"


async def test_put_back_to_before_the_claim(
    runtime: MakeRuntime, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that forgets the claim itself is seen to have gone back in time."""
    server.options = ("--appendonly", "no")
    server.restart()
    async with runtime() as old, runtime(spool=None) as new:
        async with old.open("k") as cp:
            await cp.write(b"before")
        with server.client() as client:
            client.save()
        async with new.open("k") as cp:
            await cp.write(b"state")
            await cp.flush()
            server.restart()
            await cp.write(b"newest")
            await cp.flush()
        assert stored(server) == b"newest"
    assert "went back in time; claiming 'k' again" in caplog.text


async def test_frozen(
    runtime: MakeRuntime, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a frozen server was asked and answered to nobody is read back, and fences nobody."""
    monkeypatch.setattr(_redis_line, "_SOCKET_TIMEOUT", 0.3)
    async with runtime() as rt, rt.open("k") as cp:
        for turn in range(3):
            await cp.write(b"before %d" % turn)
            await cp.flush()
            server.freeze()
            errors = cp.statistics().errors
            await cp.write(b"asked %d" % turn)
            await true(lambda errors=errors: cp.statistics().errors > errors)  # type: ignore[misc]
            await cp.write(b"newer %d" % turn)
            server.thaw()
            await cp.flush()
            assert stored(server) == b"newer %d" % turn


async def test_full(runtime: MakeRuntime, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A full server is an outage: one line in the log, and all is stored once there is room."""
    caplog.set_level(logging.INFO, "aiocheckpoint")
    async with runtime() as rt, rt.open("k") as cp:
        await cp.write(b"first")
        await cp.flush()
        with server.client() as client:
            client.config_set("maxmemory", "1")
            await cp.write(b"second")
            await true(lambda: cp.statistics().errors > 2)
            assert stored(server) == b"first"
            client.config_set("maxmemory", "0")
        await cp.flush()
        assert stored(server) == b"second"
    assert caplog.text.count("raise its maxmemory") == 1


async def test_refused(runtime: MakeRuntime, server: Server) -> None:
    """A key that another program takes meanwhile fails alone, and is said."""
    async with runtime() as rt, rt.open("a") as a:
        b = await rt.open("b").__aenter__()
        with server.client() as client:
            client.delete("aiocheckpoint/head/b")
            client.set("aiocheckpoint/head/b", "theirs")
        await a.write(b"stored")
        await b.write(b"refused")
        with pytest.raises(Exception, match="take another prefix"):
            await b.flush()
        await a.flush()
        assert stored(server, "a") == b"stored"
        with server.client() as client:
            client.delete("aiocheckpoint/head/b")
        with pytest.raises(FencedError):
            await b.flush()


async def test_one_store_for_several_runtimes(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that the user made serves runtimes at once and in turn, and is closed anywhere."""
    caplog.set_level(logging.INFO, "aiocheckpoint")
    store = RedisStore(server.url)
    for turn in range(2):
        async with (
            Runtime(store, spool=None) as one,
            Runtime(store, spool=None) as two,
            one.open("k") as a,
            two.open("other") as b,
        ):
            await a.write(b"%d" % turn)
            await b.write(b"%d" % turn)
        gc.collect()  # what was not closed would be told now
        assert (stored(server, "k"), stored(server, "other")) == (b"%d" % turn,) * 2
        with server.client() as client:
            await true(lambda client=client: len(client.client_list()) == 1)  # type: ignore[misc]
    await store.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await store.load("k")
    assert caplog.text.count("stored means") == 1


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_process_killed(server: Server, tmp_path: Path, scheme: str) -> None:
    """What a killed process had staged is in the spool, whichever scheme finds it again."""
    url = f"{scheme}://localhost:{server.port}"
    body = f"""
        async with aiocheckpoint.open(url, "k", spool={str(tmp_path / "spool")!r}) as cp:
            for n in range(1, 2000):
                await cp.write(state(n))
            die()
    """
    children.run(body, url)
    for again in (url, f"redis://LOCALHOST:{server.port}/0"):
        found = children.read_back(again, spool=tmp_path / "spool")
        assert children.number_of(found) == 1999


AT_EXIT = """
import asyncio, sys, aiocheckpoint

async def main():
    rt = await aiocheckpoint.Runtime(sys.argv[1], spool=None, min_interval=3600).__aenter__()
    cp = await rt.open("k").__aenter__()
    await cp.write(b"first")
    await cp.flush()
    await cp.write(b"last")
    return rt, cp

kept = asyncio.run(main())
"""


def test_interpreter_exit(server: Server) -> None:
    """A runtime that is open when the interpreter exits still stores what was staged."""
    run_script(AT_EXIT, f"redis://localhost:{server.port}")
    assert stored(server) == b"last"


async def test_many_keys(runtime: MakeRuntime, server: Server) -> None:
    """A thousand open keys are served by a few connections."""
    async with runtime(spool=None) as rt, AsyncExitStack() as stack:
        cps = []
        limiter = anyio.CapacityLimiter(200)

        async def enter(n: int) -> None:
            async with limiter:
                cps.append(await stack.enter_async_context(rt.open(f"k{n:04d}")))

        async with anyio.create_task_group() as group:
            for n in range(1000):
                group.start_soon(enter, n)
        for cp in cps:
            await cp.write(cp.key.encode())
        await rt.flush()
        with server.client() as client:
            assert len(client.client_list()) <= 17
        assert {stored(server, cp.key) == cp.key.encode() for cp in cps} == {True}


def test_the_page(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job of docs/howto-redis.md runs, and does nothing again when it is run again."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    save_files(ROOT / "docs" / "howto-redis.md", tmp_path)
    source = (tmp_path / "job.py").read_text()
    assert source.count("redis://127.0.0.1:6380") == 1
    source = source.replace("redis://127.0.0.1:6380", server.url)
    for _ in range(2):
        assert run_script(source).stdout == f"the sum is {sum(range(1000))}\n"
    assert stored(server, "jobs/sum") == bytes.fromhex("92cd03e8ce00079f2c")  # [1000, 499500]
