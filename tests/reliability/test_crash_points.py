"""The power is cut at every point of a program that stores in `file:`: nothing stored is lost."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from tests.reliability._crash import Looker, LostError, crash, fast_directory, image_of, record
from tests.reliability._jobs import JOBS
from tests.reliability._strace import traced
from tests.reliability._torn import Op
from tests.reliability._torture import Budget, Case, Counts

URL = "file:{}/store"
FEW, MANY = 10, 100
"""States at a point: a sample; and what is all of them for most points."""

LIMITS = {"small": MANY, "generations": MANY}

BITES = {
    "sync_directory < FileStore.__init__": "small",
    "sync_directory < FileStore._make": "small",
    "write_durably < FileStore._link_next": "small",
    "FileStore._link_next": "small",
    "write_durably < replace_file < FileStore._make": "generations",
    "sync_directory < replace_file < FileStore._make": "generations",
    "write_durably < replace_file < BlobFiles._put": "large",
    "sync_directory < replace_file < BlobFiles._put": "large",
    "sync_directory < BlobFiles._sync_above < BlobFiles._put": "large",
    "GrowingFile.finish < BlobFiles._finish": "encrypted",
    "sync_directory < GrowingFile.finish < BlobFiles._finish": "encrypted",
    "sync_directory < BlobFiles._sync_above < BlobFiles._finish": "encrypted",
}
"""Every sync of the stores on a disk, and a program that loses something without it."""


def part(budget: Budget) -> Counts:
    """The long form: each program again and again, other states each time."""
    names = list(JOBS)

    def attempt(case: Case) -> Counts:
        rng = case.random()
        job = JOBS[names[case.number % len(names)]]
        looker = Looker(job, URL)
        counts = crash(record(job, URL), looker, rng, rng.choice([5, 20, 100]))
        return counts + looker.counts

    return budget.each(attempt)


@pytest.mark.parametrize("name", JOBS)
def test_what_was_stored_is_there(name: str) -> None:
    """Whatever a power cut leaves: what was acknowledged, or newer, whole, with its files."""
    looker = Looker(JOBS[name], URL)
    recording = record(JOBS[name], URL)
    counts = crash(recording, looker, random.Random(1), LIMITS.get(name, FEW))
    assert counts["states"] > 2 * counts["points"] > 20


@pytest.mark.parametrize("site", BITES)
def test_each_sync_is_needed(site: str) -> None:
    """Without it, something is lost, and these tests find it."""
    job = JOBS[BITES[site]]
    recording = record(job, URL)
    assert site in recording.sites()
    with pytest.raises(LostError):
        crash(recording.without(site), Looker(job, URL), random.Random(1), MANY)


def test_there_is_no_other_sync() -> None:
    """The table above has all that the programs make."""
    made = {site for job in JOBS.values() for site in record(job, URL).sites()}
    assert made == set(BITES)


@pytest.mark.parametrize("name", ["small", "files", "moved", "deleted"])
def test_nothing_goes_past_the_recorder(name: str) -> None:
    """strace sees the same operations in the same order, to the byte."""
    with fast_directory() as above:
        base = above / "base"
        base.mkdir()
        JOBS[name].prepare(base)
        found = traced(name, URL.format(base), base, image_of(base))
    assert len(found.ops) > 20
    assert _plain(found.ops) == _plain(found.recorded)


def _plain(ops: Sequence[Op]) -> list[Op]:
    return [op._replace(site="") for op in ops]
