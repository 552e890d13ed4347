"""The PostgreSQL store: the contract, its tables, its batches and its blobs."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import psycopg
import pytest

from aiocheckpoint.abc import Store
from aiocheckpoint.stores.postgres import PostgresStore
from aiocheckpoint.testing.contract import StoreContract

from ..postgresql import Admin, some_server

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Stores run on the I/O thread's loop, which is asyncio."""
    return "asyncio"


@pytest.fixture(scope="module")
def admin() -> Iterator[Admin]:
    """A database of this module's own."""
    with some_server() as server, server.database() as admin:
        yield admin


@pytest.fixture
def table() -> str:
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
def url(admin: Admin, table: str) -> str:
    return f"{admin.url}?table={table}"


class TestPostgresStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _place(self, admin: Admin, table: str, url: str) -> None:
        self.admin, self.table, self.url = admin, table, url

    async def make_store(self) -> Store:
        return PostgresStore.from_url(self.url)

    async def raw_head(self, store: Store, key: str) -> bytes | None:
        async with await psycopg.AsyncConnection.connect(self.admin.url) as connection:
            query = f"SELECT record FROM {self.table} WHERE key = %s".encode()
            cursor = await connection.execute(query, [key.encode()], binary=True)
            row: tuple[bytes] | None = await cursor.fetchone()
        return row and row[0]
