"""The two contracts that others may implement: Store and Codec."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from ._errors import StoreError

T = TypeVar("T")

Version = str | int
"""An opaque name of one content of one key. Equal only to itself; never used twice, not even
after a delete."""


Source = bytes | AsyncIterator[bytes]
"""What a blob is made of: its bytes, or chunks of them, each a few MiB at most."""


class Head(NamedTuple):
    """What a key holds: the record's bytes and the version to name when replacing it."""

    record: bytes
    version: Version


class Put(NamedTuple):
    """One compare-and-swap: make `record` the head of `key` if its version is still `expect`.

    `expect=None` means that the key must be absent.
    """

    key: str
    expect: Version | None
    record: bytes


class Store(Protocol):
    """Where records live. Bytes and versions only: a store never looks into a record.

    Every coroutine runs on the runtime's I/O loop (asyncio), never on the user's, and must not
    block that loop. Keys have been checked before a store sees them (1 to 200 bytes of UTF-8, no
    control characters) and otherwise may hold anything. Failures are our own errors, raised
    `from` the driver's: `StoreUnavailableError` for what may pass (the writer will try
    again with backoff; the store must not), plain `StoreError` for what will not.

    A call may be cancelled, or abandoned after a timeout; whatever it then still does must leave
    the compare-and-swap intact.
    """

    @property
    def transactional(self) -> bool:
        """True if a batch is one transaction, so that one large commit beats many small ones.

        The writer then sends one batch at a time; to other stores it sends batches of one, many
        at a time.
        """

    @property
    def min_interval(self) -> float:
        """The default of the shortest time, in seconds, between two commits of one key."""

    @property
    def identity(self) -> str:
        """A name for this very store, equal in every process that opens it, without secrets."""

    @property
    def spool_dir(self) -> Path | None:
        """Where this machine keeps staged states of this store, or None for nowhere."""

    async def load(self, key: str) -> Head | None:
        """The key's head, or None if it has none. Never None because something failed."""

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        """Do each compare-and-swap and answer each, in order: its new version, or its error.

        Keys within a batch are distinct. A version that is returned is durable: it survives a
        power cut. A lost race answers `ConflictError`. One item's failure must not fail another;
        what fails the whole batch may be raised instead. After an error the commit may still
        have taken effect, but then only if `expect` held at that moment.
        """

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        """Keep immutable bytes under the key, durable on return, replacing what had that name.

        `name` is made of ASCII letters, digits, `.`, `-` and `_`, 120 characters at most. A blob
        is seen whole or not at all. Blobs need no head: they are put before the head that names
        them, and they outlive a `delete` that does not name them.

        `source` is the bytes of a state, or the chunks of something that may be larger than
        memory: take a chunk when there is room for it, hold a few at a time, copy none. What
        `source` raises is raised as it is, and there is no blob then.
        """

    def open_blob(
        self, key: str, name: str, start: int = 0, size: int | None = None
    ) -> AsyncIterator[bytes]:
        """The blob's bytes in chunks of a few MiB; FileNotFoundError if there is none.

        From `start` on, and `size` of them at most; what lies past the blob's end is left out.
        """

    async def list_blobs(self, key: str) -> list[str]:
        """The names of the key's blobs, sorted."""

    async def delete_blobs(self, key: str, names: Sequence[str]) -> None:
        """Forget these blobs. Absent ones are no error."""

    def keys(self, prefix: str) -> AsyncIterator[str]:
        """The keys that have a head and start with `prefix`, sorted by code point."""

    async def delete(self, key: str, expect: Version) -> None:
        """Remove the head if its version is `expect`, else `ConflictError`. Durable on return."""

    async def aclose(self) -> None:
        """Release everything. Called once, after the last call has ended or been abandoned."""


class Codec(Protocol[T]):
    """Turns states into bytes and back. Called in the caller's thread, inside `write()`.

    `name` is stored with each state, and a state is decoded only by a codec of that name.
    Whatever `encode` or `decode` raises reaches the user as the cause of a `CodecError`.
    """

    @property
    def name(self) -> str:
        """1 to 32 ASCII characters; change it when the encoding changes incompatibly."""

    def encode(self, state: T, /) -> bytes:
        """The state's bytes; must not refer to anything that the state may later change."""

    def decode(self, data: bytes, /) -> T:
        """The state that `encode` was given."""
