"""Deleting a key: its head first, then what only the head gave a meaning."""

from __future__ import annotations

import asyncio
from pathlib import Path

from . import _spool
from ._calls import bounded
from ._errors import ConflictError
from ._keys import store_name
from .abc import Store, Version

_TRIES = 10


async def delete_key(store: Store, key: str, version: Version) -> None:
    """Delete a head of this version, and the blobs that were there before.

    Raises:
        ConflictError: another version is the head.
        StoreError: it cannot be deleted.
    """
    names = await bounded(store.list_blobs(key), "list_blobs", key)
    await bounded(store.delete(key, version), "delete", key)
    if names:
        await bounded(store.delete_blobs(key, names), "delete_blobs", key)


async def delete_with_spool(
    store: Store, key: str, version: Version, spool_base: Path | None
) -> None:
    """The same for a key that is not open here, with what this machine has staged of it."""
    # listed before the commit, like a claim's: none of them can be a later claim's
    left = [] if spool_base is None else _spool.left_over(spool_base / store_name(key))
    await delete_key(store, key, version)
    await asyncio.to_thread(_spool.discard, left)


async def delete_now(store: Store, key: str, spool_base: Path | None) -> bool:
    """Delete a key as it is at that moment; False if there is none.

    Raises:
        ConflictError: it changes too fast.
        StoreError: it cannot be deleted.
    """
    for left in reversed(range(_TRIES)):
        head = await bounded(store.load(key), "load", key)
        if head is None:
            return False
        try:
            await delete_with_spool(store, key, head.version, spool_base)
        except ConflictError:
            if not left:
                raise
        else:
            return True
    raise AssertionError("the last try ends it")
