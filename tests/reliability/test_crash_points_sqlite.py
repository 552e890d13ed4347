"""The power is cut at every point of a program that stores in SQLite: nothing stored is lost.

SQLite does its own input and output, so strace records it, with all the data.
"""

from __future__ import annotations

import functools
import random
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reliability import _random_jobs
from tests.reliability._crash import (
    Looker,
    LostError,
    Recording,
    crash,
    crash_twice,
    fast_directory,
    image_of,
    put_on_disk,
)
from tests.reliability._disk import Image
from tests.reliability._jobs import JOBS, Version
from tests.reliability._strace import traced
from tests.reliability._torture import Budget, Case, Counts

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="what a descriptor is of is read from /proc"
)

URL = "sqlite:{}/jobs.db"
FEW, MANY = 6, 30


@functools.cache
def record(name: str, *synchronous: str) -> Recording:
    """Trace a job."""
    return _record(name, {}, *synchronous)


def again(name: str) -> Callable[[Image, Version], Recording]:
    """What is done with its key on what a power cut has left."""

    def go_on(image: Image, found: Version) -> Recording:
        # the spool is of a boot before, and the process would take it for one of this boot
        start = {path: what for path, what in image.items() if "-spool" not in path}
        recording = _record(f"{_random_jobs.AFTER}{name}", start)
        later = [(data, found[1]) for data, _ in recording.versions[1:]]
        return recording._replace(versions=[found, *later])

    return go_on


def _record(name: str, start: Image, *synchronous: str) -> Recording:
    """What is in `-shm` nobody syncs, and SQLite makes it anew: see `garbage`."""
    with fast_directory() as above:
        base = above / "base"
        put_on_disk(start, base)
        garbage(base)
        _random_jobs.named(name).prepare(base)
        start = _without_shm(image_of(base))
        found = traced(name, URL.format(base), base, start, *synchronous)
        end = _without_shm(image_of(base))
    ops = [op for op in found.ops if not op.path.endswith("-shm")]
    recording = Recording(start, ops, found.versions)
    assert recording.end() == end, "the trace is not what was done"
    return recording


def _without_shm(image: Image) -> Image:
    return {path: what for path, what in image.items() if not path.endswith("-shm")}


def looker(name: str) -> Looker:
    return Looker(_random_jobs.named(name), URL, garbage, whole)


def garbage(directory: Path) -> None:
    """An index of the log that is of no use."""
    if (directory / "jobs.db-wal").exists():
        (directory / "jobs.db-shm").write_bytes(random.Random(1).randbytes(32768))


def whole(directory: Path) -> None:
    with sqlite3.connect(directory / "jobs.db") as connection:
        answer = connection.execute("PRAGMA integrity_check").fetchall()
    connection.close()
    if answer != [("ok",)]:
        raise LostError(f"the database is damaged: {answer}")


def part(budget: Budget) -> Counts:
    """The long form: the programs, and twice as many at random, other states each time."""
    names = list(JOBS)

    def attempt(case: Case) -> Counts:
        rng = case.random()
        listed = names[case.number // 3 % len(names)]
        name = _random_jobs.name(rng) if case.number % 3 else listed
        look = looker(name)
        recording, limit = record(name), rng.choice([3, 10, 30])
        counts = crash(recording, look, rng, limit)
        counts.update(crash_twice(recording, look, again(name), rng, limit))
        counts.update(look.counts)
        return counts

    return budget.each(attempt)


@pytest.mark.parametrize("name", ["small", "checkpointed", "large", "claimed", "deleted", "moved"])
def test_what_was_stored_is_there(name: str) -> None:
    """Whatever a power cut leaves: what was acknowledged, or newer, whole, and a sound database."""
    counts = crash(record(name), looker(name), random.Random(1), FEW)
    assert counts["states"] > 2 * counts["points"] > 20


@pytest.mark.parametrize("seed", range(3))
def test_a_second_power_cut(seed: int) -> None:
    """What the next program stores on what one power cut has left is there after another."""
    name = ["small", "checkpointed", "claimed"][seed]
    rng = random.Random(seed)
    counts = crash_twice(record(name), looker(name), again(name), rng, FEW)
    assert counts["points"] > 5


@pytest.mark.parametrize("mode", ["OFF", "NORMAL"])
def test_the_setting_is_needed(mode: str) -> None:
    """With less than our `synchronous`, something stored is lost."""
    with pytest.raises(LostError):
        crash(record("small", mode), looker("small"), random.Random(1), FEW)


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("small", "fdatasync jobs.db-wal"),
        ("large", "RWF_SYNC jobs.db-blobs/k/FILE"),
        ("large", "fsync jobs.db-blobs/k"),
        ("large", "fsync jobs.db-blobs"),
        ("large", "fsync DIRECTORY"),
        ("encrypted", "fsync jobs.db-blobs/k/FILE"),
    ],
)
def test_each_sync_is_needed(name: str, site: str) -> None:
    """Without it, something is lost."""
    recording = record(name)
    assert site in recording.sites()
    with pytest.raises(LostError):
        crash(recording.without(site), looker(name), random.Random(1), MANY)


def test_a_damaged_database_is_found(tmp_path: Path) -> None:
    """The check of the whole database sees what reading a key does not: a lost free page."""
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    whole(tmp_path)
    with open(tmp_path / "jobs.db", "r+b") as file:
        file.seek(36)
        file.write(b"\0\0\0\5")
    with pytest.raises(LostError, match="damaged"):
        whole(tmp_path)
