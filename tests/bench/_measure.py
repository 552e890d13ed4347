"""Rounds, medians and verdicts."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Row:
    """One line of the table: a ratio or a time, measured in several rounds, and its target."""

    what: str
    target: float
    sense: Literal["at most", "at least"]
    rounds: Sequence[float]
    unit: Literal["times", "%", "ms", "MB", "bytes"]
    note: str = ""

    @property
    def measured(self) -> float:
        return statistics.median(self.rounds)

    @property
    def passed(self) -> bool:
        if self.sense == "at most":
            return self.measured <= self.target
        return self.measured >= self.target

    def show(self, value: float) -> str:
        return {
            "times": f"{value:.2f} ×",
            "%": f"{value * 100:.1f} %",
            "ms": f"{value * 1000:.1f} ms",
            "MB": f"{value:.0f} MB",
            "bytes": f"{value:.1f} bytes",
        }[self.unit]

    @property
    def cells(self) -> list[str]:
        sign = "≤" if self.sense == "at most" else "≥"
        low, high = min(self.rounds), max(self.rounds)
        return [
            self.what,
            f"{sign} {self.show(self.target)}",
            self.show(self.measured),
            f"{self.show(low)} to {self.show(high)}",
            "pass" if self.passed else "short",
            self.note,
        ]


def progress(text: str) -> None:
    """Say what is being measured, on a terminal and in a log alike."""
    print(text, file=sys.stderr, flush=True)
