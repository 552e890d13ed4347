"""Each sync of the stores left out in turn, on real file systems: is a power cut's loss found?

`python -m tests.reliability._left_out` tries all of them and makes the table of the docs;
`... ext4` does so on one file system.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from ._crash import LostError
from ._images import KINDS, Volume, volume
from ._power import Plan

_MOST = 60
"""Calls of a program at which the power is cut."""


BOTH, XFS, NONE = frozenset(KINDS), frozenset({"xfs"}), frozenset[str]()


class Sync(NamedTuple):
    """One that can be left out, and a program that would lose something."""

    scheme: str
    of: str
    site: str
    """The functions of the stores that call for it, innermost first; or SQLite's call."""
    job: str
    found: frozenset[str]
    """The file systems that lose something without it."""

    def plan(self, volume: Volume) -> Plan:
        return Plan(volume, self.scheme, self.job, left_out=self.site)


_PUT, _ABOVE = "replace_file < BlobFiles._put", "BlobFiles._sync_above"
_FINISH = "GrowingFile.finish < BlobFiles._finish"
_MAKE = "replace_file < FileStore._make"
SYNCS = [
    Sync("file", "the store's name", "sync_directory < FileStore.__init__", "small", NONE),
    Sync("file", "a key's directory's name", "sync_directory < FileStore._make", "small", NONE),
    Sync("file", "a record", "write_durably < FileStore._link_next", "small", BOTH),
    Sync("file", "the name of a head", "FileStore._link_next", "small", BOTH),
    Sync("file", "what a key is called", f"write_durably < {_MAKE}", "generations", BOTH),
    Sync("file", "the name of that file", f"sync_directory < {_MAKE}", "generations", NONE),
    Sync("file", "a blob", f"write_durably < {_PUT}", "large", BOTH),
    Sync("file", "its name", f"sync_directory < {_PUT}", "large", NONE),
    Sync(
        *("file", "the names above it", f"sync_directory < {_ABOVE} < BlobFiles._put"),
        *("large", NONE),
    ),
    Sync("file", "a blob in chunks", _FINISH, "encrypted", BOTH),
    Sync("file", "the name of that", f"sync_directory < {_FINISH}", "encrypted", NONE),
    Sync(
        *("file", "the names above that", f"sync_directory < {_ABOVE} < BlobFiles._finish"),
        *("encrypted", NONE),
    ),
    Sync("sqlite", "the log", "fdatasync jobs.db-wal", "small", BOTH),
    Sync("sqlite", "the database", "fdatasync jobs.db", "small", BOTH),
    Sync("sqlite", "the journal of its making", "fdatasync jobs.db-journal", "small", NONE),
    Sync("sqlite", "the names of these", "fdatasync DIRECTORY", "small", NONE),
    Sync("sqlite", "a blob", f"write_durably < {_PUT}", "large", BOTH),
    Sync("sqlite", "its name", f"sync_directory < {_PUT}", "checkpointed", XFS),
    Sync(
        *("sqlite", "the names above it", f"sync_directory < {_ABOVE} < BlobFiles._put"),
        *("checkpointed", NONE),
    ),
    Sync("sqlite", "a blob in chunks", _FINISH, "encrypted", BOTH),
    Sync(
        *("sqlite", "the name of that", f"sync_directory < {_FINISH}"),
        *("checkpointed, encrypted", XFS),
    ),
    Sync(
        *("sqlite", "the names above that", f"sync_directory < {_ABOVE} < BlobFiles._finish"),
        *("checkpointed, encrypted", NONE),
    ),
]
"""All syncs that the stores and SQLite make."""


def stops(plan: Plan) -> Iterator[int | None]:
    """Where to cut the power: from the end back, as most that is lost is lost until then."""
    yield None
    calls = len(plan.calls())
    near = [calls - number * number for number in range(_MOST) if number * number < calls]
    yield from sorted({*near, *range(calls, 0, -max(1, calls // _MOST))}, reverse=True)


def finds(plan: Plan) -> LostError | None:
    """The first loss; None if there is none."""
    for stop in stops(plan):
        try:
            plan.cut(stop)
        except LostError as lost:
            return lost
    return None


def main(kinds: Sequence[str]) -> int:
    print(f"| sync | of what | {' | '.join(kinds)} |")
    print(f"|---|---|{'---|' * len(kinds)}")
    wrong = 0
    with ExitStack() as stack:
        volumes = [stack.enter_context(volume(kind)) for kind in kinds]
        for sync in SYNCS:
            found = [finds(sync.plan(each)) is not None for each in volumes]
            wrong += found != [kind in sync.found for kind in kinds]
            answers = " | ".join("yes" if each else "no" for each in found)
            print(f"| `{sync.scheme}:` `{sync.site}` | {sync.of} | {answers} |", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or KINDS))
