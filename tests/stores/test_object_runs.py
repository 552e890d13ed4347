"""Whole runs over object services, from asyncio, uvloop and trio."""

from __future__ import annotations

import itertools
from pathlib import Path

import anyio
import pytest

import aiocheckpoint
from aiocheckpoint import FencedError, Runtime
from aiocheckpoint.stores.s3 import S3Store

from ..children import number_of, read_back, run
from ..support import listed, run_script, true
from .faulty import Fault, LoseAnswer, Proxy, Refuse, Request
from .objects import Service

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
SCHEMES = ["s3", "s3+obstore"]


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_run(service: Service, tmp_path: Path, scheme: str) -> None:
    """What was written, and the files that were saved, are there for the next open, which fences
    the one before."""
    url = service.url(service.bucket(), "runs", scheme)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "weights").write_bytes(b"w" * 3_000_000)
    with pytest.raises(FencedError):
        async with aiocheckpoint.open(url, "k", spool=None) as cp:
            assert await cp.read() is None
            for number in range(50):
                await cp.write(b"%d" % number)
            await cp.flush()
            await cp.save(tree)
            async with aiocheckpoint.open(url, "k", spool=tmp_path / "spool") as newer:
                assert await newer.read() == b"49"
                await newer.restore(tmp_path / "restored")
                await newer.write(b"x" * 2_000_000)
            await cp.write(b"old")
            await cp.flush()
    assert (tmp_path / "restored" / "weights").read_bytes() == b"w" * 3_000_000
    async with Runtime(url, spool=None) as rt:
        found = await rt.latest("k")
        assert found is not None
        assert found.payload == b"x" * 2_000_000
        assert await listed(rt.keys()) == ["k"]
        await rt.delete("k")
        assert await rt.latest("k") is None


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_lost_answers(proxy: Proxy, scheme: str) -> None:
    """Of requests that are done, or not, and answered by a closed connection, nothing is lost."""
    url = proxy.service.url(proxy.service.bucket(), "", scheme)
    count = itertools.count()
    faults: dict[int, Fault] = {3: LoseAnswer(), 5: Refuse(503, "SlowDown")}

    def flaky(request: Request) -> Fault:
        if request.method != "PUT" or "/heads/" not in request.path:
            return None
        return faults.get(next(count) % 7)

    proxy.fault = flaky
    async with aiocheckpoint.open(url, "k", spool=None, min_interval=0) as cp:
        for number in range(25):
            await cp.write(b"%d" % number)
            await cp.flush()
        assert cp.statistics().errors > 0
        assert (await cp.latest()).payload == b"24"  # type: ignore[union-attr]
    async with aiocheckpoint.open(url, "k", spool=None) as cp:
        assert await cp.read() == b"24"


async def test_one_store_for_two_runtimes(service: Service) -> None:
    """A store that the user made serves one runtime after the other, and is closed by the user."""
    bucket = service.bucket()
    store = S3Store(
        bucket,
        endpoint_url=service.endpoint,
        region="us-east-1",
        access_key_id=service.access_key,
        secret_access_key=service.secret_key,
    )
    for number in range(2):
        async with Runtime(store, spool=None) as rt, rt.open("k") as cp:
            assert await cp.read() == (b"0" if number else None)
            await cp.write(b"%d" % number)
    await store.aclose()


async def test_service_that_comes_back(proxy: Proxy) -> None:
    """While a service is ill, states wait; when it is well again, the newest is stored."""
    url = proxy.service.url(proxy.service.bucket())
    async with aiocheckpoint.open(url, "k", spool=None, min_interval=0) as cp:
        await cp.write(b"before")
        await cp.flush()
        proxy.fault = lambda request: Refuse(503, "SlowDown")
        await cp.write(b"while")
        await true(lambda: cp.statistics().errors > 1)
        await cp.write(b"newest")
        proxy.fault = lambda request: None
        with anyio.fail_after(20):
            await cp.flush()
    async with aiocheckpoint.open(url, "k", spool=None) as cp:
        assert await cp.read() == b"newest"


_LARGE = """
    from aiocheckpoint.stores import open_store
    store = open_store(url)
    chunk, count = os.urandom(4 << 20), 50

    async def source():
        for _ in range(count):
            await asyncio.sleep(0)
            yield bytes(chunk)

    await store.put_blob("k", "small", chunk)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await store.put_blob("k", "large", source())
    size = 0
    async for part in store.open_blob("k", "large"):
        size += len(part)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await store.aclose()
    say(size)
    say((after - before) // 1024)
"""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_memory(service: Service, scheme: str) -> None:
    """A blob of 200 MB goes up and comes back in a part of its size."""
    size, more = run(_LARGE, service.url(service.bucket(), "", scheme), within=200)
    assert int(size) == 50 * (4 << 20)
    assert int(more) < 120


_EXIT = """
import asyncio, sys
from aiocheckpoint import Runtime

async def main():
    rt = Runtime(sys.argv[1], spool=None)
    await rt.__aenter__()
    cp = await rt.open("k").__aenter__()
    await cp.write(b"first")
    await cp.flush()
    await cp.write(b"last")
    globals().update(rt=rt, cp=cp)

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
"""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_interpreter_exit(service: Service, scheme: str) -> None:
    """What is staged when the interpreter exits with a runtime still open is stored."""
    url = service.url(service.bucket(), "", scheme)
    assert run_script(_EXIT, url).stderr == ""
    assert read_back(url, spool=None) == b"last"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_killed_process(service: Service, tmp_path: Path, scheme: str) -> None:
    """A process that is killed has its newest state in the spool, although the store is slow to
    hear of it."""
    url = service.url(service.bucket(), "", scheme)
    body = """
    async with aiocheckpoint.open(url, "k", spool=args[0]) as cp:
        for n in range(1, 2000):
            await cp.write(state(n))
        die()
    """
    run(body, url, tmp_path)
    assert number_of(read_back(url, spool=tmp_path)) == 1999
