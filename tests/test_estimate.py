"""How often to store: the formulas, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocheckpoint._estimate import estimate, recommended, requests_of, rounded, young_daly
from aiocheckpoint._records import INLINE_LIMIT

seconds = st.floats(1e-6, 1e6)


def test_the_interval_is_that_of_young() -> None:
    """Half a second a checkpoint and an hour between failures: sqrt(2 * 0.5 * 3600) is a minute."""
    assert young_daly(0.5, 3600) == 60


@given(cost=seconds, mtbf=seconds, factor=st.floats(0.1, 10))
def test_no_other_interval_wastes_less(cost: float, mtbf: float, factor: float) -> None:
    """Young's model: a commit takes its cost, a failure loses half an interval."""

    def waste(interval: float) -> float:
        return cost / interval + interval / 2 / mtbf

    best = young_daly(cost, mtbf)
    assert waste(best) <= waste(best * factor) * (1 + 1e-9)


@given(commit=seconds, cost=seconds, mtbf=seconds)
def test_no_interval_is_shorter_than_a_commit(commit: float, cost: float, mtbf: float) -> None:
    """The recommended one is not, and a shorter one is taken for as long as the commit."""
    assert recommended(commit, cost, mtbf) >= commit * (1 - 1e-9)
    assert estimate(100, commit, cost, mtbf, commit / 2).interval == commit


@given(value=st.floats(0.1, 1e6))
def test_intervals_are_rounded_up_to_short_numbers(value: float) -> None:
    """By half at most."""
    found = rounded(value)
    assert value * (1 - 1e-9) <= found <= value * 1.5 + 1e-9
    assert len(f"{found:f}".replace(".", "").strip("0")) <= 2


def test_what_a_failure_loses() -> None:
    """On average half an interval and a commit, at worst a whole one."""
    each = estimate(100, commit=0.5, cost=0.1, mtbf=3600, interval=10)
    assert each.lost_mean == 5.5
    assert each.lost_most == 10.5
    assert math.isclose(each.overhead, 0.1 / 10 + 5.5 / 3600)
    assert each.requests == 360


@pytest.mark.parametrize(
    ("size", "requests"),
    [(100, 1), (INLINE_LIMIT, 1), (INLINE_LIMIT + 1, 2), (8 << 20, 2), (100_000_000, 15)],
)
def test_requests_of_a_commit(size: int, requests: int) -> None:
    """Small states lie in the record; others go before it, in parts of 8 MiB if they are larger:
    one request to begin, one a part, one to end."""
    assert requests_of(size) == requests
