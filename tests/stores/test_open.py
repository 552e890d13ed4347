"""Opening stores by URL and by path."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from aiocheckpoint import Runtime
from aiocheckpoint._errors import StoreError
from aiocheckpoint.stores import open_store
from aiocheckpoint.stores.file import FileStore
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.stores.sqlite import SqliteStore


def test_schemes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scheme opens its store, a relative path from the working directory of that moment."""
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_store("memory:"), MemoryStore)
    assert open_store("memory:").identity != open_store("memory:").identity
    expected = {
        "sqlite:jobs.db": f"sqlite:{tmp_path}/jobs.db",
        "SQLite:./jobs.db": f"sqlite:{tmp_path}/jobs.db",
        f"sqlite:{tmp_path}/a b?c#d%20.db": f"sqlite:{tmp_path}/a b?c#d%20.db",
        f"sqlite://{tmp_path}/jobs.db": f"sqlite:{tmp_path}/jobs.db",
        f"sqlite://localhost{tmp_path}/jobs.db": f"sqlite:{tmp_path}/jobs.db",
        "file:jobs": f"file:{tmp_path}/jobs",
        f"file:{tmp_path}/jobs/": f"file:{tmp_path}/jobs",
        (tmp_path / "with space").as_uri(): f"file:{tmp_path}/with space",
    }
    for url, identity in expected.items():
        assert open_store(url).identity == identity
    assert open_store("file:jobs").identity == f"file:{tmp_path}/jobs"
    monkeypatch.chdir("/")


@pytest.mark.parametrize("name", ["jobs.db", "jobs.sqlite", "jobs.SQLITE3"])
def test_database_paths(tmp_path: Path, name: str) -> None:
    """A path that looks like a database's is one."""
    assert isinstance(open_store(tmp_path / name), SqliteStore)


@pytest.mark.parametrize("name", ["jobs", "jobs.d", ".db"])
def test_other_paths(tmp_path: Path, name: str) -> None:
    """Any other path is a directory's."""
    assert isinstance(open_store(tmp_path / name), FileStore)


def test_linked_paths_are_one_store(tmp_path: Path) -> None:
    """Two ways to the same place have one identity."""
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for url in ("sqlite:{}/jobs.db", "file:{}/jobs"):
        first, second = open_store(url.format(tmp_path)), open_store(url.format(tmp_path / "link"))
        assert first.identity == second.identity
        assert first.spool_dir == second.spool_dir


@pytest.mark.parametrize("url", ["jobs.db", "mysql://host/db", "", "./jobs", "C:\\jobs", ":x"])
def test_unknown(url: str) -> None:
    """What names no store is told which ones there are."""
    with pytest.raises(ValueError, match=r"memory:, sqlite:, file:, .* \(sqlite:jobs\.db\)"):
        open_store(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite::memory:", "use 'memory:'"),
        ("sqlite:", "write sqlite:PATH"),
        ("file:", "write file:PATH"),
        ("sqlite://jobs.db", "written sqlite:jobs.db"),
        ("file://host/jobs", "written file:host/jobs"),
        ("memory:jobs", "use 'memory:'"),
    ],
)
def test_mistaken(url: str, message: str) -> None:
    """What is nearly right is told what to write."""
    with pytest.raises(ValueError, match=message):
        open_store(url)


def test_no_text() -> None:
    """Neither bytes nor None is a URL."""
    for url in (None, b"file:jobs", 1):
        with pytest.raises(TypeError):
            open_store(url)  # type: ignore[arg-type]


def test_missing_parent(tmp_path: Path) -> None:
    """Only the last part of a path is made, so that a mistyped one is noticed."""
    for url in ("sqlite:{}/no/jobs.db", "file:{}/no/jobs"):
        with pytest.raises(StoreError, match="create it first"):
            open_store(url.format(tmp_path))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "url",
    ["mysql://me:hush@host/db", "s4://b/p?secret_access_key=hush", "sqlite://me:hush@host/jobs.db"],
)
def test_mistaken_with_a_secret(url: str) -> None:
    """What is told of a URL that names no store ends before what may be secret."""
    with pytest.raises(ValueError, match=r"\w+:(//)?\.\.\.'? names") as caught:
        open_store(url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("module", ["s3", "obstore", "redis", "postgres"])
def test_missing_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store whose library is missing names the line that installs it."""
    scheme, library = {
        "s3": ("s3", "aiobotocore"),
        "obstore": ("gs", "obstore"),
        "redis": ("redis", "redis"),
        "postgres": ("postgresql", "psycopg"),
    }[module]
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    ours = re.compile(rf"aiocheckpoint\.stores\._?{module}(_\w+)?")
    for name in filter(ours.fullmatch, list(sys.modules)):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"pip install 'aiocheckpoint\[{module}\]'"):
        open_store(f"{scheme}://host/place")


@pytest.mark.anyio
@pytest.mark.parametrize("url", ["memory:", "sqlite:{}/jobs.db", "file:{}/jobs"])
async def test_closed_by_the_user(tmp_path: Path, url: str) -> None:
    """A store that the user made is closed on the user's loop, whichever that is."""
    store = open_store(url.format(tmp_path))
    async with Runtime(store, spool=None) as rt, rt.open("k") as cp:
        await cp.write(b"1")
    await store.aclose()
