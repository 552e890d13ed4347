"""Reading a key: its head, the blob that the head names, or what stands in for a damaged one."""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple

from ._calls import bounded, read_blob, read_checked
from ._compression import QUICK, decompress
from ._errors import CodecError, CorruptCheckpointError, StoreUnavailableError
from ._files import MANIFEST, check_tree
from ._records import Record, decode_record
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
        return Staged(self.record.seq, self.data, self.record.codec, self.record.files)


def generation_name(record: Record) -> str:
    """Sorts by age; names the state's blob, so that collecting needs no reading."""
    name = f"{GENERATION}{record.epoch:08d}-{record.commit:010d}-{record.claim.hex()}"
    return name if record.blob is None else f"{name}-{record.blob.name}"


def state_name(record: Record) -> str:
    """Never used twice: named by who puts it, not by who staged the state. Another claim may be
    about to delete what a claim before it has put of the same state."""
    return f"{STATE}{record.claim.hex()}-{record.commit}-{record.seq}"


async def read_head(store: Store, key: str, *, files: bool = True) -> Found | None:
    """The key's newest good record with its state; None only if the key has no head.

    With `files=False` nobody looks whether the files are there.

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
            return await _complete(store, key, head, files=files)
        except CorruptCheckpointError as exc:
            # a blob may have been collected while we read: damage is what is there twice
            damage, seen = exc, head.version
    raise StoreUnavailableError("the key changes faster than it can be read", op="load", key=key)


async def kept_generations(
    store: Store, key: str, names: list[str], keep: int
) -> list[frozenset[str]]:
    """The newest of these blobs that are generations, `keep` at most: each with all blobs that it
    needs, oldest first.

    Raises:
        StoreError: they cannot be read.
        CodecError: one was written in a later format.
    """
    kept = []
    has_files = any(name.startswith(MANIFEST) for name in names)
    for name in sorted(name for name in names if name.startswith(GENERATION))[-keep:]:
        _, dash, state = name.partition(f"-{STATE}")
        needed = {name, STATE + state} if dash else {name}
        if has_files:
            try:
                record, _ = decode_record(key, await read_blob(store, key, name, 0))
            except (CorruptCheckpointError, FileNotFoundError):
                continue  # it can stand in for nothing
            if record.files is not None:
                needed |= record.files.blobs
        kept.append(frozenset(needed))
    return kept


async def _complete(store: Store, key: str, head: Head, *, files: bool) -> Found:
    record, data = decode_record(key, head.record)
    if record.blob is not None:
        data = await read_checked(store, key, record.blob, "the state")
    if record.compression:
        data = await _decompressed(record, data)
    if files and record.files is not None:
        await check_tree(store, key, record.files)
    return Found(record, data, head.version)


async def _decompressed(record: Record, data: bytes) -> bytes:
    if record.compression != "zstd":
        raise CodecError(
            f"the state of {record.key!r} is compressed by {record.compression!r}: upgrade"
            " aiocheckpoint"
        )
    try:
        if record.size <= QUICK:
            return decompress(data, record.size)
        return await asyncio.to_thread(decompress, data, record.size)
    except ValueError as exc:
        raise CorruptCheckpointError(
            f"the state of {record.key!r} is damaged: it cannot be decompressed ({exc})"
        ) from exc
    except CodecError as exc:
        raise CodecError(f"the state of {record.key!r}: {exc}") from exc.__cause__


async def _fall_back(store: Store, key: str, head: Head, damage: CorruptCheckpointError) -> Found:
    names = await bounded(store.list_blobs(key), "list_blobs", key)
    for name in sorted(names, reverse=True):
        if not name.startswith(GENERATION):
            continue
        try:
            frame = await read_blob(store, key, name, 0)
            found = await _complete(store, key, Head(frame, head.version), files=True)
        except (CorruptCheckpointError, FileNotFoundError):
            continue
        _log.warning("%s; falling back to seq %d of %r", damage, found.record.seq, key)
        return found
    raise CorruptCheckpointError(
        f"{damage}; no earlier generation stands in for it (open with keep=2 or more to have one;"
        " delete() the key to start from nothing)"
    ) from damage
