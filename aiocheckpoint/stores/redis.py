"""`redis://HOST/DB`: a hash a key in Redis or Valkey, compared and swapped by a script."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from .._errors import ConflictError, StoreError, StoreUnavailableError
from ..abc import Head, Put, Version
from ._keeps_blobs import KeepsBlobs
from ._redis_blobs import RedisBlobs
from ._redis_link import Link, Value
from ._redis_scripts import COMMIT, DELETE, PAGE
from ._redis_url import place
from ._remote import spool_place

Outcome = Version | StoreError

_PAGE = 1000
_ITEMS, _BYTES = 500, 1 << 20  # of one script: the server does nothing else meanwhile
_AT_ONCE = 4
_SENDING = 8.0  # s: a script that is sent by then has its answer before the core gives all up
_MAX_RECORD = 500 << 20  # of the 512 MiB that Redis takes


class RedisStore(KeepsBlobs):
    """Keeps records in a database of a Redis or Valkey server, under a prefix.

    The URL is `redis://`, or `rediss://` for TLS (`valkey://`, `valkeys://`), then
    `[USER:PASSWORD@]HOST[:PORT][/DATABASE]`, and may have options: `prefix` of all keys (default
    `aiocheckpoint`), `ttl`, the seconds after which a key vanishes that nobody has written, and
    what redis-py calls `ssl_...`. Nothing is connected before the first call.

    Raises:
        ValueError: the URL cannot be read.
    """

    transactional = True
    min_interval = 0.1

    def __init__(self, url: str, *, prefix: str | None = None, ttl: float | None = None) -> None:
        self._place = place(url, prefix, ttl)
        self.identity = self._place.identity
        self.spool_dir: Path | None = spool_place(self.identity)
        self._link = Link(self._place)
        self._index = f"{self._place.prefix}/keys"
        self._blobs = RedisBlobs(self._link)

    @classmethod
    def from_url(cls, url: str) -> RedisStore:
        return cls(url)

    def __repr__(self) -> str:
        return f"<RedisStore {self.identity}>"

    async def load(self, key: str) -> Head | None:
        fields = ("version", "record")
        head = f"{self._place.prefix}/head/{key}"
        version, record = await self._link.call("load", key, "HMGET", head, *fields)
        if version is None and record is None:
            return None
        if version is None or record is None:
            raise StoreError(
                "another program has that key: take another prefix", op="load", key=key
            )
        return Head(record, version.decode())

    async def commit(self, batch: Sequence[Put]) -> Sequence[Outcome]:
        parts = list(_parts(batch))
        if len(parts) == 1:
            return await self._commit(parts[0])
        turns = asyncio.Semaphore(_AT_ONCE)
        clock = asyncio.get_running_loop().time
        until = clock() + _SENDING

        async def commit(part: Sequence[Put]) -> Sequence[Outcome]:
            async with turns:
                if clock() < until:
                    return await self._commit(part)
            late = "the server is too slow for so much at once"
            return [StoreUnavailableError(late, op="commit", key=put.key) for put in part]

        done = await asyncio.gather(*map(commit, parts), return_exceptions=True)
        outcomes: list[Outcome] = []
        for answers in done:
            if isinstance(answers, BaseException):
                raise answers
            outcomes += answers
        return outcomes

    async def _commit(self, part: Sequence[Put]) -> Sequence[Outcome]:
        nonce = secrets.token_hex(8)
        args: list[Value] = [nonce]
        outcomes: dict[int, Outcome] = {}
        sent: list[int] = []
        for n, (key, expect, record) in enumerate(part):
            if len(record) > _MAX_RECORD:
                outcomes[n] = StoreError("too large for Redis", op="commit", key=key)
                continue
            args += (key, "" if expect is None else str(expect), record)
            sent.append(n)
        try:
            whose = part[0].key if len(part) == 1 else None
            answers = await self._link.script("commit", whose, COMMIT, self._index, args)
        except StoreError as exc:
            return [outcomes.get(n, exc) for n in range(len(part))]
        for at, (n, answer) in enumerate(zip(sent, answers, strict=True), start=1):
            if answer == 1:
                outcomes[n] = f"{nonce}.{at}"
            elif answer == 0:
                outcomes[n] = _conflict("commit", part[n].key)
            else:
                outcomes[n] = self._link.answered(answer, "commit", part[n].key)
        return [outcomes[n] for n in range(len(part))]

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        start, end = b"[" + prefix.encode(), b"(" + prefix.encode() + b"\xff"  # never in UTF-8
        while True:
            args = (start, end, _PAGE)
            page = await self._link.script("keys", None, PAGE, self._index, args)
            if not page:
                return
            last, *keys = page
            for key in keys:
                yield key.decode()
            start = b"(" + last

    async def delete(self, key: str, expect: Version) -> None:
        args = (key, str(expect))
        if not await self._link.script("delete", key, DELETE, self._index, args):
            raise _conflict("delete", key)

    async def aclose(self) -> None:
        await self._link.aclose()


def _conflict(op: str, key: str) -> ConflictError:
    return ConflictError("another version is the head", op=op, key=key)


def _parts(batch: Sequence[Put]) -> Iterator[Sequence[Put]]:
    """The batch in runs that are neither long nor large."""
    start = size = 0
    for n, put in enumerate(batch):
        if n > start and (n - start == _ITEMS or size + len(put.record) > _BYTES):
            yield batch[start:n]
            start, size = n, 0
        size += len(put.record)
    if batch:
        yield batch[start:]
