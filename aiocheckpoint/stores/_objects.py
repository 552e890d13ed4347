"""Stores on object services: heads replaced by conditional puts, blobs as plain objects.

Under the store's prefix lie `heads/NAME` and `blobs/NAME/BLOB`, NAME being the key's store name.
Three invariants carry the compare-and-swap:

- A head is only ever written by a put that names the version it replaces, or that there is none.
- It ends in a random nonce, as equal bodies have equal ETags; so no version is ever used again.
- It is never removed. A deleted key is a head of the nonce alone: 16 bytes, and listings tell by
  the size. Old ones may be removed (by a lifecycle rule): whoever names a version of an absent
  key is refused all the same.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Sequence,
)
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from .._errors import ConflictError, StoreError
from .._keys import key_of, store_name
from ..abc import Head, Put, Source, Version
from ._blobs import check_blob_name
from ._object_blobs import pieces, send
from ._object_client import TIMEOUT, Found, Listed, ObjectClient
from ._object_connection import Connection, side_by_side
from ._remote import spool_place

T = TypeVar("T")

NONCE = 16
_TAIL = 200  # characters of a long key's encoding between two slashes
_NARROW = 35  # bytes of a prefix that every name of its keys begins with


class ObjectStore:
    """The contract over a client; `connect` yields one on the running loop, then closes it.

    The first call of a loop connects; the first that writes makes sure that the service heeds
    conditions, and raises StoreError if it does not.
    """

    transactional = False
    min_interval = 5.0

    def __init__(
        self, identity: str, prefix: str, connect: Callable[[], AsyncGenerator[ObjectClient, None]]
    ) -> None:
        self.identity = identity
        self.spool_dir: Path | None = spool_place(identity)
        self._prefix = prefix and f"{prefix}/"
        self._connect = connect
        self._clients: dict[asyncio.AbstractEventLoop, Connection] = {}
        self._trusted = False
        self._quoted = True
        self._closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity!r})"

    async def load(self, key: str) -> Head | None:
        connection = await self._connected()
        found = await self._head(connection, "load", key)
        if found is None or len(found.data) == NONCE:
            return None
        return Head(found.data[:-NONCE], found.version)

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        if not batch:
            return []
        connection = await self._writable()
        if len(batch) == 1:
            return [await self._answer(connection, batch[0])]
        return await side_by_side(lambda put: self._answer(connection, put), batch)

    async def delete(self, key: str, expect: Version) -> None:
        connection = await self._writable()
        await self._put(connection, "delete", key, os.urandom(NONCE), str(expect))

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        check_blob_name(name)
        connection = await self._writable()

        async def ask(call: Awaitable[T]) -> T:
            with self._translated(connection.client, "put_blob", key):
                return await call

        await send(connection.client, self._blob(key, name), source, ask, connection.start)

    async def open_blob(
        self, key: str, name: str, start: int = 0, size: int | None = None
    ) -> AsyncIterator[bytes]:
        check_blob_name(name)
        client = (await self._connected()).client
        with self._translated(client, "open_blob", key):
            async for chunk in pieces(client, key, self._blob(key, name), start, size):
                yield chunk

    async def list_blobs(self, key: str) -> list[str]:
        folder = self._blob(key, "")
        listed = self._listed("list_blobs", key, folder)
        return sorted([found.name[len(folder) :] async for found in listed])

    async def delete_blobs(self, key: str, names: Sequence[str]) -> None:
        for name in names:
            check_blob_name(name)
        client = (await self._writable()).client

        async def forget(name: str) -> None:
            with self._translated(client, "delete_blobs", key), suppress(FileNotFoundError):
                async with asyncio.timeout(TIMEOUT):
                    await client.delete(self._blob(key, name))

        await side_by_side(forget, names)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        heads = f"{self._prefix}heads/"
        keys = []
        async for found in self._listed("keys", None, heads + _common_name(prefix)):
            if found.size > NONCE:
                key = _key_of(found.name[len(heads) :])
                if key is not None and key.startswith(prefix):
                    keys.append(key)
        for key in sorted(keys):
            yield key

    async def aclose(self) -> None:
        """Waits for the heads that are on their way, whoever has given them up."""
        self._closed = True
        connections = [*self._clients.values()]
        self._clients.clear()
        for connection in connections:
            await connection.close()

    async def _answer(self, connection: Connection, put: Put) -> Version | StoreError:
        body = put.record + os.urandom(NONCE)
        try:
            if put.expect is not None:
                return await self._put(connection, "commit", put.key, body, str(put.expect))
            return await self._create(connection, put.key, body)
        except StoreError as exc:
            return exc

    async def _create(self, connection: Connection, key: str, body: bytes) -> str:
        try:
            return await self._put(connection, "commit", key, body, None)
        except ConflictError:
            found = await self._head(connection, "commit", key)
            if found is None or len(found.data) != NONCE:
                raise
        return await self._put(connection, "commit", key, body, found.version)

    async def _put(
        self, connection: Connection, op: str, key: str, body: bytes, expect: str | None
    ) -> str:
        """Put a head. It lands or ends in time, whatever becomes of the caller: an abandoned put
        might land late."""
        name = self._head_name(key)
        return await asyncio.shield(
            connection.start(self._swap(connection.client, op, key, name, body, expect))
        )

    async def _swap(
        self,
        client: ObjectClient,
        op: str,
        key: str | None,
        name: str,
        body: bytes,
        expect: str | None,
    ) -> str:
        try:
            return await client.put(name, body, if_absent=expect is None, if_match=expect)
        except Exception as exc:
            answer = client.explain(exc)
            if answer is None:
                raise
            if answer.refused:
                raise ConflictError("another version is the head", op=op, key=key) from answer.cause
            raise answer.error(self.identity, op, key) from answer.cause

    async def _head(self, connection: Connection, op: str, key: str) -> Found | None:
        name = self._head_name(key)
        try:
            with self._translated(connection.client, op, key):
                async with asyncio.timeout(TIMEOUT):
                    found = await connection.client.get(name)
        except FileNotFoundError:
            return None
        if len(found.data) < NONCE:
            raise StoreError(f"{self.identity}: {name} is no head; remove it", op=op, key=key)
        return found

    async def _listed(self, op: str, key: str | None, prefix: str) -> AsyncIterator[Listed]:
        client = (await self._connected()).client
        with self._translated(client, op, key):
            pages = aiter(client.list(prefix))
            while True:
                async with asyncio.timeout(TIMEOUT):
                    page = await anext(pages, None)
                if page is None:
                    return
                for found in page:
                    yield found

    @contextmanager
    def _translated(self, client: ObjectClient, op: str, key: str | None) -> Iterator[None]:
        """The one place where the drivers' errors become ours; FileNotFoundError for an object
        that is not there."""
        try:
            yield
        except StoreError:
            raise
        except Exception as exc:
            answer = client.explain(exc)
            if answer is None:
                raise
            if answer.absent:
                raise FileNotFoundError(f"{self.identity}: {answer.text}") from answer.cause
            raise answer.error(self.identity, op, key) from answer.cause

    # Connecting.

    async def _connected(self) -> Connection:
        """The connection of the running loop: a store may outlive a runtime, and its loop."""
        loop = asyncio.get_running_loop()
        connection = self._clients.get(loop)
        if connection is None:
            if self._closed:
                raise RuntimeError("this store is closed")
            for other in [other for other in list(self._clients) if other.is_closed()]:
                self._clients.pop(other, None)
            connection = self._clients[loop] = Connection(self._connect)
        if not connection.ready:
            try:
                await connection.open()
            except BaseException:
                if connection.failed:
                    self._clients.pop(loop, None)  # the next call tries anew
                raise
        return connection

    async def _writable(self) -> Connection:
        connection = await self._connected()
        if not self._trusted:
            await connection.once(self._probe)
        connection.client.quoted = self._quoted
        return connection

    async def _probe(self, client: ObjectClient) -> None:
        """Have the service refuse what it must refuse, on an object of our own."""
        name = f"{self._prefix}.probe-{os.urandom(16).hex()}"

        async def put(expect: str | None) -> str | None:
            try:
                return await self._swap(client, "probe", None, name, os.urandom(NONCE), expect)
            except ConflictError:
                return None

        first = await put(None)
        if first is None:
            raise self._untrustworthy("refuses to create an object under a new name")
        try:
            if await put(None) is not None:
                raise self._untrustworthy("ignores If-None-Match, and would overwrite")
            second = await put(first)
            if second is None:
                client.quoted = self._quoted = False
                second = await put(first)
            if second is None:
                raise self._untrustworthy("refuses If-Match although the ETag is right")
            if await put(first) is not None:
                raise self._untrustworthy("ignores If-Match, and would overwrite what is newer")
        finally:
            with suppress(Exception):  # what is left of it harms nobody
                async with asyncio.timeout(TIMEOUT):
                    await client.delete(name)
        self._trusted = True

    def _untrustworthy(self, what: str) -> StoreError:
        return StoreError(
            f"{self.identity}: the service {what}: nothing would be safe from a second writer;"
            " use one that has conditional writes (see docs/howto-object-stores.md)",
            op="probe",
        )

    # Names.

    def _head_name(self, key: str) -> str:
        name = store_name(key)
        if "%~" in name:
            tail = base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")
            name = "/".join([name, *(tail[at : at + _TAIL] for at in range(0, len(tail), _TAIL))])
        return f"{self._prefix}heads/{name}"

    def _blob(self, key: str, name: str) -> str:
        return f"{self._prefix}blobs/{store_name(key)}/{name}"


def _common_name(prefix: str) -> str:
    """What the names of all keys with this prefix begin with."""
    # a long key's name keeps that much of it; a dot at the end may be spelt in another way
    start = prefix.encode()[:_NARROW].decode(errors="ignore").rstrip(".")
    return store_name(start) if start else ""


def _key_of(name: str) -> str | None:
    """The key of a head's name, None if it is none of ours."""
    with suppress(ValueError):
        if "%~" not in name:
            return key_of(name)
        tail = "".join(name.split("/")[1:])
        return base64.urlsafe_b64decode(tail + "=" * (-len(tail) % 4)).decode()
    return None
