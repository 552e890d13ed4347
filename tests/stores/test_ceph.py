"""Both clients of S3 against Ceph's gateway, a real service: slow to start, and marked `ceph`."""

from __future__ import annotations

import pytest

from .ceph import ceph
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


class TestS3StoreOnCeph(_TestS3Store):
    many_keys = 10_000


class TestS3OnCeph(_TestS3):
    pass


class TestObstoreStoreOnCeph(_TestObstoreStore):
    many_keys = 10_000
