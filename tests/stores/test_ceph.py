"""Both clients of S3 against Ceph's gateway, a real service: slow to start, and marked `ceph`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .ceph import ceph
from .faulty import Proxy, proxied
from .objects import Service
from .test_obstore import TestObstoreStore as _TestObstoreStore
from .test_s3 import TestS3 as _TestS3
from .test_s3 import TestS3Store as _TestS3Store

pytestmark = [pytest.mark.anyio, pytest.mark.ceph, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def service() -> Service:
    return ceph()


@pytest.fixture
def proxy(service: Service) -> Iterator[Proxy]:
    with proxied(service) as proxy:
        yield proxy


class TestS3StoreOnCeph(_TestS3Store):
    many_keys = 10_000


class TestS3OnCeph(_TestS3):
    pass


class TestObstoreStoreOnCeph(_TestObstoreStore):
    many_keys = 10_000
