"""Claiming a key: one compare-and-swap that carries the newest state on under a new claim id."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from . import _spool
from ._calls import OP_TIMEOUT, bounded
from ._errors import ClosedError, CodecError, ConflictError, StoreError, StoreUnavailableError
from ._heads import Found, kept_generations, read_head
from ._held import Held, departing, ended
from ._keyring import Keyring
from ._keys import store_name
from ._promotion import Newest
from ._records import Files, Record
from ._region import Moved, Staged
from ._sealing import Staging
from ._slot import Meta, Slot
from ._spool import Spool
from ._writer import Writer
from .abc import Put

_log = logging.getLogger("aiocheckpoint")


class Plan(NamedTuple):
    """What a claim makes of the record that it finds."""

    meta: Meta
    fresh: bool = False
    """True to leave the state behind."""
    level: int = logging.INFO
    """Of the log line that says so."""


class Try(NamedTuple):
    """What one try to claim has put to the store. Its answer may be lost, and it land later."""

    record: Record
    state: Staged | None
    promoted: bool
    astray: list[Path]


Decide = Callable[[Record | None], Plan]
"""Looks at the key's record (None: the key is new) and says how to claim it, or raises."""


async def claim(
    writer: Writer,
    key: str,
    decide: Decide,
    *,
    spool_base: Path | None,
    keyring: Keyring | None,
    keep: int,
    min_interval: float,
    plain: bool,
) -> Held:
    """Make the key ours, with the newest state that this machine knows.

    Raises:
        CorruptCheckpointError, CodecError: see `read_head`. CodecError also if the spool has
            something newer that cannot be opened.
        StoreError: the store cannot be read or written; `StoreUnavailableError` only after
            `OP_TIMEOUT` seconds of trying.
        Whatever `decide` raises.
    """
    store = writer.store
    before = await _departed(store.identity, key)
    directory = None if spool_base is None else spool_base / store_name(key)
    until = time.monotonic() + OP_TIMEOUT
    wait = 0.05
    told = False
    tried: dict[bytes, Try] = {}
    uploaded: dict[str, Files] = {}
    while True:
        try:
            found = await read_head(store, key)
            ours = None if found is None else tried.get(found.record.claim)
            if ours is None:
                plan = decide(None if found is None else found.record)
            # Blobs and the spool are listed between the reading and the commit: once the commit
            # has succeeded, no claim newer than the one we found can have made any of it.
            blobs = await bounded(store.list_blobs(key), "list_blobs", key)
            left = [] if directory is None else _spool.left_over(directory)
            if ours is not None:
                # An answer was lost. What is read back may be on its way to the disk yet: the
                # claim holds, but it counts only when it has been committed once more.
                record = msgspec.structs.replace(ours.record, commit=ours.record.commit + 1)
                state, promoted, astray = ours.state, ours.promoted, ours.astray
            else:
                near = found, blobs, left, before, uploaded
                newest = Newest(store, key, *near, keyring, writer.commits.compression)
                state, origin, promoted = await newest.state(fresh=plan.fresh)
                astray = newest.astray()
                record = _next(key, found, state, origin, plan, carried=not promoted)
            data = b"" if state is None else state.data
            record, frame = await writer.commits.put_blobs(record, data)
            tried[record.claim] = Try(record, state, promoted, astray)
            expect = None if found is None else found.version
            version = await writer.commits.outcome(Put(key, expect, frame))
            break
        except ConflictError:
            uploaded.clear()  # whoever was faster collects what he does not name
            await asyncio.sleep(random.uniform(0, wait))
        except StoreUnavailableError as exc:
            if time.monotonic() + wait > until:
                raise
            if not told:
                told = True
                _log.warning("%s is unavailable (%s); %r waits for it", store.identity, exc, key)
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2.0, wait * 2)
    if promoted and state is not None:
        _log.info("promoted seq %d of %r from the spool", state.seq, key)
    _log.log(
        plan.level,
        "claimed %r in %s: epoch %d, attempt %d, seq %d",
        key,
        store.identity,
        record.epoch,
        record.attempt,
        record.seq,
    )
    if keep > 1:
        await _put_generation(writer, record, frame)
    for path in astray:
        _spool.set_aside(path, key)
    left = [path for path in left if path not in astray]
    if left:  # trees take their time
        await asyncio.to_thread(_spool.discard, left)
    if writer.finishing:
        raise ClosedError("the runtime was closed while the key was being claimed")
    spool = None if directory is None else _make_spool(directory, key, record.claim, keyring)
    slot = Slot(key, state, plan.meta, spool, plain=plain)
    held = Held(slot, record, version, writer.settled, keep=keep, min_interval=min_interval)
    try:
        generations = await kept_generations(store, key, blobs, keep) if keep > 1 else []
    except (StoreError, CodecError) as exc:  # what cannot be read may be needed
        _log.info("old blobs of %r are left for the next claim: %s", key, exc)
        blobs, generations = [], []
    if superfluous := held.ledger.adopt(record, blobs, generations):
        writer.commits.collect(key, superfluous, held.ledger.put)
    writer.holding.add(held)
    return held


async def _departed(identity: str, key: str) -> Held | None:
    """Wait for a flush of this key that is under way in this process. What it could not store is
    still newer than the store's, and the caller takes it over."""
    held = departing.get((identity, key))
    if held is None or held.leaving is None:
        return None
    await ended(held.leaving)
    return held if held.slot.dirty and not held.fenced else None


def _next(
    key: str,
    found: Found | None,
    state: Staged | None,
    origin: bytes,
    plan: Plan,
    *,
    carried: bool,
) -> Record:
    """The claim's header. The id is drawn anew at each try, and with it the names of blobs: those
    of a try that lost are for the winner to collect."""
    old = None if found is None else found.record
    put = old if carried and state is not None and old is not None and old.blob else None
    meta = plan.meta
    return Record(
        key=key,
        run=os.urandom(8) if old is None else old.run,
        claim=os.urandom(16),
        epoch=1 if old is None else old.epoch + 1,
        commit=1,
        attempt=meta.attempt,
        burnt=meta.burnt,
        status=meta.status,
        result=meta.result,
        result_codec=meta.result_codec,
        seq=0 if state is None else state.seq,
        origin=origin,
        codec="" if state is None else state.codec,
        created=time.time(),
        blob=None if put is None else put.blob,
        files=_files(state),
        compression="" if put is None else put.compression,
        size=0 if put is None else put.size,
    )


def _files(state: Staged | None) -> Files | None:
    tree = None if state is None else state.tree
    assert not isinstance(tree, Moved), "what is carried on is stored by now"
    return tree


async def _put_generation(writer: Writer, record: Record, frame: bytes) -> None:
    """Only now that the claim is the head: a claim that lost must not stand in for a winner."""
    try:
        await writer.commits.put_generation(record, frame)
    except StoreError as exc:
        _log.info("no generation of the claim of %r: %s", record.key, exc)


def _make_spool(directory: Path, key: str, me: bytes, keyring: Keyring | None) -> Spool | None:
    try:
        _spool.key_directory(directory)
    except OSError as exc:
        _spool.warn_once(directory.parent, "", exc)
        return None
    return Spool(directory, me, None if keyring is None else Staging(keyring, key, me))
