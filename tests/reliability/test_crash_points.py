"""The power is cut at every point of a program that stores in `file:`: nothing stored is lost."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from unittest.mock import ANY

import pytest

from aiocheckpoint import Checkpointer, CorruptCheckpointError, _calls, _unpacking
from aiocheckpoint.stores import _blobs, _disk, file
from tests.reliability import _random_jobs
from tests.reliability._crash import (
    Looker,
    LostError,
    Recording,
    another_boot,
    crash,
    crash_twice,
    fast_directory,
    image_of,
    record,
)
from tests.reliability._disk import Image
from tests.reliability._jobs import JOBS, MIB, Job, Version, going_on
from tests.reliability._strace import traced
from tests.reliability._torn import Op
from tests.reliability._torture import Budget, Case, Counts

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="what a descriptor is of is read from /proc"
)

URL = "file:{}/store"
FEW, MANY = 8, 100
"""States at a point: a sample; and what is all of them for most points."""

SMALL, KEPT = JOBS["small"], JOBS["large kept"]
LIMITS = {"small": MANY, "generations": MANY // 2}
PROGRAMS = [name for name in JOBS if "checkpointed" not in name]  # which are for SQLite alone

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


def again(job: Job) -> Callable[[Image, Version], Recording]:
    """What is done with its key on what a power cut has left."""

    def go_on(image: Image, found: Version) -> Recording:
        with another_boot():
            return record(going_on(job), URL, image, found)

    return go_on


def part(budget: Budget) -> Counts:
    """The long form: the programs, and twice as many at random, other states each time."""

    def attempt(case: Case) -> Counts:
        rng = case.random()
        listed = PROGRAMS[case.number // 3 % len(PROGRAMS)]
        job = _random_jobs.named(_random_jobs.name(rng) if case.number % 3 else listed)
        looker = Looker(job, URL)
        recording, limit = record(job, URL), rng.choice([3, 10, 30])
        counts = crash(recording, looker, rng, limit)
        counts.update(crash_twice(recording, looker, again(job), rng, limit))
        counts.update(looker.counts)
        return counts

    return budget.each(attempt)


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_was_stored_is_there(name: str) -> None:
    """Whatever a power cut leaves: what was acknowledged, or newer, whole, with its files."""
    looker = Looker(JOBS[name], URL)
    recording = record(JOBS[name], URL)
    counts = crash(recording, looker, random.Random(1), LIMITS.get(name, FEW))
    assert counts["states"] > 2 * counts["points"] > 20


@pytest.mark.parametrize("seed", range(6))
def test_a_second_power_cut(seed: int) -> None:
    """What the next program stores on what one power cut has left is there after another."""
    rng = random.Random(seed)
    job = JOBS[rng.choice(PROGRAMS)]
    counts = crash_twice(record(job, URL), Looker(job, URL), again(job), rng, 3)
    assert counts["points"] > 5


@pytest.mark.parametrize("module", [file, _blobs], ids=["heads", "blobs"])
def test_a_store_that_syncs_no_directory(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType
) -> None:
    """Broken itself, and not in its record alone, a store loses something."""
    monkeypatch.setattr(module, "sync_directory", lambda path: None)
    name = "small" if module is file else "large"
    with pytest.raises(LostError):
        crash(record(JOBS[name], URL), Looker(JOBS[name], URL), random.Random(1), MANY)


@pytest.mark.parametrize("site", BITES)
def test_each_sync_is_needed(site: str) -> None:
    """Without it, something is lost, and these tests find it."""
    job = JOBS[BITES[site]]
    recording = record(job, URL)
    assert site in recording.sites()
    with pytest.raises(LostError):
        crash(recording.without(site), Looker(job, URL), random.Random(1), _enough(site))


def _enough(site: str) -> int:
    """A name that is lost among many that are not is found among all states, not in a sample."""
    return MANY if site.startswith("sync_directory") else FEW


def test_there_is_no_other_sync() -> None:
    """The table above has all that the programs make."""
    made = {site for name in PROGRAMS for site in record(JOBS[name], URL).sites()}
    assert made == set(BITES)


def test_where_a_write_cannot_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system without RWF_SYNC it is a sync of its own that is needed, and enough."""
    monkeypatch.setattr(_disk, "_SYNC_FLAG", 0)
    recording = record(SMALL, URL)
    crash(recording, Looker(SMALL, URL), random.Random(1), FEW)
    with pytest.raises(LostError):
        bare = recording.without("write_durably < FileStore._link_next")
        crash(bare, Looker(SMALL, URL), random.Random(1), FEW)


def test_a_fallback_does_not_hide_damage() -> None:
    """With keep=2 an earlier generation stands in for a damaged head: that is found, too."""
    image = record(KEPT, URL).end()
    head = max(name for name in image if "/head." in name)
    found = Looker(KEPT, URL).found({**image, head: b"torn"})
    assert "falling back" in str(found)
    assert isinstance(found, LostError)


def test_a_torn_state_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state of zeros is refused; if it were returned, it would be none that was staged."""
    recording = record(JOBS["large"], URL)
    first = next(i for i, op in enumerate(recording.ops) if op.kind == "acknowledged")
    image = recording._replace(ops=recording.ops[:first]).end()
    blob = next(name for name in image if "/state-" in name)
    image[blob] = bytes(2 * MIB)
    assert isinstance(Looker(JOBS["large"], URL).found(image), CorruptCheckpointError)
    monkeypatch.setattr(_calls, "xxhash", SimpleNamespace(xxh3_128_digest=lambda data: ANY))
    found = Looker(JOBS["large"], URL).found(image)
    assert found == (bytes(2 * MIB), None)
    assert found not in recording.versions


def test_what_a_restore_has_left_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the next restore did not remove what one has left that was cut short."""
    monkeypatch.setattr(_unpacking, "_removed", lambda path, prefix: path.name.startswith(prefix))
    job = JOBS["files"]
    with pytest.raises(LostError, match="an earlier restore"):
        crash(record(job, URL), Looker(job, URL), random.Random(1), MANY // 4)


def test_a_key_that_is_stuck_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """If what is left could be read, and nothing be stored there any more."""

    async def lost(cp: object, state: object) -> None:
        pass

    recording = record(SMALL, URL)
    monkeypatch.setattr(Checkpointer, "write", lost)
    with pytest.raises(LostError, match="gone on"):
        crash(recording, Looker(SMALL, URL), random.Random(1), FEW)


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
    marks = ("staged", "acknowledged")  # are noted beside what other threads do
    return [op._replace(site="") for op in ops if op.kind not in marks]
