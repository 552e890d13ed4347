"""`make torture`: the long forms of the tests of reliability, bounded, seeded and replayable."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import (
    _cancellation,
    _damage,
    _faults,
    _full,
    _fuzz,
    _model,
    _soaking,
    _sync_errors,
    test_crash_points,
    test_crash_points_sqlite,
    test_disks,
)
from ._nemesis import races
from ._outages import outages
from ._storm import storm
from ._torture import Budget, Counts, summary

PARTS: dict[str, Callable[[Budget], Counts]] = {
    "files": test_crash_points.part,
    "sqlite": test_crash_points_sqlite.part,
    "disks": test_disks.part,
    "kills": storm,
    "faults": lambda budget: budget.each(_faults.explore),
    "sync-errors": _sync_errors.part,
    "full-disk": _full.part,
    "races": races,
    "cancellation": _cancellation.cancellation,
    "outages": outages,
    "damage": _damage.part,
    "fuzz": _fuzz.part,
    "model": _model.part,
    "soak": _soaking.part,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make torture", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"which of {', '.join(PARTS)}; default all")
    parser.add_argument("--seconds", type=float, help="how long each part goes on (default 600)")
    parser.add_argument("--cases", type=int, help="how many cases each part tries, at most")
    parser.add_argument("--seed", type=int, help="default: a new one, which is printed")
    parser.add_argument("--case", type=int, help="with --seed: this case alone, to see it again")
    parser.add_argument("--doc", action="store_true", help="write the soak's page into docs/")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if options.case is not None and options.seed is None:
        parser.error("--case needs the --seed that it was found with")
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    one = options.case is not None
    seconds = 600.0 if options.seconds is None and options.cases is None else options.seconds
    doc = Path(__file__).parents[2] / "docs" if options.doc else None
    print(f"seed {seed}", flush=True)
    for name in options.parts or PARTS:
        cases = 1 if one else options.cases
        budget = Budget(cases, None if one else seconds, seed, options.case or 0, name, doc)
        start = time.monotonic()
        counts = PARTS[name](budget)
        print(f"{name}: {summary(counts)}; {time.monotonic() - start:,.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
