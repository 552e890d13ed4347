"""Looking at a key from outside: its head and its generations as they lie there, good or not.

For tools. Unlike with `read_head` nothing is fetched that a record names, and damage is told and
not raised.
"""

from __future__ import annotations

from typing import NamedTuple

from ._calls import bounded, read_blob
from ._errors import CodecError, CorruptCheckpointError, SealedError
from ._heads import GENERATION
from ._records import Record, decode_record
from .abc import Store, Version


class Seen(NamedTuple):
    """A record as it lies in a head or a generation."""

    record: Record | None
    """None if it cannot be read."""
    size: int
    """Bytes of its state, wherever that lies."""
    fault: str | None
    """Why it cannot be read."""
    later: bool = False
    """True if it is whole, and of a later format than this version reads, or encrypted under a key
    that is not at hand."""


class Generation(NamedTuple):
    """A copy of a record, kept to stand in for a damaged head. `name` is its blob's."""

    name: str
    seen: Seen


class Look(NamedTuple):
    """What lay under a key: the blobs were listed, then the head was read, then all the rest."""

    key: str
    before: frozenset[str]
    """The blobs that were there before the head was read."""
    frame: bytes
    """The head, as it is."""
    version: Version
    head: Seen
    names: frozenset[str]
    """The blobs that were there after it."""
    generations: list[Generation]
    """The oldest first."""

    @property
    def records(self) -> list[Record]:
        """All that can be read: of the head, if it can be, and of the generations."""
        seen = [self.head, *(generation.seen for generation in self.generations)]
        return [one.record for one in seen if one.record is not None]

    @property
    def named(self) -> frozenset[str]:
        """The generations, and the blobs that a record or the name of a generation names."""
        named = {generation.name for generation in self.generations}
        named |= {
            state for name in named if (state := state_of(name)) is not None
        }  # of one that cannot be read as well
        for record in self.records:
            named |= blobs_of(record)
        return frozenset(named)


def blobs_of(record: Record) -> frozenset[str]:
    """The blobs that a record names."""
    names = frozenset() if record.files is None else record.files.blobs
    return names if record.blob is None else names | {record.blob.name}


def state_of(generation: str) -> str | None:
    """The blob of its state that a generation's name has in it, if there is one."""
    _, dash, rest = generation.partition("-state-")
    return f"state-{rest}" if dash else None


def see(key: str, frame: bytes) -> Seen:
    """A record, or what is wrong with it.

    Raises:
        SealedError: nothing is, but the store was opened without a keyring.
    """
    try:
        record, data = decode_record(key, frame)
    except SealedError:
        raise
    except (CorruptCheckpointError, CodecError) as exc:
        return _unseen(exc)
    stored = len(data) if record.blob is None else record.blob.size
    return Seen(record, record.size if record.compression else stored, None)


def _unseen(exc: CorruptCheckpointError | CodecError) -> Seen:
    return Seen(None, 0, str(exc), later=isinstance(exc, CodecError))


async def see_head(store: Store, key: str) -> Seen | None:
    """The head of a key alone; None if it has none.

    Raises:
        SealedError: the store was opened without a keyring.
        StoreError: it cannot be read.
    """
    head = await bounded(store.load(key), "load", key)
    return None if head is None else see(key, head.record)


async def look_at(store: Store, key: str) -> Look | None:
    """Look at a key that may be written to meanwhile; None if it has no head.

    Raises:
        SealedError: the store was opened without a keyring.
        StoreError: it cannot be read.
    """
    before = await bounded(store.list_blobs(key), "list_blobs", key)
    head = await bounded(store.load(key), "load", key)
    if head is None:
        return None
    names = await bounded(store.list_blobs(key), "list_blobs", key)
    generations = []
    for name in sorted(name for name in names if name.startswith(GENERATION)):
        try:
            frame = await read_blob(store, key, name, 0)
            generations.append(Generation(name, see(key, frame)))
        except FileNotFoundError:
            continue  # collected since
        except (CorruptCheckpointError, CodecError) as exc:  # sealed, and it does not open
            generations.append(Generation(name, _unseen(exc)))
    return Look(
        key,
        frozenset(before),
        head.record,
        head.version,
        see(key, head.record),
        frozenset(names),
        generations,
    )
