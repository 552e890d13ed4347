"""The spool: staged states that outlive the process, one directory a key.

A region belongs to one claim and is named by it; a claimant removes only those that it superseded.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ._codecs import BYTES
from ._region import (
    SPOOL_LIMIT,
    Moved,
    Recovered,
    Region,
    Stage,
    Staged,
    Tree,
    make_region,
    read_region,
)
from ._sealing import Staging
from ._trees import make_removable

T = TypeVar("T")

TREE = ".tree"
_GONE = ".gone"
_ASIDE = ".aside"
_NAME = re.compile(r"[0-9a-f]{32}((\.[0-9]{1,12}){1,2}|-[0-9]+\.(tree|gone))")
_TRIES = 100  # to make what others remove at the same time
_RETRY_AFTER = 1.0  # seconds until a disk that was full is tried again
_log = logging.getLogger("aiocheckpoint")


class Spool:
    """The regions of one claim, in the directory of its key."""

    __slots__ = ("__weakref__", "_numbers", "_paths", "claim", "directory", "moved", "staging")

    def __init__(self, directory: Path, claim: bytes, staging: Staging | None = None) -> None:
        """`staging` seals what is staged."""
        self.directory = directory
        self.claim = claim
        self.staging = staging
        self._numbers = itertools.count()
        self._paths: list[Path] = []
        self.moved: list[Moved] = []
        """Trees that were taken and not dropped yet, oldest first."""

    def allocate(self, like: Staged, overflow: Stage) -> Region | None:
        """A new region for states of this codec, tree and size; None if it cannot be made."""
        path = self.directory / f"{self.claim.hex()}.{next(self._numbers)}"
        try:
            region = in_directory(self.directory, lambda: self._make(path, like, overflow))
        except (OSError, subprocess.SubprocessError) as exc:
            _remove(path)
            warn_once(self.directory.parent, f" for states of {len(like.data)} bytes", exc)
            return None
        self._paths.append(region.path)
        return region

    def _make(self, path: Path, like: Staged, overflow: Stage) -> Region:
        size = len(like.data)
        return make_region(path, self.claim, like.codec, like.tree_id, size, overflow, self.staging)

    def drop(self, path: Path) -> None:
        """Forget a region that another has replaced, or a tree."""
        if path in self._paths:
            self._paths.remove(path)
        _remove(path)
        if path.name.endswith(TREE):  # it may have outlasted all else
            drop_directory(self.directory)

    def take(self, path: Path, tree_id: str) -> Moved:
        """Take a file or directory by rename: in one step, and whatever its size.

        Raises:
            OSError: it cannot be renamed to here.
        """
        moved = Moved(tree_id, self.directory / f"{tree_id}{TREE}")
        try:
            in_directory(self.directory, lambda: os.rename(path, moved.path))
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            raise OSError(
                errno.EXDEV,
                f"cannot be moved into the spool, {self.directory.parent}, which is on another file"
                " system: open with spool= a directory beside it, or save with move=False",
                str(path),
            ) from exc
        self._paths.append(moved.path)
        self.moved.append(moved)
        return moved

    def give_back(self, moved: Moved, path: Path) -> None:
        """Undo a take that came to nothing."""
        self.moved.remove(moved)
        self._paths.remove(moved.path)
        os.rename(moved.path, path)

    def set_aside(self, moved: Moved, key: str) -> None:
        """Keep a tree that nobody will have."""
        self.moved.remove(moved)
        self._paths.remove(moved.path)
        set_aside(moved.path, key)

    def remove(self) -> None:
        """Forget all that this claim staged. Call it when nothing stages any more."""
        discard(list(self._paths))  # a thread may be dropping one of them
        drop_directory(self.directory)


class Lane:
    """One thread's way into the spool: a region, replaced when a state does not fit it."""

    __slots__ = ("_again_at", "_overflow", "_spool", "_too_large", "region")

    def __init__(self, spool: Spool, overflow: Stage) -> None:
        """`overflow` is given what is put straight to the region's `stage` and does not fit."""
        self._spool = spool
        self._overflow = overflow
        self._too_large = SPOOL_LIMIT + 1
        self._again_at = 0.0
        self.region: Region | None = None

    def reserve(self, tree: Tree | None) -> None:
        """Make a small region for plain bytes ahead of the first write."""
        self.region = self._allocate(Staged(0, b"", BYTES, tree))

    def stage(self, state: Staged) -> None:
        """Stage a state of any codec and size, if the spool can take it."""
        old = self.region
        if self.takes(state):
            assert old is not None
            old.stage(state.seq, state.data)
            return
        region = self._allocate(state)
        if region is not None:
            region.stage(state.seq, state.data)
            self.region = region
            if old is not None:  # only now: until here it held the newest state
                self._spool.drop(old.path)

    def takes(self, state: Staged) -> bool:
        """True if the region as it is has room for such a state."""
        region = self.region
        return (
            region is not None
            and region.codec == state.codec
            and region.tree == state.tree_id
            and len(state.data) <= region.capacity
        )

    def _allocate(self, like: Staged) -> Region | None:
        size = len(like.data)
        if size > SPOOL_LIMIT:
            return None
        if size >= self._too_large and time.monotonic() < self._again_at:
            return None
        region = self._spool.allocate(like, self._overflow)
        if region is None:
            self._too_large = size
            self._again_at = time.monotonic() + _RETRY_AFTER
        else:
            self._too_large = SPOOL_LIMIT + 1
        return region


_warned: set[Path] = set()


def warn_once(base: Path, what: str, exc: Exception) -> None:
    """Say that a spool cannot be made; in this process once for all keys in the directory."""
    if base in _warned:
        return
    _warned.add(base)
    _log.warning(
        "no spool%s in %s (%s): going on without it; a killed process loses what was not yet"
        " stored",
        what,
        base,
        exc,
    )


def in_directory(directory: Path, make: Callable[[], T]) -> T:
    """Make something in the directory of a key's regions, and that first if it is not there.

    Raises:
        OSError: it cannot be made, or the directory is a link or another user's.
    """

    def both() -> T:
        try:
            return make()
        except FileNotFoundError:
            _make_directory(directory)
            return make()

    return _persistently(both)


def key_directory(directory: Path) -> None:
    """Make the directory of a key's regions, readable by this user alone.

    Raises:
        OSError: it cannot be made, or is a link or another user's.
    """
    _persistently(lambda: _make_directory(directory))


def _persistently(make: Callable[[], T]) -> T:
    """Whoever leaves a key takes its directory along if it is empty, and the base: at any moment,
    and, where many come and go, again and again."""
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            return make()
    return make()


def _make_directory(directory: Path) -> None:
    base = directory.parent
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    for path in (base, directory):
        info = path.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
            raise PermissionError(f"{path} is not a directory of this user")


def left_over(directory: Path) -> list[Path]:
    """The regions and trees that lie there now, of whatever claim; none behind a link."""
    try:
        if directory.is_symlink():
            return []
        return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        _log.warning("the spool in %s cannot be read and is not used: %s", directory, exc)
        return []


def staged(paths: list[Path], claim: bytes) -> list[Recovered]:
    """The whole states that `claim` staged on this boot, one a region."""
    found = []
    for path in paths:
        if not path.name.startswith(f"{claim.hex()}."):
            continue
        try:
            if recovered := read_region(path, claim):
                found.append(recovered)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as exc:
            _log.warning("spool region %s is damaged or unreadable and is not used: %s", path, exc)
    return found


def discard(paths: list[Path]) -> None:
    """Remove what superseded claims have left, and the directory once it is empty."""
    for path in paths:
        _remove(path)
    if paths:
        drop_directory(paths[0].parent)


def _remove(path: Path) -> None:
    try:
        if path.name.endswith((TREE, _GONE)):
            # in one step: half a tree must never be taken for a whole one
            gone = path.with_suffix(_GONE)
            path.rename(gone)
            if stat.S_ISDIR(gone.lstat().st_mode):
                make_removable(gone)
                shutil.rmtree(gone)
            else:
                gone.unlink()
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    except OSError as exc:  # nothing depends on it: claim ids tell what it holds from the rest
        _log.warning("%s of the spool cannot be removed: %s", path, exc)


def set_aside(path: Path, key: str) -> None:
    """Keep a tree that no record has: nobody else may have these files. Nothing here touches it
    again."""
    aside = path.with_suffix(_ASIDE)
    try:
        path.rename(aside)
    except OSError as exc:
        _log.warning("%s of the spool cannot be moved aside: %s", path, exc)
        return
    _log.warning(
        "files that save(move=True) took for %r are in no checkpoint, as the process or machine"
        " ended before they were; they are kept in %s: remove or use them",
        key,
        aside,
    )


def drop_directory(directory: Path) -> None:
    """Remove a directory of regions, or of all keys', if nothing is left in it."""
    try:
        directory.rmdir()
    except OSError:
        pass  # another claim's regions lie there, or it is gone
