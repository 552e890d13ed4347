"""Arrays in PostgreSQL's own format: psycopg takes far longer to dump 10,000 items one by one."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

from ..abc import Version

_BYTEA, _BIGINT, _BYTEAS, _BIGINTS = 17, 20, 1001, 1016  # pg_type's oids, which never change


class _Array:
    def __init__(self, data: bytes) -> None:
        self.data = data


class _Byteas(_Array):
    pass


class _Bigints(_Array):
    pass


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: _Array) -> bytes:
        return obj.data


class _ByteasDumper(_ArrayDumper):
    oid = _BYTEAS


class _BigintsDumper(_ArrayDumper):
    oid = _BIGINTS


psycopg.adapters.register_dumper(_Byteas, _ByteasDumper)
psycopg.adapters.register_dumper(_Bigints, _BigintsDumper)

_size = struct.Struct("!i").pack


def _header(count: int, oid: int) -> bytes:
    """Dimensions, whether there are nulls, type; then length and lower bound of each dimension."""
    return struct.pack("!5i", 1, 0, oid, count, 1) if count else struct.pack("!3i", 0, 0, oid)


def byteas(values: Sequence[bytes]) -> _Byteas:
    parts = [_header(len(values), _BYTEA)]
    for value in values:
        parts += (_size(len(value)), value)
    return _Byteas(b"".join(parts))


def bigints(values: Sequence[Version | None]) -> _Bigints:
    flat: list[Version | None] = [8] * (2 * len(values))
    flat[1::2] = values
    return _Bigints(_header(len(values), _BIGINT) + struct.pack("!" + "iq" * len(values), *flat))
