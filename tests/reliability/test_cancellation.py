"""Cancelled wherever it waits, nothing is lost and nothing is left."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import _cancellation, _programs
from ._cancellation import every_point, points_of
from ._cancelling import BACKENDS, Program
from ._programs import PROGRAMS, deleting, handle, moving, promoting, saving
from ._torture import Budget

pytestmark = pytest.mark.filterwarnings("error")

every_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
every_backend = pytest.mark.parametrize("backend", BACKENDS)

WAITS = {
    "aiocheckpoint.open, entering": "alone",
    "aiocheckpoint.open, leaving": "alone",
    "Runtime, entering": "handle",
    "Runtime, leaving": "handle",
    "Runtime.delete": "deleting",
    "Runtime.flush": "handle",
    "Runtime.keys": "handle",
    "Runtime.latest": "handle",
    "delete": "deleting",
    "flush": "handle",
    "latest": "handle",
    "map, early, leaving": "mapping",
    "map, iterating": "mapping",
    "map, leaving": "mapping",
    "open, entering": "handle",
    "open, leaving": "handle",
    "open, leaving with an exception": "handle",
    "read": "handle",
    "restore": "saving",
    "restore into a directory": "saving",
    "restore, not stored yet": "moving",
    "run": "running",
    "run, done before": "running",
    "save": "saving",
    "save(move=True)": "moving",
    "write": "handle",
}
"""What waits, and a program in which it does."""


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Retries are meant here."""
    logger = logging.getLogger("aiocheckpoint")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


@every_backend
def test_programs_wait_in_every_call(backend: str, tmp_path: Path) -> None:
    """The points are those of every call that waits; saves and restores have many in the I/O
    thread."""
    for name in set(WAITS.values()):
        points = points_of(getattr(_programs, name), "memory", backend, tmp_path)
        missing = {what for what, where in WAITS.items() if where == name}
        missing -= {point.doing for point in points}
        assert not missing
        if name == "saving":
            behind = [point for point in points if point.side == "io"]
            assert len([point for point in behind if point.doing == "save"]) >= 10
            assert len([point for point in behind if point.doing == "restore"]) >= 5


@every_program
@every_backend
def test_interrupted_anywhere_nothing_is_lost_or_left(
    program: Program, backend: str, tmp_path: Path
) -> None:
    """At each point, in one of the ways; over a store in memory. The I/O thread is the same under
    every loop: all of its points are taken on asyncio, and every third on the others."""
    behind = 1 if backend == "asyncio" else 3
    counts = every_point(program, "memory", backend, tmp_path, behind=behind)
    assert counts["interruptions"] >= 5
    assert counts["over"] <= counts["interruptions"] // 2


@pytest.mark.parametrize("scheme", ["file", "sqlite"])
@pytest.mark.parametrize(
    "program", [handle, saving, moving, promoting, deleting], ids=lambda program: program.__name__
)
def test_interrupted_on_a_disk_nothing_is_lost_or_left(
    program: Program, scheme: str, tmp_path: Path
) -> None:
    """At every eleventh point of the programs that ask most of a store, where it has files."""
    backend = list(BACKENDS)[PROGRAMS.index(program) % 3]
    counts = every_point(program, scheme, backend, tmp_path, step=11)
    assert counts["interruptions"]


def test_long_form_counts_its_cases() -> None:
    """What was lost or left is counted too, and is nothing."""
    counts = _cancellation.cancellation(Budget(cases=6, seed=5))
    assert counts["interruptions"] + counts["over"] == 6
    assert counts["lost"] == counts["left"] == 0
