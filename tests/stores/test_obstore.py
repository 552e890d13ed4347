"""obstore's clients: the contract on S3's protocol and in memory, and what only they do."""

from __future__ import annotations

from collections.abc import Iterator

import obstore
import pytest
from obstore.store import MemoryStore

from aiocheckpoint.abc import Store
from aiocheckpoint.stores.obstore import ObstoreStore
from aiocheckpoint.testing.contract import StoreContract

from .faulty import Proxy, proxied
from .object_tests import ObjectStoreTests
from .objects import Service, moto

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def service() -> Service:
    return moto()


@pytest.fixture
def proxy(service: Service) -> Iterator[Proxy]:
    with proxied(service) as proxy:
        yield proxy


class TestObstoreInMemory(StoreContract):
    @pytest.fixture(autouse=True)
    def _memory(self) -> None:
        self.memory = MemoryStore()

    async def make_store(self) -> Store:
        return ObstoreStore(self.memory, "some/place", identity="memory")

    async def raw_head(self, store: Store, key: str) -> bytes | None:
        assert isinstance(store, ObstoreStore)
        try:
            found = await obstore.get_async(self.memory, store._head_name(key))
        except FileNotFoundError:
            return None
        return (await found.bytes_async()).to_bytes()[:-16] or None


class TestObstoreStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _bucket(self, service: Service) -> None:
        self.service = service
        self.bucket = service.bucket()

    async def make_store(self) -> Store:
        return ObstoreStore.from_url(self.service.url(self.bucket, "some/place", "s3+obstore"))

    async def raw_head(self, store: Store, key: str) -> bytes | None:
        assert isinstance(store, ObstoreStore)
        return self.service.raw_head(self.bucket, store, key)


class TestObstore(ObjectStoreTests):
    scheme = "s3+obstore"

    def open(self, url: str) -> ObstoreStore:
        return ObstoreStore.from_url(url)
