"""`sqlite:PATH`: one table in an SQLite database, large payloads as files beside it."""

from __future__ import annotations

import functools
import itertools
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from .._errors import ConflictError, StoreError, StoreUnavailableError
from .._keys import store_name
from ..abc import Head, Put, Version
from ._blobs import BlobFiles
from ._disk import translated
from ._keeps_blobs import KeepsBlobs
from ._threads import Threads

P = ParamSpec("P")
T = TypeVar("T")

_SCHEMA = 1
_PAGE = 1000
_ROWS = 1024
"""Rows in a statement, at most. After each the thread must win back the interpreter lock, which
a computing loop gives up every 5 ms."""
_BUSY_TIMEOUT = 0.25
_MAX_RECORD = 900_000_000  # of the 1e9 that SQLite lets a row have

_CREATE = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS aiocheckpoint_heads (
    key TEXT NOT NULL PRIMARY KEY, version INTEGER NOT NULL, record BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS aiocheckpoint_meta (name TEXT PRIMARY KEY, value);
INSERT OR IGNORE INTO aiocheckpoint_meta VALUES ('schema', 1);
COMMIT;
"""
_INSERT = "INSERT INTO aiocheckpoint_heads VALUES {} ON CONFLICT DO NOTHING"
_UPDATE = (
    "UPDATE aiocheckpoint_heads SET version=column1, record=column2"
    " FROM (VALUES {}) WHERE key=column3 AND aiocheckpoint_heads.version=column4"
)
_DELETE = "DELETE FROM aiocheckpoint_heads WHERE key=? AND version=?"
_LOAD = "SELECT record, version FROM aiocheckpoint_heads WHERE key=?"
_VERSION = "SELECT 1 FROM aiocheckpoint_heads WHERE key=? AND version=?"
_KEYS = "SELECT key FROM aiocheckpoint_heads WHERE key >= ? AND key <> ? ORDER BY key LIMIT ?"

_PASSING = {
    sqlite3.SQLITE_BUSY: "another process is writing to it",
    sqlite3.SQLITE_LOCKED: "another connection is writing to it",
    sqlite3.SQLITE_PROTOCOL: "other processes are opening it",
    sqlite3.SQLITE_NOMEM: "the machine is out of memory",
    sqlite3.SQLITE_IOERR: "the disk fails; see the system log",
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
}
_LASTING = {
    sqlite3.SQLITE_READONLY: "give this user permission to write it and its directory",
    sqlite3.SQLITE_PERM: "give this user permission to write it and its directory",
    sqlite3.SQLITE_CANTOPEN: "give this user permission to write it and its directory",
    sqlite3.SQLITE_NOTADB: "it is not an SQLite database; name another path",
    sqlite3.SQLITE_CORRUPT: "it is damaged; move it away or put a backup in its place",
}
# After these the connection may hold pages that the disk does not, and a second try on it would
# say that all is well.
_REOPEN = frozenset(
    {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CORRUPT}
)


class SqliteStore(KeepsBlobs):
    """Keeps records in the table `aiocheckpoint_heads` of a database, which is made if missing.

    The database may have other tables, and other programs may use it: it is put into WAL mode,
    and the write lock is held for one batch at a time.

    Raises:
        StoreError: the database cannot be there.
    """

    transactional = True
    min_interval = 0.1

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path = Path(path).resolve()
        self.identity = f"sqlite:{path}"
        self.spool_dir: Path | None = Path(f"{path}-spool")
        with translated("open", None, path):
            if not path.parent.is_dir():
                raise StoreError(f"{path.parent} is no directory; create it first", op="open")
            if path.is_dir():
                raise StoreError(f"{path} is a directory; name a file in it", op="open")
            target = path if path.exists() else path.parent
            if not os.access(target, os.R_OK | os.W_OK):
                raise StoreError(
                    f"{target} cannot be written; give this user permission", op="open"
                )
        self._threads = Threads(1, "aiocheckpoint-sqlite")
        self._blob_threads = Threads(4, "aiocheckpoint-blobs")
        folder = Path(f"{path}-blobs")
        self._blobs = BlobFiles(
            self._blob_threads, path.parent, lambda key: folder / store_name(key)
        )
        self._connection: sqlite3.Connection | None = None  # of the one thread
        self._file: tuple[int, int] | None = None

    async def load(self, key: str) -> Head | None:
        return await self._threads.run(self._do, "load", key, _load, key)

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        return await self._threads.run(self._do, "commit", None, _commit, batch)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        start, after = prefix, ""  # no key is empty
        while page := await self._threads.run(self._do, "keys", None, _keys, start, after):
            for key in page:
                if not key.startswith(prefix):
                    return
                yield key
            start = after = page[-1]

    async def delete(self, key: str, expect: Version) -> None:
        await self._threads.run(self._do, "delete", key, _delete, key, expect)

    async def aclose(self) -> None:
        with suppress(RuntimeError):
            await self._threads.run(self._disconnect)
        await self._threads.close()
        await self._blob_threads.close()

    def _do(
        self,
        op: str,
        key: str | None,
        fn: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Call `fn` with the connection; the one place where SQLite's errors become ours."""
        try:
            return fn(self._connect(op), *args, **kwargs)
        except BaseException as exc:
            if self._connection is not None and self._connection.in_transaction:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
            if isinstance(exc, UnicodeDecodeError):  # of SQLite's message, which quotes the damage
                exc = _Malformed("database disk image is malformed")
            if isinstance(exc, sqlite3.Error):
                raise self._translate(exc, op, key) from exc
            raise

    def _translate(self, exc: sqlite3.Error, op: str, key: str | None) -> StoreError:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        if code in _REOPEN:
            self._disconnect()
        if code == sqlite3.SQLITE_CANTOPEN:
            # SQLite does not say why. Never open the database itself to find out: closing it
            # again would drop the locks that this process holds on it.
            with translated(op, key, self._path.parent):
                os.close(os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC))
        kind = StoreUnavailableError if code in _PASSING else StoreError
        hint = _PASSING.get(code) or _LASTING.get(code) or "see the cause below"
        return kind(f"{self._path}: {exc}; {hint}", op=op, key=key)

    def _connect(self, op: str) -> sqlite3.Connection:
        if self._connection is not None and self._file != _file_at(self._path):
            # Moved, deleted or replaced: a commit would go to a file that nobody will read.
            self._disconnect()
        if self._connection is None:
            self._blob_threads.start()  # now, as the first large payload may come at exit
            connection = sqlite3.connect(
                self._path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(connection, op)
            except BaseException:
                connection.close()
                raise
            self._connection, self._file = connection, _file_at(self._path)
        return self._connection

    def _prepare(self, connection: sqlite3.Connection, op: str) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        # The same as FULL in WAL mode, and as safe where the file system has no WAL.
        connection.execute("PRAGMA synchronous=EXTRA")
        tables = "SELECT 1 FROM sqlite_master WHERE name='aiocheckpoint_meta'"
        if connection.execute(tables).fetchone() is None:
            connection.executescript(_CREATE)
        select = "SELECT value FROM aiocheckpoint_meta WHERE name='schema'"
        schema = (connection.execute(select).fetchone() or (None,))[0]
        if schema != _SCHEMA:
            raise StoreError(
                f"{self._path} has schema {schema}, this aiocheckpoint knows {_SCHEMA}; upgrade it",
                op=op,
            )
        encoding = connection.execute("PRAGMA encoding").fetchone()[0]
        if encoding != "UTF-8":  # or keys would not sort by code point
            raise StoreError(
                f"{self._path} is encoded in {encoding}, not UTF-8; use a database of its own",
                op=op,
            )

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


class _Malformed(sqlite3.DatabaseError):
    """Damage that SQLite does not see, or cannot tell: it has no checksums."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def _file_at(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _load(connection: sqlite3.Connection, key: str) -> Head | None:
    row = connection.execute(_LOAD, (key,)).fetchone()
    if row is None:
        return None
    if [type(value) for value in row] != [bytes, int]:
        raise _Malformed(f"the row of {key!r} is malformed")
    return Head(*row)


def _commit(connection: sqlite3.Connection, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
    # Random, as a counter would count again what it had counted before a backup was put back.
    # One will do for the batch, as its keys are distinct.
    version = int.from_bytes(os.urandom(8), "big") >> 1
    fit = [put for put in batch if len(put.record) <= _MAX_RECORD]
    new = [(key, version, record) for key, expect, record in fit if expect is None]
    old = [(version, record, key, expect) for key, expect, record in fit if expect is not None]
    connection.execute("BEGIN IMMEDIATE")
    done = _execute(connection, _INSERT, new) + _execute(connection, _UPDATE, old)
    answers: list[Version | StoreError] = [version] * len(batch)
    if done != len(batch):  # what was done has the new version
        answers = [_answer(connection, put, version) for put in batch]
    connection.execute("COMMIT")
    return answers


def _execute(connection: sqlite3.Connection, sql: str, rows: Sequence[tuple[object, ...]]) -> int:
    """Run a statement for all rows, many at a time; how many it has changed."""
    done = start = 0
    while left := len(rows) - start:
        count = min(_ROWS, 1 << left.bit_length() - 1)  # so that there are few statements
        some = rows[start : start + count]
        statement = _statement(sql, count, len(some[0]))
        done += connection.execute(statement, list(itertools.chain(*some))).rowcount
        start += count
    return done


@functools.cache
def _statement(sql: str, rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return sql.format(", ".join([row] * rows))


def _answer(connection: sqlite3.Connection, put: Put, version: int) -> Version | StoreError:
    if len(put.record) > _MAX_RECORD:
        size = f"{len(put.record)} bytes, {_MAX_RECORD} at most"
        return StoreError(f"the record is too large: {size}", op="commit", key=put.key)
    if connection.execute(_VERSION, (put.key, version)).fetchone() is not None:
        return version
    return ConflictError("another version is the head", op="commit", key=put.key)


def _keys(connection: sqlite3.Connection, start: str, after: str) -> list[str]:
    keys = [key for (key,) in connection.execute(_KEYS, (start, after, _PAGE))]
    if not all(type(key) is str for key in keys):
        raise _Malformed("a key is malformed")
    return keys


def _delete(connection: sqlite3.Connection, key: str, expect: Version) -> None:
    if connection.execute(_DELETE, (key, expect)).rowcount != 1:
        raise ConflictError("another version is the head", op="delete", key=key)
