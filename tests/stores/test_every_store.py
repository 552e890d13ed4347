"""Every store that a URL opens, from every event loop: one and the same program."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import anyio
import pytest
import redis

from aiocheckpoint import FencedError, Keyring, Runtime
from aiocheckpoint import open as open_checkpoint

from .. import children
from ..postgresql import some_server
from ..servers import missing
from ..support import listed
from . import redis_server
from .objects import moto

pytestmark = pytest.mark.anyio

KEYRING = Keyring({"test": Keyring.generate_key()})
SCHEMES = ["sqlite", "file", "s3", "s3+obstore", "redis", "postgresql"]


@pytest.fixture(autouse=True)
def _state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spools are not left where this user's are."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(params=SCHEMES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty place of each kind, which is gone afterwards."""
    scheme: str = request.param
    name = f"test-{secrets.token_hex(6)}"
    if scheme in ("sqlite", "file"):
        yield f"{scheme}:{tmp_path}/jobs.{scheme}"
    elif scheme == "redis":
        with redis_server.client(redis_server.PORT) as client:
            try:
                client.ping()
            except redis.ConnectionError:
                missing("Redis", "install redis-server")
            yield f"redis://127.0.0.1:{redis_server.PORT}?prefix={name}"
            for key in client.scan_iter(f"{name}*"):
                client.delete(key)
    elif scheme == "postgresql":
        with some_server() as server, server.database() as admin:
            yield admin.url
    else:
        service = moto()
        yield service.url(service.bucket(), "jobs", scheme)


def tree(path: Path, change: bytes = b"") -> Path:
    """A directory with a small and a large file."""
    (path / "deep").mkdir(parents=True, exist_ok=True)
    (path / "deep" / "small").write_bytes(b"small" + change)
    (path / "large").write_bytes(bytes(range(256)) * 40_000)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
async def test_states_and_files(url: str, sealed: bool, tmp_path: Path) -> None:
    """States, large states, files and results are there in the next process; keys can go."""
    keyring = KEYRING if sealed else None
    compression: Literal["zstd"] | None = "zstd" if sealed else None
    large = b"the same again " * 200_000

    def runtime() -> Runtime:
        return Runtime(url, encryption=keyring, compression=compression, keep=2)

    async def job(cp: object) -> str:
        return "done once"

    async with runtime() as rt:
        async with rt.open("jobs/a é", type=int) as cp:
            for number in range(1000):
                await cp.write(number)
        async with rt.open("jobs/large") as states:
            await states.write(large)
        async with rt.open("jobs/files") as files:
            await files.save(tree(tmp_path / "tree"), state=b"first")
            await files.save(tree(tmp_path / "tree", b"er"), state=b"second")
        assert await rt.run(job, key="jobs/result") == "done once"
    async with runtime() as rt:
        assert await listed(rt.keys("jobs/")) == [
            "jobs/a é",
            "jobs/files",
            "jobs/large",
            "jobs/result",
        ]
        async with rt.open("jobs/a é", type=int) as cp:
            assert (await cp.read(), cp.resumed, cp.epoch) == (999, True, 2)
        async with rt.open("jobs/large") as states:
            assert await states.read() == large
        async with rt.open("jobs/files") as files:
            assert await files.read() == b"second"
            await files.restore(tmp_path / "restored")
        assert contents(tmp_path / "restored") == contents(tmp_path / "tree")
        assert await rt.run(job, key="jobs/result") == "done once"
        await rt.delete("jobs/large")
        assert await rt.latest("jobs/large") is None
        assert await listed(rt.keys("jobs/l")) == []


async def test_the_newer_attempt_wins(url: str, tmp_path: Path) -> None:
    """Of two processes on one key the older is fenced, and what the newer stored stays."""
    with anyio.fail_after(50), pytest.raises(FencedError):
        async with open_checkpoint(url, "k", min_interval=0) as older:
            await older.write(b"older")
            await older.flush()
            async with open_checkpoint(url, "k") as newer:
                assert await newer.read() == b"older"
                await newer.write(b"newer")
            with pytest.raises(FencedError):
                while True:
                    await older.write(b"late")
                    await older.flush()
    async with open_checkpoint(url, "k") as next_one:
        assert await next_one.read() == b"newer"


def test_killed(url: str) -> None:
    """What a killed process had staged, the next one on this machine has."""
    said = children.run(
        """
        async with aiocheckpoint.open(url, "k", min_interval=3600) as cp:
            for number in range(1, 100):
                await cp.write(state(number))
            say(99)
            die()
        """,
        url,
    )
    assert said == ["99"]
    assert children.number_of(children.read_back(url)) == 99
