"""The Redis store: the contract, and a server that is killed, frozen, full or forbidding."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
import redis

from aiocheckpoint.abc import Store
from aiocheckpoint.stores.redis import RedisStore
from aiocheckpoint.testing.contract import StoreContract

from ..servers import missing

pytestmark = pytest.mark.anyio

PORT = 6379


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Stores run on the I/O thread's loop, which is asyncio."""
    return "asyncio"


@pytest.fixture
def raw() -> Iterator[redis.Redis]:
    """A client of the running server, past the store."""
    with redis.Redis(port=PORT) as client:
        try:
            client.ping()
        except redis.ConnectionError:
            missing("Redis on port 6379", "install redis-server and start it")
        yield client


@pytest.fixture
def prefix(raw: redis.Redis) -> Iterator[str]:
    """A prefix of this test's own, of which nothing is left after."""
    prefix = f"test-{secrets.token_hex(6)}"
    yield prefix
    for key in raw.scan_iter(f"{prefix}/*", count=10_000):
        raw.delete(key)


class TestRedisStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _place(self, raw: redis.Redis, prefix: str) -> None:
        self.raw = raw
        self.prefix = prefix

    async def make_store(self) -> Store:
        return RedisStore(f"redis://127.0.0.1:{PORT}", prefix=self.prefix)

    async def raw_head(self, store: Store, key: str) -> bytes | None:
        found = self.raw.hget(f"{self.prefix}/head/{key}", "record")
        assert found is None or isinstance(found, bytes)
        return found


class TestExpiringRedisStore(TestRedisStore):
    """The same promises while nothing has expired yet."""

    async def make_store(self) -> Store:
        return RedisStore(f"redis://127.0.0.1:{PORT}", prefix=self.prefix, ttl=3600)
