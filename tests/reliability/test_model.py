"""The models of the protocols hold, and each rule of theirs is needed."""

from __future__ import annotations

import pytest

from ._model import RULES, SHORT, Bounds, check


@pytest.mark.parametrize("bounds", SHORT, ids=lambda bounds: bounds.name)
def test_no_interleaving_breaks_a_guarantee(bounds: Bounds) -> None:
    checked = check(bounds)
    assert checked.broken == ""
    assert checked.states > 100_000


@pytest.mark.parametrize("bounds", RULES, ids=lambda bounds: bounds.name)
def test_without_this_rule_a_guarantee_breaks(bounds: Bounds) -> None:
    assert "assertion violated" in check(bounds, bounds.name).broken
