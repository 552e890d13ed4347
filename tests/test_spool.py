"""The spool: what was staged outlives the process, and nothing else ever comes out of it."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import logging
import os
import random
import shutil
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

import aiocheckpoint
from aiocheckpoint import Runtime, _mapped, _region, _spool
from aiocheckpoint._region import SPOOL_LIMIT, Staged, boot_id
from aiocheckpoint._spool import Lane, Spool

from .children import (
    kill,
    number_of,
    numbers,
    read_back,
    run,
    small_disk,
    start,
    state,
    store_state,
)

CLAIM = bytes(range(16))
NEVER = 3600.0
"""An interval between commits within which only the first state of a claim is stored."""


@pytest.fixture(params=["sqlite", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:{tmp_path}/s.db" if request.param == "sqlite" else f"file:{tmp_path}/s"


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path}/s.db"


def spool_files(*bases: Path) -> list[Path]:
    return [path for base in bases for path in base.rglob("*") if path.is_file()]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# Deaths.

ENDLESS = """
    how = args[0]
    if how != "SIGKILL":
        def end():
            time.sleep(0.05 + float(args[1]))
            os._exit(0) if how == "os._exit" else ctypes.string_at(0)
        threading.Thread(target=end, daemon=True).start()
    async with aiocheckpoint.open(url, "k") as cp:
        number = number_of(await cp.read())
        while True:
            number += 1
            await cp.write(state(number, 100 if number % 50 else 10_000))
            say(number)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "os._exit", "segfault"])
def test_a_process_that_dies_at_any_moment_loses_nothing_that_was_staged(
    url: str, how: str
) -> None:
    last = 0
    for _ in range(3):
        with start(ENDLESS, url, how, random.uniform(0, 0.3)) as process:
            said = numbers(process, random.uniform(0, 0.3) if how == "SIGKILL" else 30.0)
            said += kill(process)
        last = max([last, *said])
        found = number_of(read_back(url))
        assert last <= found <= last + 1


SIZES = (100, 10_000, 1_000_000, 100)


@pytest.mark.parametrize("steps", range(1, len(SIZES) + 1))
def test_a_state_that_outgrows_its_region_gets_a_larger_one(url: str, steps: int) -> None:
    body = """
        async with aiocheckpoint.open(url, "k", min_interval=3600) as cp:
            await cp.write(b"x")
            await cp.flush()
            for number, size in enumerate(json.loads(args[0]), 1):
                await cp.write(state(number, size))
                assert cp.statistics().spooled
            assert cp.statistics().stored == 1
            die()
    """
    run(body, url, json.dumps(SIZES[:steps]))
    found = read_back(url)
    assert found == state(steps, SIZES[steps - 1])


def test_states_grow_and_shrink_over_several_lives(url: str) -> None:
    body = """
        async with aiocheckpoint.open(url, "k", min_interval=3600) as cp:
            number = number_of(await cp.read()) + 1
            await cp.write(state(number, int(args[0])))
            die()
    """
    for number, size in enumerate(SIZES, 1):
        run(body, url, size)
        assert number_of(read_back(url)) == number


def test_states_over_the_limit_are_covered_by_the_store_alone(url: str) -> None:
    body = """
        async with aiocheckpoint.open(url, "k", min_interval=3600) as cp:
            await cp.write(b"small")
            await cp.write(state(7, 5 << 20))
            assert not cp.statistics().spooled
            await cp.flush()
            if args[0] == "small again":
                await cp.write(state(8))
                assert cp.statistics().spooled
            if args[0] != "leave":
                die()
    """
    run(body, url, "leave")
    assert read_back(url) == state(7, 5 << 20)
    run(body, url, "large")
    assert read_back(url) == state(7, 5 << 20)
    run(body, url, "small again")
    assert read_back(url) == state(8)


def test_states_of_mixed_codecs_are_each_spooled(url: str) -> None:
    body = """
        states = [b"one", {"two": 2}, b"three", [4], "five", b"six" * 5000]
        async with aiocheckpoint.open(url, "k", min_interval=3600) as cp:
            for one in states[: int(args[0])]:
                await cp.write(one)
                assert cp.statistics().spooled
            die()
    """
    states = [b"one", {"two": 2}, b"three", [4], "five", b"six" * 5000]
    for steps, expected in enumerate(states, 1):
        run(body, url, steps)
        assert read_back(url) == expected


def test_a_state_staged_from_another_thread_survives_too(url: str) -> None:
    body = """
        order = args[0]
        def in_thread(one):
            thread = threading.Thread(target=cp.write_nowait, args=(one,))
            thread.start()
            thread.join()
        async with aiocheckpoint.open(url, "k", min_interval=3600) as cp:
            await cp.write(b"first")
            if order == "thread last":
                await cp.write(state(1))
                in_thread(state(2))
            else:
                in_thread(state(1, 10_000))
                await cp.write(state(2))
            assert cp.statistics().spooled
            die()
    """
    for order in ("thread last", "task last"):
        run(body, url, order)
        assert number_of(read_back(url)) == 2


def test_threads_and_the_task_staging_at_once_leave_the_newest(sqlite: str) -> None:
    body = """
        async with aiocheckpoint.open(url, "k", min_interval=3600) as cp:
            def keep_writing(thread):
                for i in range(400):
                    cp.write_nowait(b"%d %d" % (thread, i))
            threads = [threading.Thread(target=keep_writing, args=(n,)) for n in range(3)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                await cp.write(b"task")
            await cp.write(b"task")
            cp.write_nowait(b"last")
            assert cp.statistics().staged > 1200
            die()
    """
    run(body, sqlite)
    assert read_back(sqlite) == b"last"


# Without a spool, or with half of one.


def test_a_full_disk_means_one_warning_and_what_is_staged_stays(
    sqlite: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # room for one small region and no larger one
    with small_disk(tmp_path / "full", "8k") as spool:
        body = """
            import logging
            logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(message)s")
            async with aiocheckpoint.open(url, "k", min_interval=3600, spool=args[0]) as cp:
                await cp.write(b"stored")
                await cp.flush()
                await cp.write(state(1))
                assert cp.statistics().spooled
                for number in range(2, 5):
                    await cp.write(state(number, 10_000 * number))
                    assert not cp.statistics().spooled
                if args[1] == "leave":
                    return
                die()
        """
        printed = run(body, sqlite, spool, "die")
        assert len(printed) == 1
        assert "no spool for states of" in printed[0]
        assert "going on without it" in printed[0]
        assert read_back(sqlite, spool=spool) == state(1)
        assert len(run(body, sqlite, spool, "leave")) == 1
        assert number_of(read_back(sqlite, spool=spool)) == 4
        assert spool_files(spool) == []


def test_a_disk_full_from_the_start_means_one_warning_and_no_spool(
    sqlite: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def main() -> None:
        async with aiocheckpoint.open(sqlite, "k") as cp:
            for number in range(1, 200):
                await cp.write(state(number, number * 100))
            assert not cp.statistics().spooled
            await cp.flush()

    monkeypatch.setattr(os, "posix_fallocate", full)
    asyncio.run(main())
    assert len(warnings_in(caplog)) == 1
    assert "No space left" in warnings_in(caplog)[0]
    assert number_of(read_back(sqlite)) == 199


@pytest.mark.parametrize("obstacle", ["a file", "a link", "read-only"])
def test_a_spool_that_cannot_be_made_means_one_warning_for_all_keys(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, obstacle: str
) -> None:
    async def main(spool: Path) -> None:
        async with Runtime(url, spool=spool) as rt, rt.open("a") as a, rt.open("b") as b:
            await a.write(b"a")
            await b.write(b"b")
            assert not a.statistics().spooled

    base = tmp_path / "spool"
    if obstacle == "read-only":
        with small_disk(base, "64k", options=",ro"):
            asyncio.run(main(base / "in"))
    else:
        if obstacle == "a file":
            base.write_bytes(b"")
        else:
            base.symlink_to(tmp_path / "nowhere")
        asyncio.run(main(base))
    assert read_back(url, "a") == b"a"
    assert read_back(url, "b") == b"b"
    assert len(warnings_in(caplog)) == 1
    assert "no spool in" in warnings_in(caplog)[0]


# Whose spool counts.

STAGE_AND_DIE = """
    options = json.loads(args[1]) if len(args) > 1 else {}
    async with aiocheckpoint.open(url, "k", min_interval=3600, **options) as cp:
        await cp.write(b"0:")
        await cp.flush()
        await cp.write(state(int(args[0])))
        assert cp.statistics().stored < cp.statistics().staged
        die()
"""


def stage_and_die(url: str, number: int, spool: Path | None = None) -> None:
    """Leave a key whose stored state is number 0 and whose staged one is another."""
    run(STAGE_AND_DIE, url, number, json.dumps({"spool": str(spool)} if spool else {}))


def test_a_promoted_state_is_stored_and_logged_once(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiocheckpoint")
    stage_and_die(url, 5)

    async def main() -> None:
        async with aiocheckpoint.open(url, "k") as cp:
            assert cp.resumed
            found = await cp.latest()
            assert found is not None
            assert number_of(found.payload) == 5  # promotion and claim are one commit

    asyncio.run(main())
    promotions = [r for r in caplog.records if r.getMessage().startswith("promoted")]
    assert len(promotions) == 1
    assert number_of(read_back(url)) == 5
    assert len([r for r in caplog.records if r.getMessage().startswith("promoted")]) == 1


def test_the_spool_of_an_older_claim_does_not_come_back(url: str, tmp_path: Path) -> None:
    spool, copy = tmp_path / "spool", tmp_path / "copy"
    stage_and_die(url, 50, spool)
    shutil.copytree(spool, copy)
    assert number_of(read_back(url, spool=spool)) == 50
    for number in (51, 3):  # the seqs go on growing; the states need not
        store_state(url, state(number), spool=spool)
        shutil.rmtree(spool)
        shutil.copytree(copy, spool)
        assert number_of(read_back(url, spool=spool)) == number
        assert spool_files(spool) == []  # superseded, so removed


def test_the_spool_of_another_boot_is_not_used(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage_and_die(url, 5, tmp_path / "spool")
    monkeypatch.setattr(_region, "boot_id", lambda: "another boot")
    assert number_of(read_back(url, spool=tmp_path / "spool")) == 0
    assert spool_files(tmp_path / "spool") == []


@pytest.mark.parametrize("anew", ["stored a state", "stored nothing"])
def test_the_spool_of_a_deleted_run_does_not_come_back(url: str, tmp_path: Path, anew: str) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    stage_and_die(url, 50, here)

    async def delete_and_begin_anew() -> None:
        async with Runtime(url, spool=elsewhere) as rt:
            await rt.delete("k")
            async with rt.open("k") as cp:
                assert await cp.read() is None
                if anew == "stored a state":
                    await cp.write(state(1))

    asyncio.run(delete_and_begin_anew())
    assert number_of(read_back(url, spool=here)) == (1 if anew == "stored a state" else 0)
    assert spool_files(here, elsewhere) == []


def test_an_open_without_spool_that_stores_nothing_does_not_cost_what_was_staged(
    url: str, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    stage_and_die(url, 5, spool)
    assert number_of(read_back(url, spool=None)) == 0
    assert number_of(read_back(url, spool=spool)) == 5


def test_an_open_without_spool_that_stores_a_state_supersedes_the_spool(
    url: str, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    stage_and_die(url, 50, spool)
    store_state(url, state(1), spool=None)
    assert number_of(read_back(url, spool=spool)) == 1
    assert spool_files(spool) == []


def test_a_state_left_behind_by_fresh_does_not_come_back(url: str, tmp_path: Path) -> None:
    async def begin_anew(cp: aiocheckpoint.Checkpointer[bytes]) -> None:
        assert await cp.read() is None

    async def main() -> None:
        async with Runtime(url, spool=None) as rt:
            await rt.run(begin_anew, key="k", fresh=True)

    stage_and_die(url, 5, tmp_path / "spool")
    asyncio.run(main())
    assert read_back(url, spool=tmp_path / "spool") is None


def test_stores_that_share_a_spool_directory_leave_each_other_alone(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    urls = [f"sqlite:{tmp_path}/a.db", f"sqlite:{tmp_path}/b.db", f"file:{tmp_path}/c"]
    for number, url in enumerate(urls, 1):
        stage_and_die(url, number, spool)
    for number, url in enumerate(urls, 1):
        assert number_of(read_back(url, spool=spool)) == number


ZOMBIE = """
    async with aiocheckpoint.open(url, "k", min_interval=3600) as cp:
        await cp.write(b"0:")
        await cp.flush()
        await cp.write(state(1, int(args[0])))
        say(1)
        for number in range(2, 1 << 60):
            await cp.write(state(number, int(args[0])))
            if number % 100 == 0:
                say(number)
"""


@pytest.mark.parametrize("size", [100, 10_000, 300_000])
def test_a_state_is_read_whole_while_a_live_zombie_laps_the_reader(url: str, size: int) -> None:
    with start(ZOMBIE, url, size) as process:
        try:
            said = numbers(process, 0.2)
            found = number_of(read_back(url))
        finally:
            kill(process)
    assert found >= said[-1]


def test_what_a_live_writer_has_staged_is_found_every_time(tmp_path: Path) -> None:
    body = """
        from aiocheckpoint._region import Staged
        from aiocheckpoint._spool import Lane, Spool, key_directory
        from pathlib import Path
        lanes = []
        for size in (50, 60_000):
            directory = Path(url, str(size))
            key_directory(directory)
            lane = Lane(Spool(directory, bytes(range(16))), print)
            for seq in range(1, 100):
                lane.stage(Staged(seq, state(seq, size), "bytes"))
            lanes.append((lane, state(1, size)))
        say(1)
        while True:
            for lane, data in lanes:
                for _ in range(100):
                    seq += 1
                    lane.stage(Staged(seq, data, "bytes"))
    """
    with start(body, str(tmp_path)) as process:
        try:
            assert numbers(process, 0.1) == [1]
            for size in (50, 60_000):
                last = 0
                for _ in range(200):
                    found = newest(_spool.left_over(tmp_path / str(size)), CLAIM)
                    assert found is not None, "a live writer hid what it had staged before"
                    assert number_of(found.data) in (1, 98, 99)
                    assert found.seq >= last
                    last = found.seq
        finally:
            kill(process)


# Damage.


def newest(paths: list[Path], claim: bytes) -> Staged | None:
    """The newest state that a claim has staged."""
    return max((found.staged for found in _spool.staged(paths, claim)), default=None)


def region_of(directory: Path, *states: Staged) -> Path:
    """A region in which these states have been staged."""
    _spool.key_directory(directory)
    lane = Lane(Spool(directory, CLAIM), lambda seq, data: None)
    for one in states:
        lane.stage(one)
    assert lane.region is not None
    return lane.region.path


def test_every_flipped_bit_leaves_a_state_that_was_staged_or_none(tmp_path: Path) -> None:
    path = region_of(tmp_path / "k", *(Staged(n, state(n, 40), "bytes") for n in (1, 2, 3)))
    good = path.read_bytes()
    capacity = (len(good) - 256) // 2 - 24
    half = capacity + 24
    meant = {2, 3, None}
    seen = set()
    positions = [*range(256)]
    for start_ in (256, 256 + half):
        positions += [*range(start_, start_ + 40), *range(start_ + capacity, start_ + half)]
    for position in positions:
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            path.write_bytes(bad)
            found = newest([path], CLAIM)
            number = None if found is None else found.seq
            assert number in meant, (position, bit)
            if found is not None:
                assert found == Staged(found.seq, state(found.seq, 40), "bytes")
            if position < 256:
                assert found is None
            seen.add(number)
    assert seen == meant


@settings(max_examples=200, deadline=None)
@given(
    damage=st.lists(
        st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=64)), min_size=1, max_size=8
    ),
    cut=st.integers(0, 4096),
)
def test_no_damage_makes_a_state_that_nobody_staged(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, bytes]], cut: int
) -> None:
    staged = [Staged(n, state(n, 500 * n), "bytes") for n in (1, 2, 3)]
    path = region_of(tmp_path_factory.mktemp("spool") / "k", *staged)
    bad = bytearray(path.read_bytes())
    for position, data in damage:
        bad[position : position + len(data)] = data
    path.write_bytes(bad[: cut or None])
    assert newest([path], CLAIM) in (None, *staged)
    shutil.rmtree(path.parent)


def _make_link(path: Path) -> None:
    whole = path.with_name("elsewhere")
    path.rename(whole)
    path.symlink_to(whole)


def _make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "in").write_bytes(b"")


def _header(path: Path, capacity: int, boot: object = None) -> None:
    """A header that is whole, and lies."""
    data = bytearray(path.read_bytes())
    fields = (CLAIM, boot or boot_id(), "bytes", capacity)
    claim = bytes.fromhex(path.name.partition(".")[0])
    body = msgspec.msgpack.encode((claim, *fields[1:]))
    block = (data[:8] + struct.pack("<I", len(body)) + body).ljust(248, b"\0")
    data[:256] = block + struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(block)))
    path.write_bytes(data)


SPOILERS: dict[str, Callable[[Path], object]] = {
    "a header alone": lambda path: os.truncate(path, 256),
    "cut in a half": lambda path: os.truncate(path, 1000),
    "no region": lambda path: path.write_bytes(b"hello" * 1000),
    "a huge capacity": lambda path: _header(path, (1 << 63) - 1),
    "a huger capacity": lambda path: _header(path, (1 << 64) - 1),
    "a negative capacity": lambda path: _header(path, -1),
    "a header of other types": lambda path: _header(path, 1872, boot=7),
    "a link": _make_link,
    "a FIFO": _make_fifo,
    "a directory": _make_directory,
}


@pytest.mark.parametrize("how", SPOILERS)
def test_a_spoiled_region_is_ignored_with_a_warning(
    sqlite: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    spool = tmp_path / "spool"
    stage_and_die(sqlite, 5, spool)
    (region,) = spool_files(spool)
    SPOILERS[how](region)
    assert number_of(read_back(sqlite, spool=spool)) == 0
    assert len([w for w in warnings_in(caplog) if "damaged or unreadable" in w]) == 1
    caplog.clear()
    store_state(sqlite, state(6), spool=spool)
    assert number_of(read_back(sqlite, spool=spool)) == 6


def test_a_region_that_may_not_be_read_is_ignored_with_a_warning(
    sqlite: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    stage_and_die(sqlite, 5, spool)
    (region,) = spool_files(spool)
    real = os.open

    def forbidden(path: str | Path, *args: int, **kwargs: Any) -> int:
        if Path(path) == region:  # file modes mean nothing to root
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", forbidden)
    assert number_of(read_back(sqlite, spool=spool)) == 0
    assert len([w for w in warnings_in(caplog) if "damaged or unreadable" in w]) == 1


def test_a_region_is_made_although_others_take_the_directory_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claims that leave remove an empty directory, between any two steps of those that come."""
    make, times = _spool._make_directory, [0]

    def made_and_gone(directory: Path) -> None:
        make(directory)
        times[0] += 1
        if times[0] < 6:
            _spool.drop_directory(directory)
            _spool.drop_directory(directory.parent)

    monkeypatch.setattr(_spool, "_make_directory", made_and_gone)
    spool = Spool(tmp_path / "spool" / "k", CLAIM)
    region = spool.allocate(Staged(0, b"", "bytes"), lambda seq, data: None)
    assert region is not None
    assert region.path.exists()
    assert times == [6]


def test_a_region_in_the_making_is_no_damage(tmp_path: Path) -> None:
    """Nor is one that a power cut has left unwritten; but other zeros where a header was are."""
    path = tmp_path / "region"
    for size in (0, 100, 4096):
        path.write_bytes(bytes(size))
        assert _region.read_region(path, CLAIM) is None
    path.write_bytes(bytes(4095) + b"x")
    with pytest.raises(ValueError, match="not a spool region"):
        _region.read_region(path, CLAIM)


@pytest.mark.parametrize("what", ["a file", "a link"])
def test_a_key_directory_that_is_none_means_a_warning(
    sqlite: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    spool = tmp_path / "spool"
    stage_and_die(sqlite, 5, spool)
    (region,) = spool_files(spool)
    shutil.rmtree(region.parent)
    if what == "a file":
        region.parent.write_bytes(b"")
    else:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "kept").write_bytes(b"not ours")
        region.parent.symlink_to(tmp_path / "other")
    store_state(sqlite, state(6), spool=spool)
    assert len(warnings_in(caplog)) == 1
    assert number_of(read_back(sqlite, spool=spool)) == 6
    if what == "a link":
        assert (tmp_path / "other" / "kept").exists()


def test_a_spool_that_cannot_be_cleaned_does_not_hold_up_the_exit(
    sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with aiocheckpoint.open(sqlite, "k", spool=tmp_path / "spool") as cp:
            await cp.write(state(1))
            monkeypatch.setattr(Path, "unlink", forbidden)

    def forbidden(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system", str(path))

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 10
    monkeypatch.undo()
    assert number_of(read_back(sqlite, spool=tmp_path / "spool")) == 1
    assert spool_files(tmp_path / "spool") == []


# What it leaves on the disk.


def test_a_clean_exit_leaves_nothing_behind(url: str, tmp_path: Path) -> None:
    async def main() -> None:
        rt = Runtime(url, spool=tmp_path / "spool")
        async with rt, rt.open("a") as a, rt.open("b") as b:
            for number in range(100):
                await a.write(state(number, 100 * number))
                b.write_nowait(state(number))
            found = spool_files(tmp_path / "spool")
            assert len({path.parent for path in found}) == 2
            assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}
            parents = {path.parent for path in found} | {path.parent.parent for path in found}
            assert {stat.S_IMODE(path.stat().st_mode) for path in parents} == {0o700}

    old = os.umask(0)
    try:
        asyncio.run(main())
    finally:
        os.umask(old)
    assert list((tmp_path / "spool").glob("*/*")) == []


def test_a_failed_or_cancelled_body_leaves_nothing_behind(url: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with aiocheckpoint.open(url, "k", spool=tmp_path / "spool") as cp:
            await cp.write(state(1))
            raise LookupError

    with pytest.raises(LookupError):
        asyncio.run(main())
    assert spool_files(tmp_path / "spool") == []
    assert number_of(read_back(url)) == 1


@pytest.mark.parametrize("kind", [None, dict])
def test_a_handle_that_wrote_nothing_leaves_nothing_behind(
    url: str, tmp_path: Path, kind: type | None
) -> None:
    async def main() -> None:
        async with aiocheckpoint.open(url, "k", type=kind, spool=tmp_path / "spool"):
            pass

    asyncio.run(main())
    assert list((tmp_path / "spool").glob("*/*")) == []


def test_a_fenced_handle_removes_its_own_region_and_no_other(url: str, tmp_path: Path) -> None:
    spool = tmp_path / "spool"

    async def main() -> None:
        first = Runtime(url, spool=spool, min_interval=0)
        second = Runtime(url, spool=spool, min_interval=NEVER)
        async with first, second:
            opening = first.open("k")
            old = await opening.__aenter__()
            async with second.open("k") as new:
                await new.write(b"0:")
                await new.flush()
                await new.write(state(3))  # which only the spool holds now
                with pytest.raises(aiocheckpoint.FencedError):
                    while True:  # until a commit has been tried
                        await old.write(state(2, 50_000))
                        await asyncio.sleep(0.002)
                assert len(spool_files(spool)) == 2
                with pytest.raises(aiocheckpoint.FencedError):
                    await opening.__aexit__(None, None, None)
                (region,) = spool_files(spool)
                assert region.name.startswith(new._held.record.claim.hex())
                found = newest([region], new._held.record.claim)
                assert found is not None
                assert found.data == state(3)

    asyncio.run(main())
    assert spool_files(spool) == []


def test_deleting_a_key_removes_what_a_killed_process_left(url: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with Runtime(url, spool=tmp_path / "spool") as rt:
            await rt.delete("k")

    stage_and_die(url, 5, tmp_path / "spool")
    assert spool_files(tmp_path / "spool") != []
    asyncio.run(main())
    assert spool_files(tmp_path / "spool") == []
    assert read_back(url, spool=tmp_path / "spool") is None


def test_memory_has_no_spool() -> None:
    async def main() -> None:
        async with aiocheckpoint.open("memory:", "k") as cp:
            await cp.write(b"x")
            assert not cp.statistics().spooled

    asyncio.run(main())


@pytest.mark.timeout(240)  # ten thousand directories: some disks take a minute
@pytest.mark.parametrize(("scheme", "keys"), [("sqlite", 10_000), ("file", 2_000)])
def test_many_open_keys_fit_under_a_small_limit_of_descriptors(
    tmp_path: Path, scheme: str, keys: int
) -> None:
    body = """
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
        total = int(args[0])
        gate = asyncio.Semaphore(500)
        async with Runtime(url, min_interval=3600) as rt:
            async def enter(i):
                async with gate:
                    return await rt.open(f"k{i}").__aenter__()
            handles = await asyncio.gather(*map(enter, range(total)))
            say(len(os.listdir("/proc/self/fd")))
            for i, cp in enumerate(handles, 1):
                await cp.write(b"0:")
                await cp.write(state(i))
            die()
    """
    url = f"sqlite:{tmp_path}/s.db" if scheme == "sqlite" else f"file:{tmp_path}/s"
    (descriptors,) = map(int, run(body, url, keys, within=200))
    assert descriptors < 200

    async def sample() -> None:
        async with Runtime(url) as rt:
            for i in (*range(0, keys, keys // 40), keys - 1):
                async with rt.open(f"k{i}") as cp:
                    assert number_of(await cp.read()) == i + 1

    asyncio.run(sample())


# The lane, with any states.

CODECS = st.sampled_from(["bytes", "msgpack", "pickle"])
SMALL = st.integers(0, 9000)
LARGE = st.sampled_from(
    [1_895, 1_896, 1_897, 16_384, 16_385, 200_000, SPOOL_LIMIT, SPOOL_LIMIT + 1]
)


@settings(max_examples=60, deadline=None)
@given(stages=st.lists(st.tuples(SMALL | LARGE, CODECS), min_size=1, max_size=12))
def test_the_newest_of_any_stages_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, stages: list[tuple[int, str]]
) -> None:
    directory = tmp_path_factory.mktemp("spool") / "k"
    _spool.key_directory(directory)
    overflown: list[int] = []
    lane = Lane(Spool(directory, CLAIM), lambda seq, data: overflown.append(seq))
    expected: Staged | None = None
    for seq, (size, codec) in enumerate(stages, 1):
        staged = Staged(seq, state(seq, size), codec)
        lane.stage(staged)
        if len(staged.data) <= SPOOL_LIMIT:
            expected = staged
        assert lane.takes(staged) == (expected is staged)
        assert newest(_spool.left_over(directory), CLAIM) == expected
    assert overflown == []
    lane.region = None
    shutil.rmtree(directory)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(SMALL, min_size=1, max_size=20))
def test_the_fast_path_hands_on_what_does_not_fit(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    directory = tmp_path_factory.mktemp("spool") / "k"
    _spool.key_directory(directory)
    lane = Lane(Spool(directory, CLAIM), lambda seq, data: lane.stage(Staged(seq, data, "bytes")))
    lane.reserve(None)
    for seq, size in enumerate(sizes, 1):
        data = state(seq, size)
        assert lane.region is not None
        lane.region.stage(seq, data)
        found = newest(_spool.left_over(directory), CLAIM)
        assert found == Staged(seq, data, "bytes")
        assert len(_spool.left_over(directory)) == 1
    shutil.rmtree(directory)


def test_a_region_of_another_claim_is_never_read(tmp_path: Path) -> None:
    path = region_of(tmp_path / "k", Staged(9, b"old", "bytes"))
    assert newest([path], bytes(16)) is None
    renamed = path.with_name(f"{bytes(16).hex()}.0")
    path.rename(renamed)
    assert newest([renamed], bytes(16)) is None


def test_a_late_stage_into_a_removed_region_does_no_harm(tmp_path: Path) -> None:
    directory = tmp_path / "k"
    _spool.key_directory(tmp_path / "k")
    spool = Spool(directory, CLAIM)
    lane = Lane(spool, lambda seq, data: None)
    lane.stage(Staged(1, b"x", "bytes"))
    region = lane.region
    assert region is not None
    spool.remove()
    lane.region = None
    done = threading.Event()

    def late() -> None:
        for seq in range(2, 2000):
            region.stage(seq, b"y" * 1000)
        done.set()

    threading.Thread(target=late).start()
    assert done.wait(10)
    assert not directory.exists()


# Regions that share a file.


def _lanes(base: Path, count: int) -> list[Lane]:
    lanes = []
    for number in range(count):
        directory = base / f"{number}"
        _spool.key_directory(directory)
        lane = Lane(Spool(directory, os.urandom(16)), lambda seq, data: None)
        lane.reserve(None)
        assert lane.region is not None
        lanes.append(lane)
    return lanes


def _mappings(base: Path) -> int:
    return sum(str(base) in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.skipif(sys.platform != "linux", reason="regions share files on Linux alone")
def test_small_regions_share_a_mapping(tmp_path: Path) -> None:
    """A process may have 65,530 mappings: a thousand regions need one, and each keeps its own."""
    lanes = _lanes(tmp_path / "spool", 1000)
    for number, lane in enumerate(lanes):
        lane.stage(Staged(1, b"%d" % number, "bytes"))
    assert 1 <= _mappings(tmp_path) <= 2
    for number, lane in enumerate(lanes):
        assert lane.region is not None
        found = _region.read_region(lane.region.path, lane._spool.claim)
        assert found is not None
        assert found.staged.data == b"%d" % number


@pytest.mark.skipif(sys.platform != "linux", reason="regions share files on Linux alone")
def test_a_seat_that_is_taken_again_shows_nothing_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a header nor a state of the region that had it."""
    monkeypatch.setattr(_mapped, "_SHARED", 2 * _mapped.SEAT)
    kept, left = _lanes(tmp_path / "spool", 2)
    left.stage(Staged(7, b"secret", "bytes"))
    assert kept.region is not None
    assert b"secret" in kept.region.path.read_bytes()
    left._spool.remove()
    del left
    gc.collect()
    (again,) = _lanes(tmp_path / "spool", 1)
    assert again.region is not None
    assert again.region.path.samefile(kept.region.path)
    assert _region.read_region(again.region.path, again._spool.claim) is None
    assert b"secret" not in kept.region.path.read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="regions share files on Linux alone")
def test_nothing_is_left_of_a_shared_file(tmp_path: Path) -> None:
    """With the last region in it its descriptor and its memory go."""
    lanes = _lanes(tmp_path / "spool", 10)
    for lane in lanes:
        lane._spool.remove()
    del lanes, lane
    gc.collect()
    assert _mappings(tmp_path) == 0
    assert not any(str(tmp_path) in what for what in _open_files())
    assert not list(tmp_path.rglob("*.*"))


def _open_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


@pytest.mark.parametrize("missing", ["O_TMPFILE", "names", "names of what has none"])
def test_where_files_cannot_be_shared_each_region_has_its_own(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on file systems and systems that lack what it takes."""
    if missing == "O_TMPFILE":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    else:

        def refuse(*args: object, **options: object) -> None:
            number = errno.EOPNOTSUPP if missing == "names" else errno.ENOENT
            raise OSError(number, "not here")

        monkeypatch.setattr(os, "link", refuse)
    for number, lane in enumerate(_lanes(tmp_path / "spool", 3)):
        lane.stage(Staged(1, b"%d" % number, "bytes"))
        assert lane.region is not None
        assert lane.region.path.name.count(".") == 1
        found = _region.read_region(lane.region.path, lane._spool.claim)
        assert found is not None
        assert found.staged.data == b"%d" % number


def test_names_that_no_region_has_are_left_alone(tmp_path: Path) -> None:
    """Such as one whose offset is too large for any file."""
    directory = tmp_path / "spool" / "k"
    _spool.key_directory(directory)
    for name in (f"{CLAIM.hex()}.0.{'9' * 30}", f"{CLAIM.hex()}.0.0.0", f"{CLAIM.hex()}."):
        (directory / name).write_bytes(b"x")
    (directory / f"{CLAIM.hex()}.0.{10**11}").write_bytes(b"x")
    left = _spool.left_over(directory)
    assert len(left) == 1
    assert _spool.staged(left, CLAIM) == []


@pytest.mark.skipif(sys.platform != "linux", reason="regions share files on Linux alone")
def test_a_region_that_is_made_while_another_gets_its_name_closes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler may, just after the last name of the shared file has gone."""
    (first,) = _lanes(tmp_path / "spool", 1)
    link = os.link
    made: list[Lane] = []

    def interrupted(src: str, dst: Path, *, src_dir_fd: int) -> None:
        if not made:
            first._spool.remove()
            _spool.key_directory(tmp_path / "spool" / "again")
            lane = Lane(Spool(tmp_path / "spool" / "again", bytes(16)), lambda seq, data: None)
            made.append(lane)
            lane.reserve(None)
        os.fstat(src_dir_fd)
        link(src, dst, src_dir_fd=src_dir_fd)

    monkeypatch.setattr(os, "link", interrupted)
    (second,) = _lanes(tmp_path / "spool", 1)
    monkeypatch.undo()
    for lane in (*made, second):
        assert lane.region is not None
        lane.stage(Staged(1, b"kept", "bytes"))
        found = _region.read_region(lane.region.path, lane._spool.claim)
        assert found is not None
