"""Reading a key: its head, the blob that the head names, or what stands in for a damaged one."""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple

import xxhash

from ._calls import bounded, read_blob
from ._errors import CorruptCheckpointError, StoreUnavailableError
from ._records import Blob, Record, decode_record
from ._region import Staged
from .abc import Head, Store, Version

GENERATION = "gen-"
STATE = "state-"
_log = logging.getLogger("aiocheckpoint")


class Found(NamedTuple):
    """A head, read whole. `version` is the head's even if an earlier generation stands in."""

    record: Record
    data: bytes
    version: Version

    @property
    def state(self) -> Staged | None:
        """The state, or None if none has been stored yet."""
        if self.record.seq == 0:
            return None
        return Staged(self.record.seq, self.data, self.record.codec)


def generation_name(record: Record) -> str:
    """Sorts by age; names the state's blob, so that collecting needs no reading."""
    name = f"{GENERATION}{record.epoch:08d}-{record.commit:010d}-{record.claim.hex()}"
    return name if record.blob is None else f"{name}-{record.blob.name}"


def state_name(record: Record) -> str:
    """Never used twice: named by who puts it, not by who staged the state. Another claim may be
    about to delete what a claim before it has put of the same state."""
    return f"{STATE}{record.claim.hex()}-{record.commit}-{record.seq}"


def digest(data: bytes) -> bytes:
    return xxhash.xxh3_128_digest(data)


async def read_head(store: Store, key: str) -> Found | None:
    """The key's newest good record with its state; None only if the key has no head.

    Raises:
        CorruptCheckpointError: the head is damaged and no generation stands in for it.
        CodecError: it was written in a later format.
        StoreError: it cannot be read.
    """
    damage: CorruptCheckpointError | None = None
    seen: Version | None = None
    for _ in range(100):
        head = await bounded(store.load(key), "load", key)
        if head is None:
            return None
        if damage is not None and head.version == seen:
            return await _fall_back(store, key, head, damage)
        try:
            return await _complete(store, key, head)
        except CorruptCheckpointError as exc:
            # a blob may have been collected while we read: damage is what is there twice
            damage, seen = exc, head.version
    raise StoreUnavailableError("the key changes faster than it can be read", op="load", key=key)


async def _complete(store: Store, key: str, head: Head) -> Found:
    record, data = decode_record(key, head.record)
    if record.blob is not None:
        data = await _read_state(store, key, record.blob)
    return Found(record, data, head.version)


async def _read_state(store: Store, key: str, blob: Blob) -> bytes:
    try:
        data = await read_blob(store, key, blob.name, blob.size)
    except FileNotFoundError:
        raise CorruptCheckpointError(f"the state of {key!r} is missing: no {blob.name}") from None
    if len(data) != blob.size:
        raise CorruptCheckpointError(
            f"the state of {key!r} is cut short: {len(data)} of {blob.size} bytes in {blob.name}"
        )
    if await asyncio.to_thread(digest, data) != blob.digest:
        raise CorruptCheckpointError(f"the state of {key!r} is damaged: {blob.name}")
    return data


async def _fall_back(store: Store, key: str, head: Head, damage: CorruptCheckpointError) -> Found:
    names = await bounded(store.list_blobs(key), "list_blobs", key)
    for name in sorted(names, reverse=True):
        if not name.startswith(GENERATION):
            continue
        try:
            frame = await read_blob(store, key, name, 0)
            found = await _complete(store, key, Head(frame, head.version))
        except (CorruptCheckpointError, FileNotFoundError):
            continue
        _log.warning("%s; falling back to seq %d of %r", damage, found.record.seq, key)
        return found
    raise CorruptCheckpointError(
        f"{damage}; no earlier generation stands in for it (open with keep=2 or more to have one;"
        " delete() the key to start from nothing)"
    ) from damage
