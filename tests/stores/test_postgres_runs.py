"""Runs whose states are in PostgreSQL, from every event loop, through crashes of the server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiocheckpoint import FencedError, Runtime, _calls
from aiocheckpoint._records import decode_record

from .. import children, support
from ..postgresql import Admin, Server, own_server

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that tests may do anything to."""
    with own_server() as server:
        yield server


@pytest.fixture
def admin(server: Server) -> Iterator[Admin]:
    """A database of the test's own."""
    if not server.runs:
        server.start()
    with server.admin.database() as admin:
        yield admin


@pytest.fixture(autouse=True)
def _spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spools are not left where this user's are."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Store calls are given up early."""
    monkeypatch.setattr(_calls, "OP_TIMEOUT", 1.0)


async def test_run(admin: Admin) -> None:
    """A state and a large one are stored and read back, and a newer claim fences the older."""
    large = bytes(range(256)) * (12 << 10)
    async with Runtime(admin.url) as one, Runtime(admin.url) as two:
        async with one.open("large") as cp:
            await cp.write(large)
        with pytest.raises(FencedError):
            async with one.open("k") as older:
                await older.write(b"one")
                await older.flush()
                async with two.open("k") as newer:
                    assert await newer.read() == b"one"
                    await newer.write(b"two")
                await older.write(b"late")
        for key, state in {"large": large, "k": b"two"}.items():
            found = await two.latest(key)
            assert found is not None
            assert found.payload == state
        assert await support.listed(two.keys()) == ["k", "large"]
        await two.delete("large")
        assert await support.listed(one.keys()) == ["k"]


async def test_server_killed_in_mid_run(server: Server, admin: Admin) -> None:
    """A server that crashes and comes back has lost nothing stored; what was staged meanwhile is
    stored after, and who was fenced stays so."""
    async with Runtime(admin.url, min_interval=0) as old, Runtime(admin.url, min_interval=0) as rt:
        with pytest.raises(FencedError):
            async with old.open("k") as zombie:
                await zombie.write(b"zombie")
                await zombie.flush()
                async with rt.open("k") as cp:
                    await cp.write(b"one")
                    await cp.flush()
                    server.kill()
                    for n in range(1000):
                        await cp.write(b"%d" % n)
                    zombie.write_nowait(b"late")
                    await support.true(lambda: cp.statistics().errors > 0)
                    server.start()
                    await cp.flush()
                    assert cp.statistics().lag == 0
                    await zombie.flush()
    ((record,),) = admin.run("SELECT record FROM aiocheckpoint WHERE key = 'k'")
    assert decode_record("k", record)[1] == b"999"


@pytest.mark.usefixtures("_quick")
async def test_server_frozen_in_mid_run(server: Server, admin: Admin) -> None:
    """A server that freezes and thaws is an outage: the newest state is stored in the end."""
    async with Runtime(admin.url, min_interval=0) as rt:
        async with rt.open("k") as cp:
            await cp.write(b"one")
            await cp.flush()
            with server.frozen():
                await cp.write(b"two")
                await support.true(lambda: cp.statistics().errors > 0, within=20)
                await cp.write(b"three")
            await cp.flush()
        found = await rt.latest("k")
        assert found is not None
        assert found.payload == b"three"


async def test_leaving_while_the_server_is_down(server: Server, admin: Admin) -> None:
    """Leaving waits for a server that is down, and what was staged is there when it is up."""
    async with Runtime(admin.url, min_interval=0) as rt:
        restarted = threading.Thread(target=server.start)
        with pytest.raises(ZeroDivisionError):
            async with rt.open("k") as cp:
                await cp.write(b"one")
                await cp.flush()
                server.kill()
                await cp.write(b"two")
                await support.true(lambda: cp.statistics().errors > 0)
                restarted.start()
                raise ZeroDivisionError
        restarted.join()
        found = await rt.latest("k")
        assert found is not None
        assert found.payload == b"two"


def test_killed_process(admin: Admin) -> None:
    """What a killed process had staged, and not stored, the next one on this machine takes up."""
    child = """
        async with Runtime(url, min_interval=3600) as rt:
            async with rt.open("k") as cp:
                await cp.write(state(1))
                await cp.flush()
                for n in range(2, 100):
                    await cp.write(state(n))
                die()
    """
    children.run(child, admin.url)
    assert children.number_of(children.read_back(admin.url)) == 99
