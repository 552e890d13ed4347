"""Stores to try commands on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiocheckpoint.abc import Store
from aiocheckpoint.stores import open_store


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """A command has a loop of its own, asyncio's."""
    return "asyncio"


@pytest.fixture(params=["memory:", "file:jobs", "sqlite:jobs.db"], ids=["memory", "file", "sqlite"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Store]:
    """A store of each kind that needs no server."""
    monkeypatch.chdir(tmp_path)
    opened = open_store(request.param)
    yield opened
    await opened.aclose()


@pytest.fixture
async def target(store: Store) -> AsyncIterator[Store]:
    """Another one, of another kind, beside it."""
    url = "file:copy" if store.identity.startswith("sqlite") else "sqlite:copy.db"
    opened = open_store(url)
    yield opened
    await opened.aclose()
