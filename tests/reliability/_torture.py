"""What the parts share: how long to go on, a seed for every case, and counts."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Counts = Counter[str]
"""What happened, by name: `Counts(kills=200, lost=0)`; a count that must be 0 is in it too."""


@dataclass(frozen=True, slots=True)
class Case:
    """One try: its number, and randomness that the seed and the number alone decide."""

    seed: int
    number: int

    def random(self) -> random.Random:
        return random.Random(f"{self.seed}:{self.number}")


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of a part to do: so many cases or seconds, whichever is first used up."""

    cases: int | None = None
    seconds: float | None = None
    seed: int = 0
    first: int = 0
    part: str = ""
    """The name of the part, where progress is to be shown."""
    doc: Path | None = None
    """Where to write what is kept of a run, besides its counts."""

    def each(self, attempt: Callable[[Case], Counts]) -> Counts:
        """Try case after case, at least one; what they counted. A failure says how to repeat it."""
        counts = Counts()
        start = told = time.monotonic()
        number = 0
        while number < (1 << 63 if self.cases is None else self.cases):
            now = time.monotonic()
            if number and self.seconds is not None and now - start >= self.seconds:
                break
            if self.part and now - told >= 10:
                told = now
                done = f"{number:,} cases in {now - start:,.0f} s"
                print(f"{self.part}: {done}: {summary(counts)}", file=sys.stderr, flush=True)
            case = Case(self.seed, self.first + number)
            try:
                for name, count in attempt(case).items():
                    counts[name] += count
            except BaseException as error:
                again = f"--seed {case.seed} --case {case.number}"
                error.add_note(f"to see it again: python -m tests.reliability {self.part} {again}")
                raise
            number += 1
        return counts


def summary(counts: Counts) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
