"""The power of a real ext4 or xfs is cut at a program's calls: nothing stored is lost."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.reliability import _random_jobs
from tests.reliability._crash import record
from tests.reliability._images import KINDS, Volume, volume
from tests.reliability._jobs import JOBS
from tests.reliability._left_out import SYNCS, Sync, finds
from tests.reliability._power import URLS, Plan
from tests.reliability._stops import check_platform
from tests.reliability._torture import Budget, Case, Counts
from tests.reliability.test_crash_points import BITES

_MOST = 120
"""Calls of one program at which the long form cuts the power."""

FOUND = [(kind, sync) for kind in KINDS for sync in SYNCS if kind in sync.found]


@pytest.fixture(scope="module", params=KINDS)
def disk(request: pytest.FixtureRequest) -> Iterator[Volume]:
    check_platform()
    with volume(request.param) as made:
        yield made


def part(budget: Budget) -> Counts:
    """The long form: at each call of the programs, and of twice as many at random."""
    names = list(JOBS)
    with ExitStack() as stack:
        try:
            check_platform()
            disks = [stack.enter_context(volume(kind)) for kind in KINDS]
        except pytest.skip.Exception as reason:
            print(f"disks: skipped: {reason}")
            return Counts(skipped=1)

        def attempt(case: Case) -> Counts:
            rng = case.random()
            listed = names[case.number // 3 % len(names)]
            name = _random_jobs.name(rng) if case.number % 3 else listed
            spool = rng.random() < 0.5
            plan = Plan(disks[case.number % len(disks)], rng.choice(list(URLS)), name, spool)
            return cut_at(plan, rng, _MOST, again=0.25)

        return budget.each(attempt)


def cut_at(plan: Plan, rng: random.Random, most: int, again: float) -> Counts:
    """Cut the power at each of a program's calls, or at so many of them; a share twice."""
    calls = len(plan.calls())
    stops = range(1, calls + 1)
    counts = Counts(programs=1)
    for stop in [*(stops if calls <= most else sorted(rng.sample(stops, most))), None]:
        counts.update(plan.cut(stop, rng.randrange(1, 60) if rng.random() < again else None))
    return counts


@pytest.mark.parametrize("scheme", URLS)
def test_what_was_stored_is_there(disk: Volume, scheme: str) -> None:
    """What was acknowledged, or newer, whole, with its files, after one power cut or two."""
    rng = random.Random(scheme)
    counts = Counts()
    for name, spool in (("small", True), ("large", False), ("files", True), ("moved", True)):
        counts.update(cut_at(Plan(disk, scheme, name, spool), rng, most=4, again=0.25))
    assert counts["cuts"] == 20
    assert counts["second"] > 0


@pytest.mark.parametrize(
    ("disk", "sync"),
    FOUND,
    indirect=["disk"],
    ids=[f"{kind}-{sync.scheme}: {sync.of}" for kind, sync in FOUND],
)
def test_a_sync_that_is_left_out_is_found(disk: Volume, sync: Sync) -> None:
    """Without it something is lost, and these tests find that."""
    assert finds(sync.plan(disk)) is not None


@pytest.mark.parametrize("mode", ["OFF", "NORMAL"])
def test_the_setting_of_sqlite_is_needed(disk: Volume, mode: str) -> None:
    """With less than our `synchronous`, something stored is lost."""
    assert finds(Plan(disk, "sqlite", "small", synchronous=mode)) is not None


def test_there_is_no_other_sync(disk: Volume) -> None:
    """The list has all that the stores make, and all the files that SQLite syncs."""
    assert {sync.site for sync in SYNCS if sync.scheme == "file"} == set(BITES)
    made = {call for call in Plan(disk, "sqlite", "checkpointed").calls() if "fdatasync" in call}
    assert made == {sync.site for sync in SYNCS if "fdatasync" in sync.site}


@pytest.mark.parametrize("name", ["small", "large"])
def test_no_call_goes_unseen(disk: Volume, name: str) -> None:
    """The program waits at each link and each sync that it makes."""
    made = Counter(op.kind for op in record(JOBS[name], URLS["file"]).ops)
    seen = Counter(call.partition(" ")[0] for call in Plan(disk, "file", name).calls())
    assert seen["link"] + seen["linkat"] == made["link"] > 3
    assert seen["fsync"] + seen["pwritev2"] == made["sync"] > 10


def test_what_is_not_synced_is_lost(disk: Volume) -> None:
    """A sync has its own file durable, and all names before it, and nothing else."""
    with disk.directory() as base:
        (base / "before").write_bytes(b"data")
        with open(base / "synced", "wb") as file:
            file.write(b"data")
            file.flush()
            os.fsync(file.fileno())
        (base / "after").write_bytes(b"data")
        disk.cut()
        disk.boot()
        found = {path.name: path.read_bytes() for path in base.iterdir()}
    assert found == {"before": b"", "synced": b"data"}
