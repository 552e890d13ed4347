"""SIGKILL at random moments: nothing that was promised is lost, torn, or older than before."""

from __future__ import annotations

import pytest

from ._storm import Losses, Lost, chain, storm
from ._torture import Budget


def test_no_kill_loses_tears_or_turns_back_a_state() -> None:
    counts = storm(Budget(cases=12, seed=5))
    assert counts["kills"] >= 150  # of 240; some end before they are killed
    assert counts["opened"] > counts["kills"] // 2


@pytest.mark.parametrize(
    ("scheme", "spool", "flaw"),
    [
        ("file", True, "no_promotion"),
        ("sqlite", True, "no_promotion"),
        ("file", True, "trailer_first"),
        ("file", False, "flush_does_not_wait"),
        ("sqlite", False, "flush_does_not_wait"),
    ],
)
def test_a_broken_guarantee_is_found(scheme: str, spool: bool, flaw: str) -> None:
    with pytest.raises(Lost):
        for number in range(40):
            chain(scheme, Losses(), f"flaw:{number}", spool=spool, flaw=flaw)
