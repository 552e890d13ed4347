"""Outages: services that fail in every way that we can make them, below writers that go on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from ._outage_postgresql import postgresql
from ._outage_redis import EVERYSEC, redis
from ._outage_s3 import objects
from ._outage_setting import Service
from ._outage_storm import outage
from ._torture import Budget, Case, Counts

SERVICES: dict[str, Callable[[], AbstractContextManager[Service]]] = {
    "s3": functools.partial(objects, "s3"),
    "s3+obstore": functools.partial(objects, "s3+obstore"),
    "redis": redis,
    "redis, everysec": functools.partial(redis, *EVERYSEC),
    "postgresql": postgresql,
}


def outages(budget: Budget) -> Counts:
    """One storm after the other, over each kind of service that is here."""
    absent: set[str] = set()

    def one(case: Case) -> Counts:
        kind = list(SERVICES)[case.number % len(SERVICES)]
        if kind in absent:
            return Counts(left_out=1)
        try:
            with SERVICES[kind]() as service:
                return Counts(storms=1) + outage(service, case.random())
        except pytest.skip.Exception as reason:
            absent.add(kind)
            print(f"{budget.part}: {kind} is left out: {reason}", flush=True)
            return Counts(left_out=1)

    return budget.each(one)
