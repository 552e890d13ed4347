"""The tables of a PostgreSQL store: their names, and how they are made and brought up to date."""

from __future__ import annotations

import logging
from typing import Any

import psycopg

from .._errors import StoreError

Connection = psycopg.AsyncConnection[Any]

SCHEMA = 1
"""The version that the last of `_STEPS` makes."""

# Records change on every commit: room in each page lets an update stay in it and leave the index
# alone. Nothing is compressed, since that takes the server longer than writing it, and codecs can.
_STEPS = [
    """\
CREATE TABLE {heads} (
    key bytea PRIMARY KEY,
    version bigint NOT NULL,
    record bytea NOT NULL
) WITH (fillfactor = 50);
ALTER TABLE {heads} ALTER COLUMN record SET STORAGE EXTERNAL;
CREATE TABLE {blobs} (
    key bytea NOT NULL,
    name text COLLATE "C" NOT NULL,
    put uuid NOT NULL,
    size bigint NOT NULL,
    PRIMARY KEY (key, name)
);
CREATE TABLE {chunks} (
    key bytea NOT NULL,
    name text COLLATE "C" NOT NULL,
    put uuid NOT NULL,
    start bigint NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (key, name, put, start)
);
ALTER TABLE {chunks} ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE TABLE {schema} (version integer NOT NULL);
INSERT INTO {schema} VALUES (1);
""",
]
_LOCK = 0x61696F63686B7074  # "aiochkpt"

_log = logging.getLogger("aiocheckpoint")


class Tables:
    """The names, as SQL writes them: whatever they hold, they are names and nothing else."""

    def __init__(self, table: tuple[str, ...], identity: str) -> None:
        *schema, name = table
        self.heads, self.blobs, self.chunks, self.schema = (
            ".".join(_quoted(part) for part in (*schema, name + suffix))
            for suffix in ("", "_blobs", "_chunks", "_schema")
        )
        self._identity = identity
        self._warned = False

    def ddl(self, since: int = 0) -> str:
        """What makes the tables, or brings those of version `since` up to date."""
        names = {name: getattr(self, name) for name in ("heads", "blobs", "chunks", "schema")}
        return "".join(step.format_map(names) for step in _STEPS[since:])

    def grants(self, role: str) -> str:
        """What a role must be granted to use the tables that another has made."""
        return (
            f"GRANT SELECT, INSERT, UPDATE, DELETE"
            f" ON {self.heads}, {self.blobs}, {self.chunks} TO {role};\n"
            f"GRANT SELECT ON {self.schema} TO {role};\n"
        )

    async def make_ready(self, connection: Connection) -> None:
        """Make the tables if they are not there. Any number may do this at once.

        Raises:
            StoreError: a later aiocheckpoint has made them.
        """
        version = await self._version(connection)
        if version < SCHEMA:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", [_LOCK])
                version = await self._version(connection)
                if version < SCHEMA:
                    await connection.execute(self.ddl(version).encode())
                    version = SCHEMA
        if version > SCHEMA:
            raise StoreError(
                f"{self._identity} has schema {version}, this aiocheckpoint knows {SCHEMA};"
                " upgrade aiocheckpoint",
                op="open",
            )

    async def _version(self, connection: Connection) -> int:
        cursor = await connection.execute(
            "SELECT to_regclass($1) IS NOT NULL, current_setting('fsync') = 'on',"
            " (SELECT relpersistence = 'u' FROM pg_class WHERE oid = to_regclass($2))",
            [self.schema, self.heads],
        )
        there, synced, unlogged = await cursor.fetchone() or (False, True, False)
        self._warn(synced, unlogged)
        if not there:
            return 0
        query = f"SELECT max(version) FROM {self.schema}"
        (version,) = await (await connection.execute(query.encode())).fetchone() or (None,)
        return version or 0

    def _warn(self, synced: bool, unlogged: bool) -> None:
        lost = ["the server runs with fsync=off"] if not synced else []
        lost += ["the table is UNLOGGED"] if unlogged else []
        if lost and not self._warned:
            self._warned = True
            why = " and ".join(lost)
            _log.warning("%s: %s, so what is stored may not survive a crash", self._identity, why)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
