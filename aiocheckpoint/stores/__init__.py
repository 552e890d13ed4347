"""Stores, opened by URL."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

from ..abc import Store

# scheme -> "module:Class"; opened by `Class.from_url(url)`, or by `Class(path)` for local paths.
_STORES = {
    "memory": "memory:MemoryStore",
    "sqlite": "sqlite:SqliteStore",
    "file": "file:FileStore",
    "s3": "s3:S3Store",
    "gs": "obstore:ObstoreStore",
    "az": "obstore:ObstoreStore",
    "s3+obstore": "obstore:ObstoreStore",
    "redis": "redis:RedisStore",
    "rediss": "redis:RedisStore",
    "valkey": "redis:RedisStore",
    "valkeys": "redis:RedisStore",
    "postgresql": "postgres:PostgresStore",
    "postgres": "postgres:PostgresStore",
}
# module -> the extra that installs what it imports
_EXTRAS = {"s3": "s3", "obstore": "obstore", "redis": "redis", "postgres": "postgres"}
_PATHS = frozenset({"sqlite", "file"})
_SQLITE_SUFFIXES = frozenset({".db", ".sqlite", ".sqlite3"})


def open_store(url: str | os.PathLike[str]) -> Store:
    """The store that a URL such as `sqlite:jobs.db`, or a path, names.

    A path with the suffix .db, .sqlite or .sqlite3 is an SQLite database, any other a directory.

    Raises:
        ValueError: the URL names no store that we know.
        ImportError: the store needs an extra that is not installed; it names the line that does.
        StoreError: the store cannot be there, as when the path's parent is missing.
    """
    if not isinstance(url, str):
        path = os.fspath(url)
        suffix = os.path.splitext(path)[1].lower()
        return _open("sqlite" if suffix in _SQLITE_SUFFIXES else "file", path)
    scheme, colon, _ = url.partition(":")
    scheme = scheme.lower()
    if not colon or scheme not in _STORES:
        known = ", ".join(f"{scheme}:" for scheme in _STORES)
        told = url if not {"@", "?"} & set(url) else f"{scheme}:..."  # it may hold a secret
        raise ValueError(f"{told!r} names no store; it starts with one of {known} (sqlite:jobs.db)")
    return _open(scheme, _local_path(url) if scheme in _PATHS else url)


def local_path(url: str | os.PathLike[str]) -> Path | None:
    """Where on this machine's disk a store lies, or None. Opening makes it if nothing is there.

    Raises:
        ValueError: the URL names no path.
    """
    if not isinstance(url, str):
        return Path(url)
    scheme = url.partition(":")[0].lower()
    return Path(_local_path(url)) if scheme in _PATHS else None


def _open(scheme: str, location: str) -> Store:
    module, _, name = _STORES[scheme].partition(":")
    try:
        cls: Any = getattr(import_module(f".{module}", __name__), name)
    except ImportError as exc:
        if module not in _EXTRAS:
            raise
        raise ImportError(
            f"{scheme}: needs {exc.name or 'a package'}, which is not installed:"
            f" pip install 'aiocheckpoint[{_EXTRAS[module]}]'",
            name=exc.name,
        ) from exc
    return cast(Store, cls(location) if scheme in _PATHS else cls.from_url(location))


def _local_path(url: str) -> str:
    scheme, _, path = url.partition(":")
    if path == ":memory:":
        raise ValueError(f"{url!r} would be lost with its connection; use 'memory:'")
    if path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        if host not in ("", "localhost") or not slash:
            told = path[2:] if "@" not in path else "PATH"  # it may hold a password
            raise ValueError(f"{scheme}://... names a host; a path is written {scheme}:{told}")
        path = "/" + unquote(rest)
    if not path:
        raise ValueError(f"{url!r} has no path; write {scheme}:PATH")
    return path
