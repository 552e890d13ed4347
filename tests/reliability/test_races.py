"""Races for one key: its history is linearizable, and no fenced writer's state is ever seen."""

from __future__ import annotations

import random

import pytest

from ._history import Refused
from ._nemesis import CEPH, STORES, race


@pytest.mark.parametrize("spool", [True, False], ids=["spool", "no-spool"])
@pytest.mark.parametrize("kind", STORES)
def test_a_raced_key_is_linearizable(kind: str, spool: bool) -> None:
    rng = random.Random(3)
    counts = race(kind, "short", spool=spool, rng=rng, seconds=1.5, processes=3, claims=3)
    assert counts["pauses"] > 0


@pytest.mark.ceph
@pytest.mark.timeout(300)
@pytest.mark.parametrize("spool", [True, False], ids=["spool", "no-spool"])
@pytest.mark.parametrize("kind", CEPH)
def test_a_raced_key_is_linearizable_on_ceph(kind: str, spool: bool) -> None:
    race(kind, "short", spool=spool, rng=random.Random(3), seconds=5, processes=4, claims=3)


@pytest.mark.parametrize("flaw", ["commits_blindly", "loads_what_was", "epoch_stays"])
def test_a_broken_guarantee_is_refused(flaw: str) -> None:
    with pytest.raises(Refused):
        for number in range(20):
            rng = random.Random(number)
            race("memory", f"flaw:{number}", spool=False, rng=rng, seconds=0.5, flaw=flaw)
