"""Saving: the files of open keys on their way to the store and back."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from ._calls import PUTS_AT_ONCE, backoff, bounded
from ._commits import Commits
from ._errors import CorruptCheckpointError, FencedError, StoreError, StoreUnavailableError
from ._files import restore_tree, store_tree
from ._held import Held, lightened
from ._hops import hop
from ._outages import Outages
from ._records import Files, decode_record
from ._region import Moved, Tree
from ._trees import check_movable

T = TypeVar("T")


class Saves:
    """Puts trees to the store of a writer. Lives on the I/O loop, and commits nothing.

    Whoever asks for a save or restore enters himself in the key's ledger before, and leaves it
    when he has staged what he got, or has given up.
    """

    def __init__(self, commits: Commits, outages: Outages) -> None:
        self._commits = commits
        self._store = commits.store
        self._outages = outages
        self._room = asyncio.Semaphore(PUTS_AT_ONCE)

    async def save(self, held: Held, tree_id: str, root: Path, timeout: float) -> Files:
        """Put the files that lie at `root` to the store.

        Raises:
            OSError: they cannot be read.
            StoreError: the store cannot take them; `StoreUnavailableError` after trying for
                `timeout` seconds.
        """
        await hop(self._check_place, held, root)
        return await self._persistently(
            held, timeout, lambda: self._store_tree(held, tree_id, root)
        )

    async def check(self, held: Held, path: Path) -> None:
        """See whether what lies there can be saved, before it is moved.

        Raises:
            OSError: it cannot.
        """
        await hop(self._check_place, held, path)
        await hop(check_movable, path)

    async def restore(self, held: Held, tree: Tree, target: Path, timeout: float) -> bool:
        """Make the files of a tree anew at `target`; False if it is not stored, nor will be, as a
        newer one has replaced it."""
        files = held.files_of(tree)
        if files is None:
            return False
        try:
            await self._persistently(
                held, timeout, lambda: restore_tree(self._store, held.slot.key, files, target)
            )
        except CorruptCheckpointError as exc:
            if fenced := await self._fence(held):  # a newer attempt has replaced the files
                raise fenced from exc
            raise
        return True

    async def upload(self, held: Held, tree: Moved) -> Files:
        """Put a tree to the store that was moved into the spool.

        Raises:
            FencedError: it is gone, as a newer attempt has claimed the key.
            StoreError: it cannot be read, or the store cannot take it.
        """
        # not the one that the spool names: until this is stored, a kill goes back to it
        spooled = held.tree_number(held.slot.spooled_tree)
        self.drop_moved(held, before=min(held.tree_number(tree), spooled))
        try:
            return await self._store_tree(held, tree.id, tree.path)
        except OSError as exc:
            if fenced := await self._fence(held):
                raise fenced from exc
            raise StoreError(
                f"the files that were moved into the spool cannot be read any more ({exc}): save"
                " them again",
                op="save",
                key=held.slot.key,
            ) from exc

    def drop_moved(self, held: Held, *, before: int) -> None:
        """Remove moved trees of a lower number, in the background: a newer one has replaced them,
        or they are stored."""
        spool = held.slot.spool
        for moved in [] if spool is None else list(spool.moved):
            assert spool is not None
            if held.tree_number(moved) < before:
                spool.moved.remove(moved)
                self._commits.start(asyncio.to_thread(spool.drop, moved.path))

    def set_aside(self, held: Held, *, after: int) -> None:
        """Keep what was moved while its key was being deleted: it is nobody's now."""
        spool = held.slot.spool
        for moved in [] if spool is None else list(spool.moved):
            if spool is not None and held.tree_number(moved) > after:
                spool.set_aside(moved, held.slot.key)

    def collect(self, held: Held) -> None:
        """After a commit: delete the blobs that may go, in the background."""
        if names := held.ledger.superfluous(held.files_of(held.slot.files)):
            self._commits.collect(held.slot.key, names, held.ledger.put)

    def over(self, held: Held, tree_id: str) -> None:
        """Whoever saved has staged what he got, or given up."""
        held.ledger.end(tree_id)
        if held.deleted and (names := held.ledger.abandoned()):
            self._commits.collect(held.slot.key, names)

    async def look_for_files(self, held: Held) -> None:
        """When a store went back in time: see whether it still has the files."""
        key, slot = held.slot.key, held.slot
        files = held.files_of(slot.files)
        held.stored_tree = held.forgotten = None
        if files is not None:
            blobs = await bounded(self._store.list_blobs(key), "list_blobs", key)
            if files.blobs <= frozenset(blobs):
                held.stored_tree = files
            else:
                held.forgotten = files

    async def _store_tree(self, held: Held, tree_id: str, root: Path) -> Files:
        async with self._room:
            return await store_tree(
                self._store,
                held.slot.key,
                tree_id,
                root,
                held.stored_tree,
                held.ledger.put,
                self._commits.compression,
            )

    async def _persistently(
        self, held: Held, timeout: float, attempt: Callable[[], Awaitable[T]]
    ) -> T:
        """Try again while the store is unavailable, for so many seconds."""
        key = held.slot.key
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        for failures in itertools.count():
            try:
                return await attempt()
            except StoreUnavailableError as exc:
                held.errors += 1
                held.last_error = lightened(exc)
                wait = backoff(failures)
                if loop.time() + wait > until:
                    raise
                self._outages.begin(key, exc)
                await asyncio.sleep(wait)
        raise AssertionError("a count has no end")

    async def _fence(self, held: Held) -> FencedError | None:
        """Whether the key is somebody else's by now."""
        key = held.slot.key
        head = await bounded(self._store.load(key), "load", key)
        return held.fenced_by(None if head is None else decode_record(key, head.record)[0])

    def _check_place(self, held: Held, root: Path) -> None:
        spool = held.slot.spool
        top = root.resolve()
        store = self._store.identity.partition(":")[2]  # of a local one this is a path
        local = store.startswith("/") and not store.startswith("//")
        places = [Path(store)] if local else []
        places += [] if spool is None else [spool.directory]
        for place in places:
            inner = place.resolve()
            if inner.is_relative_to(top) or top.is_relative_to(inner):
                what = "is" if inner == top else "holds" if inner.is_relative_to(top) else "is in"
                raise OSError(
                    errno.EINVAL, f"{what} the store ({place}): save what lies beside it", str(root)
                )
