"""Two runtimes on stores with faults at every call: the latest wins, and nothing is lost."""

from __future__ import annotations

from ._faults import explore
from ._torture import Budget


def test_latest_wins_whatever_the_stores_do_wrong() -> None:
    counts = Budget(cases=8, seed=1).each(explore)
    assert counts["acknowledged"] > 1_000
    assert counts["opened"] > 500
    assert counts["fenced"] > 50
    assert counts["timed out"] > 5
    assert counts["refused for good"] > 5
