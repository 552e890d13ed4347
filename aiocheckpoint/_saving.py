"""Saving: the files of open keys on their way to the store and back."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

from ._calls import backoff
from ._commits import Commits
from ._errors import StoreError, StoreUnavailableError
from ._files import restore_tree, store_tree
from ._held import Held, lightened
from ._outages import Outages
from ._records import Files
from ._region import Moved, Tree
from ._trees import check_movable


class Saves:
    """Puts trees to the store of a writer. Lives on the I/O loop, and commits nothing.

    While anything is in `held.saves` none of the key's blobs is collected.
    """

    def __init__(self, commits: Commits, outages: Outages) -> None:
        self._commits = commits
        self._outages = outages
        self._restores = itertools.count()

    async def save(self, held: Held, tree_id: str, root: Path, timeout: float) -> Files:
        """Put the files that lie at `root` to the store, for somebody who waits. When he has
        staged them, or given up, he takes `tree_id` out of `held.saves`.

        Raises:
            OSError: they cannot be read.
            StoreError: the store cannot take them; `StoreUnavailableError` after trying for
                `timeout` seconds.
        """
        held.saves.add(tree_id)
        key = held.slot.key
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        for failures in itertools.count():
            try:
                return await store_tree(self._commits.store, key, tree_id, root, held.stored_tree)
            except StoreUnavailableError as exc:
                held.errors += 1
                held.last_error = lightened(exc)
                wait = backoff(failures)
                if loop.time() + wait > until:
                    raise
                self._outages.begin(key, exc)
                await asyncio.sleep(wait)
        raise AssertionError("a count has no end")

    async def check(self, path: Path) -> None:
        """See whether what lies there can be saved, before it is moved.

        Raises:
            OSError: it cannot.
        """
        await asyncio.to_thread(check_movable, path)

    async def restore(self, held: Held, tree: Tree, target: Path) -> None:
        """Make the files of a stored tree anew at `target`."""
        files = held.files_of(tree)
        assert files is not None, "a moved tree is stored first"
        me = f"restore {next(self._restores)}"
        held.saves.add(me)
        try:
            await restore_tree(self._commits.store, held.slot.key, files, target)
        finally:
            held.saves.discard(me)

    async def upload(self, held: Held, tree: Moved) -> Files:
        """Put a tree to the store that was moved into the spool."""
        held.uploading = tree
        self.drop_outdated(held)
        key = held.slot.key
        try:
            return await store_tree(self._commits.store, key, tree.id, tree.path, held.stored_tree)
        except OSError as exc:
            raise StoreError(
                f"the files that were moved into the spool cannot be read any more ({exc}): save"
                " them again",
                op="save",
                key=key,
            ) from exc
        finally:
            held.uploading = None

    def drop_outdated(self, held: Held) -> None:
        """Remove moved trees that nobody needs any more, in the background."""
        spool = held.slot.spool
        for moved in held.outdated():
            assert spool is not None
            spool.moved.remove(moved)
            self._commits.start(asyncio.to_thread(spool.drop, moved.path))
