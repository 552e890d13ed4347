"""Fixtures of the tests of object services; those of a real one name another `service`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .faulty import Proxy, proxied
from .objects import Service, moto


@pytest.fixture
def service() -> Service:
    return moto()


@pytest.fixture
def proxy(service: Service) -> Iterator[Proxy]:
    with proxied(service) as proxy:
        yield proxy
