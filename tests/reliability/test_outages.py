"""While a service fails, and after that: nothing acknowledged is lost, and all staged is stored."""

from __future__ import annotations

import random

import pytest

from ..stores.redis_server import ALWAYS
from . import _outage_postgresql
from ._outage_postgresql import postgresql
from ._outage_redis import EVERYSEC, TROUBLES, redis
from ._outage_s3 import FAULTS, objects
from ._outage_storm import outage


@pytest.mark.parametrize("scheme", ["s3", "s3+obstore"])
def test_an_object_service_that_fails_loses_nothing(scheme: str) -> None:
    with objects(scheme, [0.5, 1.0]) as service:
        counts = outage(service, random.Random(2), troubles=1)
    assert sum(counts[name] for name in FAULTS) > 10
    assert counts["flushes"] > 0
    assert counts["looks"] > 10


@pytest.mark.parametrize("options", [ALWAYS, EVERYSEC], ids=["always", "everysec"])
def test_a_redis_that_is_killed_frozen_and_cut_off_loses_nothing(options: tuple[str, ...]) -> None:
    with redis(*options) as service:
        counts = outage(service, random.Random(1), troubles=2)
    assert all(counts[trouble] for trouble in TROUBLES)
    assert counts["flushes"] > 0
    assert counts["looks"] > 10


def test_a_postgresql_that_crashes_freezes_and_drops_connections_loses_nothing() -> None:
    with postgresql() as service:
        counts = outage(service, random.Random(1), troubles=2)
    assert all(counts[trouble] for trouble in _outage_postgresql.TROUBLES)
    assert counts["flushes"] > 0
    assert counts["looks"] > 10
