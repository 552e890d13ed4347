"""Promotion: which state a claim carries on, and with which files."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from . import _spool
from ._compression import Compression
from ._errors import CodecError, ConflictError, StoreError
from ._files import find_tree, store_tree
from ._heads import Found
from ._held import Held
from ._keyring import Keyring
from ._records import Files
from ._region import Moved, Recovered, Staged, Tree
from ._sealing import lacking, unstage
from .abc import Store

_log = logging.getLogger("aiocheckpoint")


class Newest:
    """Looks for the newest state of a key: in the store, the spool, and this process."""

    def __init__(
        self,
        store: Store,
        key: str,
        found: Found | None,
        blobs: list[str],
        left: list[Path],
        before: Held | None,
        uploaded: dict[str, Files],
        keyring: Keyring | None,
        compression: Compression,
    ) -> None:
        """`left` is what lies in the spool; `before` is a handle that could not store its last;
        `uploaded` are moved trees that an earlier try has put to the store."""
        self._store = store
        self._key = key
        self._found = found
        self._blobs = blobs
        self._left = left
        self._before = before
        self._uploaded = uploaded
        self._keyring = keyring
        self._compression = compression
        self._fresh = False
        self._carried: str = ""  # the id of the tree that is carried on

    async def state(self, *, fresh: bool) -> tuple[Staged | None, bytes, bool]:
        """The state to carry on, the claim that staged it, and whether it comes from the spool
        instead of the store. Its files are stored.

        What the head's own claim staged counts; if that is nothing, what the claim staged whose
        state the head still carries on: claims after it have stored nothing newer. Every other
        region was superseded, or belongs to a run that was deleted.

        Raises:
            CodecError: the spool has a newer one that is sealed under a key that is not at hand.
            StoreError: its files cannot be read or stored.
        """
        found = self._found
        self._fresh = fresh
        if found is None or fresh:
            return None, b"", False
        record = found.record
        origin = record.origin or record.claim
        for claim in dict.fromkeys((record.claim, origin)):
            for staged, tree in self._staged_by(claim):
                if staged.seq <= record.seq:
                    break
                try:
                    files = await self._stored(tree)
                except LookupError:
                    _log.warning(
                        "seq %d of %r in the spool is not used: the files that it goes with are"
                        " not there",
                        staged.seq,
                        self._key,
                    )
                    continue
                self._carried = tree if isinstance(tree, str) else "" if tree is None else tree.id
                return staged._replace(tree=files), claim, True
        self._carried = "" if record.files is None else record.files.id
        return found.state, origin, False

    def astray(self) -> list[Path]:
        """Trees in the spool that are in no record although no newer one has replaced them: they
        were taken, and never staged, or on another boot. Call it after `state`."""
        found = self._found
        if found is None or self._fresh:
            return []
        own = {found.record.claim.hex(), found.record.origin.hex()}
        claim, _, number = self._carried.rpartition("-")
        carried = {claim: int(number)} if claim else {}
        astray = []
        for path in self._left:
            if path.name.endswith(_spool.TREE):
                claim, _, number = path.stem.rpartition("-")
                if claim in own and int(number) > carried.get(claim, 0):
                    astray.append(path)
        return astray

    def _staged_by(self, claim: bytes) -> list[tuple[Staged, str | Tree | None]]:
        """What a claim has staged and, or under which id, the files that belong to it; the newest
        first."""
        assert self._found is not None
        found: list[tuple[Staged, str | Tree | None]] = []
        for recovered in _spool.staged(self._left, claim):
            newer = recovered.staged.seq > self._found.record.seq
            if newer and (data := self._opened(recovered, claim)) is not None:
                found.append((recovered.staged._replace(data=data), recovered.tree_id))
        before = self._before
        if before is not None and before.record.claim == claim and (own := before.slot.newest()):
            found.append((own, before.files_of(own.tree) or own.tree))
        return sorted(found, key=lambda each: each[0].seq, reverse=True)

    def _opened(self, recovered: Recovered, claim: bytes) -> bytes | None:
        """The state in clear; None if it is not to be trusted."""
        staged, keyring, sealed = recovered.staged, self._keyring, recovered.sealed
        if sealed is None and keyring is None:
            return staged.data
        if sealed is not None:
            lack = (
                f"the key {sealed.key_id!r}: open with encryption= a Keyring that has that key"
                if keyring is None
                else lacking(keyring, sealed.key_id, sealed.check)
            )
            if lack is not None:
                raise CodecError(
                    f"the spool has a newer state of {self._key!r} than the store, seq"
                    f" {staged.seq}, encrypted under {lack}; or remove {recovered.path} to go back"
                    " to what was stored"
                )
        try:
            if keyring is None or sealed is None:
                raise ValueError("it is not encrypted, and the store is")
            about = staged.codec, recovered.tree_id, staged.seq
            return unstage(keyring, self._key, claim, sealed, *about, staged.data)
        except ValueError as exc:
            _log.warning("seq %d of %r in the spool is not used: %s", staged.seq, self._key, exc)
            return None

    async def _stored(self, tree: str | Tree | None) -> Files | None:
        """The files in the store, to which what was moved into the spool is put first.

        Raises:
            LookupError: they are nowhere.
            StoreError: they cannot be read or stored.
        """
        if tree is None or isinstance(tree, Files):
            return tree
        tree_id = tree if isinstance(tree, str) else tree.id
        assert self._found is not None
        head = self._found.record.files
        if tree_id == ("" if head is None else head.id):
            return head
        if files := await find_tree(self._store, self._key, tree_id, self._blobs):
            return files
        paths = [path for path in self._left if path.name == tree_id + _spool.TREE]
        if isinstance(tree, Moved):
            paths.append(tree.path)
        # of an encrypted store none lies there, and whoever may write there could have put it
        if not paths or self._keyring is not None:
            raise LookupError(tree_id)
        if tree_id in self._uploaded:
            return self._uploaded[tree_id]
        try:
            files = await store_tree(
                self._store, self._key, tree_id, paths[0], head, compression=self._compression
            )
        except OSError as exc:
            if _gone(paths[0]):  # whoever lives there has just stored it
                raise ConflictError("the spool has changed", op="open", key=self._key) from exc
            raise StoreError(
                f"files that were saved with move=True cannot be read from the spool ({exc}): mend"
                f" that, or remove {paths[0]} to go back to what was stored before them",
                op="open",
                key=self._key,
            ) from exc
        self._uploaded[tree_id] = files
        return files


def _gone(path: Path) -> bool:
    return not os.path.lexists(path)
