"""The protocols as models in Promela, checked by spin: every interleaving, within bounds."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests import servers

from ._torture import Budget, Case, Counts

_SOURCES = Path(__file__).parent / "model"
_INSTALL = "apt-get install spin gcc"
_DEPTH = 1_000_000


class Checked(NamedTuple):
    """What came of one check."""

    states: int
    broken: str
    """The assertion that does not hold, or nothing."""


class Bounds(NamedTuple):
    """How much may happen in a model."""

    name: str
    model: str
    defines: Sequence[str]


SHORT = [
    Bounds("kills", "claims", ["STATES=2", "KILLS=1", "LOST=1"]),
    Bounds("takeovers", "claims", ["STATES=2", "KILLS=0", "LOST=0", "THIRD=1"]),
    Bounds("power", "claims", ["STATES=2", "KILLS=0", "LOST=1", "CUTS=1", "SECOND=1"]),
    Bounds("blobs", "claims", ["BLOBS", "STATES=2", "KILLS=0", "LOST=1"]),
    Bounds("deletions", "claims", ["STATES=1", "KILLS=0", "LOST=0", "DELETES=1", "THIRD=0"]),
    Bounds("heads", "heads", ["WRITERS=3", "COMMITS=4"]),
]
LONG = [
    Bounds("kills", "claims", ["STATES=3", "KILLS=2", "LOST=1"]),
    Bounds("lost answers", "claims", ["STATES=2", "KILLS=1", "LOST=2"]),
    Bounds("takeovers", "claims", ["STATES=2", "KILLS=1", "LOST=0", "THIRD=1"]),
    Bounds("takeovers here", "claims", ["STATES=1", "KILLS=2", "LOST=0", "THIRD=0"]),
    Bounds("three attempts", "claims", ["STATES=1", "KILLS=0", "LOST=1", "THIRD=0"]),
    Bounds("power", "claims", ["STATES=3", "KILLS=0", "LOST=2", "CUTS=1", "SECOND=1"]),
    Bounds("blobs", "claims", ["BLOBS", "STATES=2", "KILLS=1", "LOST=1"]),
    Bounds("heads", "heads", ["WRITERS=3", "COMMITS=5"]),
]

RULES = [
    # without its name in the code      what may happen then
    Bounds("NO_CLAIM_CHECK", "claims", ["STATES=3", "KILLS=0", "LOST=0", "SECOND=1", "THIRD=0"]),
    Bounds("CLAIM_THEN_PROMOTE", "claims", ["STATES=1", "KILLS=2", "LOST=0", "THIRD=0"]),
    Bounds("NO_VERSION_IN_COMMIT", "claims", ["STATES=2", "KILLS=0", "LOST=0"]),
    Bounds("VERSIONS_REUSED", "claims", ["STATES=1", "KILLS=0", "LOST=0", "DELETES=1", "THIRD=0"]),
    Bounds("HEADER_FIRST", "claims", ["STATES=2", "KILLS=1", "LOST=0"]),
    Bounds("BLOBS_DELETED_AFTER_UNKNOWN", "claims", ["BLOBS", "STATES=2", "KILLS=0", "LOST=1"]),
    Bounds("NOT_COMMITTED_ONCE_MORE", "claims", ["STATES=2", "KILLS=0", "LOST=1", "CUTS=1"]),
    Bounds("HIGHEST_COLLECTED", "heads", []),
    Bounds("NO_LOOK_AFTER_LINK", "heads", []),
    Bounds("WITHDRAWN", "heads", []),
]
"""Rules, each under the name that leaves it out, and bounds that suffice to see why it is there."""


def check(bounds: Bounds, *without: str, seconds: float = 55) -> Checked:
    """Check a model to completion, with rules left out.

    Raises:
        subprocess.TimeoutExpired: it takes longer.
    """
    spin = servers.program("spin", "model checker", _INSTALL)
    compiler = servers.program("gcc", "C compiler", _INSTALL)
    defines = [f"-D{define}" for define in (*bounds.defines, *without)]
    with tempfile.TemporaryDirectory() as name:
        source = _SOURCES / f"{bounds.model}.pml"
        _run(name, 60, spin, "-a", *defines, str(source))
        options = ["-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-DVECTORSZ=2048"]
        _run(name, 60, compiler, *options, "-o", "pan", "pan.c")
        told = _run(name, seconds, "./pan", f"-m{_DEPTH}")
    assert "max search depth too small" not in told, told
    errors = re.search(r"errors: (\d+)", told)
    states = re.search(r"(\d+) states, stored", told)
    assert errors, told
    assert states, told
    broken = re.search(r"^pan:1: (.*) \(at depth", told, re.MULTILINE)
    assert (errors[1] == "0") == (broken is None), told
    assert broken or "Search not completed" not in told, told
    return Checked(int(states[1]), broken[1] if broken else "")


def _run(directory: str, seconds: float, *command: str) -> str:
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


def part(budget: Budget) -> Counts:
    """Check the models with larger bounds, one after the other."""

    def attempt(case: Case) -> Counts:
        bounds = LONG[case.number % len(LONG)]
        checked = check(bounds, seconds=3600)
        assert not checked.broken, f"{bounds.name}: {checked.broken}"
        if budget.part:
            print(f"{budget.part}: {bounds.name}: {checked.states:,} states", flush=True)
        return Counts(models=1, states=checked.states, broken=0)

    first = budget.first if budget.cases == 1 else 0
    cases = len(LONG) if budget.cases is None else min(budget.cases, len(LONG))
    return Budget(cases, budget.seconds, budget.seed, first, budget.part).each(attempt)
