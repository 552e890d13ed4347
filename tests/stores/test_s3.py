"""`s3:` against moto and Ceph: the contract, and what only object services do."""

from __future__ import annotations

import pytest

from aiocheckpoint.abc import Store
from aiocheckpoint.stores.s3 import S3Store
from aiocheckpoint.testing.contract import StoreContract

from .objects import Service, moto

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def service() -> Service:
    return moto()


def raw_head(service: Service, bucket: str, store: S3Store, key: str) -> bytes | None:
    client = service.client()
    try:
        found = client.get_object(Bucket=bucket, Key=store._head_name(key))
    except client.exceptions.NoSuchKey:
        return None
    body: bytes = found["Body"].read()
    return body[:-16] or None


class TestS3Store(StoreContract):
    @pytest.fixture(autouse=True)
    def _bucket(self, service: Service) -> None:
        self.service = service
        self.bucket = service.bucket()

    async def make_store(self) -> Store:
        return S3Store.from_url(self.service.url(self.bucket, "some/place"))

    async def raw_head(self, store: Store, key: str) -> bytes | None:
        assert isinstance(store, S3Store)
        return raw_head(self.service, self.bucket, store, key)
