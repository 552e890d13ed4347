"""What the log says, and how seldom."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

import aiocheckpoint
from aiocheckpoint import Checkpointer, RecoverableError, Runtime, StoreError
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import FaultyStore

from .children import run
from .support import run_script, true

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "aiocheckpoint")


@pytest.fixture
def faulty() -> FaultyStore:
    return FaultyStore(MemoryStore())


@pytest.fixture
async def rt(faulty: FaultyStore) -> AsyncIterator[Runtime]:
    async with Runtime(faulty, min_interval=0) as runtime:
        yield runtime


def said(caplog: pytest.LogCaptureFixture, least: int = logging.DEBUG) -> list[str]:
    """Our lines of this level and above."""
    ours = [r for r in caplog.records if r.name.split(".")[0] == "aiocheckpoint"]
    return [r.getMessage() for r in ours if r.levelno >= least]


async def test_a_normal_run_says_one_line(rt: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    """A run says that it claimed its key, and of a thousand writes nothing."""

    async def job(cp: Checkpointer[bytes]) -> int:
        for n in range(1000):
            await cp.write(b"%d" % n)
            if n % 100 == 0:
                await cp.flush()
        return n

    await rt.run(job, key="k")
    (line,) = said(caplog)
    assert line.startswith("claimed 'k' in memory:")
    assert line.endswith("epoch 1, attempt 1, seq 0")
    await rt.run(job, key="k")
    assert said(caplog)[1:] == ["'k' is done since attempt 1: returning its result"]
    assert said(caplog, logging.WARNING) == []


async def test_a_normal_handle_on_disk_says_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Opening, writing and leaving a key on `sqlite:`, with its spool, says the claim alone."""
    for epoch in (1, 2):
        async with aiocheckpoint.open(f"sqlite:{tmp_path}/a.db", "k", keep=2) as cp:
            for n in range(100):
                await cp.write(b"%d" % n * 100)
        assert len(said(caplog)) == epoch
    assert said(caplog)[1].endswith("epoch 2, attempt 2, seq 100")
    assert said(caplog, logging.WARNING) == []


async def test_a_retry_says_one_line(rt: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    """A failed attempt that is followed by another is one warning: what failed, how many are
    left, how long the wait is."""

    async def job(cp: Checkpointer[bytes]) -> None:
        if cp.attempt == 1:
            raise RecoverableError("flaky", retry_after=0)

    await rt.run(job, key="k", retry=2)
    (line,) = said(caplog, logging.WARNING)
    assert line.startswith("attempt 1 of 'k' failed (RecoverableError('flaky')): retry 1 of 2 in")


async def test_a_failed_run_is_told_by_its_exception(
    rt: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    """What is raised is not logged as well."""

    async def job(cp: Checkpointer[bytes]) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await rt.run(job, key="k")
    assert said(caplog, logging.WARNING) == []


async def test_an_outage_says_two_lines(
    rt: Runtime, faulty: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A store outage is one line when it begins and one when it is over, for all keys."""
    keys = [f"k{n}" for n in range(5)]
    async with anyio.create_task_group() as group:
        ready, over = 0, anyio.Event()

        async def work(key: str) -> None:
            nonlocal ready
            async with rt.open(key) as cp:
                await cp.write(b"1")
                await cp.flush()
                ready += 1
                await true(lambda: faulty.down)
                for n in range(20):
                    await cp.write(b"%d" % n)
                await true(lambda: cp.statistics().errors >= 2)
                await over.wait()

        for key in keys:
            group.start_soon(work, key)
        await true(lambda: ready == len(keys))
        caplog.clear()
        faulty.down = True
        await true(lambda: rt.statistics().errors >= 2 * len(keys))
        assert len(said(caplog)) == 1
        faulty.down = False
        await true(lambda: rt.statistics().lag == 0)
        over.set()
    begun, ended = said(caplog)
    assert "memory:" in begun
    assert "is unavailable" in begun
    assert "the store is down" in begun
    assert "is available again after" in ended


async def test_two_outages_say_four_lines(
    rt: Runtime, faulty: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Each outage is told anew."""
    async with rt.open("k") as cp:
        caplog.clear()
        for outage in (1, 2):
            faulty.down = True
            errors = cp.statistics().errors
            await cp.write(b"%d" % outage)
            await true(lambda errors=errors: cp.statistics().errors > errors)  # type: ignore[misc]
            faulty.down = False
            await cp.flush()
            assert len(said(caplog)) == 2 * outage


async def test_an_outage_before_the_claim_is_told(
    rt: Runtime, faulty: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """An open that waits for a store that is down says so: it may take half a minute."""
    faulty.down = True
    async with anyio.create_task_group() as group:

        async def enter() -> None:
            async with rt.open("k"):
                pass

        group.start_soon(enter)
        await true(lambda: faulty.calls["load"] >= 3)
        faulty.down = False
    lines = said(caplog)
    assert len([line for line in lines if "is unavailable" in line]) == 1
    assert len([line for line in lines if "claimed 'k'" in line]) == 1


async def test_what_is_refused_for_good_is_raised_and_not_logged(
    rt: Runtime, faulty: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A permanent error goes to the one who writes next, not to the log as well."""
    async with rt.open("k") as cp:
        faulty.fail_next(1, StoreError("too large", op="commit", key="k"))
        await cp.write(b"x")
        await true(lambda: cp.statistics().errors == 1)
        with pytest.raises(StoreError, match="too large"):
            await cp.write(b"y")
    assert said(caplog, logging.WARNING) == []


async def test_a_promotion_says_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A state taken from the spool of a killed process is told, by its seq and key."""
    url = f"file:{tmp_path}"
    run(
        """
        async with aiocheckpoint.open(url, "k", min_interval=1000) as cp:
            for n in range(1, 6):
                await cp.write(b"%d" % n)
            die()
        """,
        url,
    )
    async with aiocheckpoint.open(url, "k") as cp:
        assert await cp.read() == b"5"
    promoted, claimed = said(caplog)
    assert promoted == "promoted seq 5 of 'k' from the spool"
    assert claimed.startswith("claimed 'k'")
    assert said(caplog, logging.WARNING) == []


async def test_a_fall_back_says_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """An earlier generation that stands in for a damaged record is one warning: what is wrong
    and how far back it went."""
    store = MemoryStore()
    async with aiocheckpoint.open(store, "k", keep=3) as cp:
        for n in range(1, 4):
            await cp.write(b"%d" % n)
            await cp.flush()
    head = store._heads["k"]
    damaged = bytearray(head.record)
    damaged[-1] ^= 1
    store._heads["k"] = head._replace(record=bytes(damaged))
    async with Runtime(store, keep=3) as rt:
        assert await rt.latest("k") is not None
        (line,) = said(caplog, logging.WARNING)
        assert "damaged" in line
        assert "falling back to seq 3 of 'k'" in line


async def test_a_cancelled_leave_says_one_error(
    faulty: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be stored in time under a cancellation is one ERROR line with key and seqs."""
    async with Runtime(faulty, flush_timeout=0.1) as rt:
        with anyio.CancelScope() as scope:
            async with rt.open("k") as cp:
                faulty.down = True
                await cp.write(b"x")
                scope.cancel()
                await anyio.sleep_forever()
        await true(lambda: bool(said(caplog, logging.ERROR)))
        faulty.down = False
    (line,) = said(caplog, logging.ERROR)
    assert "'k'" in line
    assert "staged seq 1, stored seq 0" in line


def test_no_handlers_are_installed() -> None:
    """Importing and using the package leaves logging as the program set it up, and prints
    nothing."""
    script = run_script(
        """
import asyncio, logging
import aiocheckpoint

async def job(cp):
    await cp.write(b"x")

aiocheckpoint.run(job, key="k", store="memory:")
ours = [logging.getLogger(name) for name in logging.root.manager.loggerDict
        if name.split(".")[0] == "aiocheckpoint"]
assert [logger.name for logger in ours] == ["aiocheckpoint"]
assert not any(logger.handlers for logger in [logging.root, *ours])
assert all(logger.level == logging.NOTSET and logger.propagate for logger in ours)
"""
    )
    assert script.stdout == script.stderr == ""
