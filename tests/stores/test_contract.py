"""The shipped contract, held against every store."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from aiocheckpoint._keys import store_name
from aiocheckpoint.abc import Store
from aiocheckpoint.stores.file import FileStore
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.stores.sqlite import SqliteStore
from aiocheckpoint.testing.contract import StoreContract

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Stores run on the I/O thread's loop, which is asyncio."""
    return "asyncio"


class TestMemoryStore(StoreContract):
    in_memory = True
    store: MemoryStore | None = None

    async def make_store(self) -> Store:
        self.store = self.store or MemoryStore()
        return self.store

    async def raw_head(self, store: Store, key: str) -> bytes | None:
        assert isinstance(store, MemoryStore)
        head = store._heads.get(key)
        return head and head.record


class TestSqliteStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _path(self, tmp_path: Path) -> None:
        self.path = tmp_path / "jobs.db"

    async def make_store(self) -> Store:
        return SqliteStore(self.path)

    async def raw_head(self, store: Store, key: str) -> bytes | None:
        connection = sqlite3.connect(self.path)
        try:
            select = "SELECT record FROM aiocheckpoint_heads WHERE key=?"
            row: tuple[bytes] | None = connection.execute(select, (key,)).fetchone()
        finally:
            connection.close()
        return row and row[0]


class TestFileStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _path(self, tmp_path: Path) -> None:
        self.path = tmp_path / "jobs"

    async def make_store(self) -> Store:
        return FileStore(self.path)

    async def raw_head(self, store: Store, key: str) -> bytes | None:
        heads = sorted((self.path / store_name(key)).glob("head.*"))
        record = heads[-1].read_bytes() if heads else None
        return None if record and record.startswith(b"aiocheckpoint: ") else record
