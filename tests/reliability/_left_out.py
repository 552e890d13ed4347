"""Each sync of the stores left out in turn, on real file systems: is a power cut's loss found?

`python -m tests.reliability._left_out` tries all of them and makes the table of the docs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

from ._crash import LostError
from ._images import KINDS, Volume, volume
from ._power import Plan

_MOST = 60
"""Calls of a program at which the power is cut."""


class Sync(NamedTuple):
    """One that can be left out, and a program that would lose something."""

    scheme: str
    site: str
    """The functions of the stores that call for it, innermost first; or SQLite's call."""
    of: str
    job: str
    found: bool
    """Whether these file systems lose something without it."""

    def plan(self, volume: Volume) -> Plan:
        return Plan(volume, self.scheme, self.job, left_out=self.site)


SYNCS = [
    Sync(*row)
    for row in (
        ("file", "sync_directory < FileStore.__init__", "the store's name", "small", False),
        ("file", "sync_directory < FileStore._make", "a key's directory's name", "small", False),
        ("file", "write_durably < FileStore._link_next", "a record", "small", True),
        ("file", "FileStore._link_next", "a head's name", "small", True),
        (
            *("file", "write_durably < replace_file < FileStore._make"),
            *("what a key is called", "generations", True),
        ),
        (
            *("file", "sync_directory < replace_file < FileStore._make"),
            *("the name of that file", "generations", False),
        ),
        *(
            (scheme, site, of, job, found)
            for scheme in ("file", "sqlite")
            for site, of, job, found in (
                ("write_durably < replace_file < BlobFiles._put", "a blob", "large", True),
                ("sync_directory < replace_file < BlobFiles._put", "its name", "large", False),
                (
                    "sync_directory < BlobFiles._sync_above < BlobFiles._put",
                    *("the names above", "large", False),
                ),
                (
                    "GrowingFile.finish < BlobFiles._finish",
                    *("a blob written in chunks", "encrypted", True),
                ),
                (
                    "sync_directory < GrowingFile.finish < BlobFiles._finish",
                    *("its name", "encrypted", False),
                ),
                (
                    "sync_directory < BlobFiles._sync_above < BlobFiles._finish",
                    *("the names above", "encrypted", False),
                ),
            )
        ),
        ("sqlite", "fdatasync jobs.db-wal", "SQLite's log", "small", True),
        ("sqlite", "fdatasync jobs.db", "the database", "checkpointed", True),
        ("sqlite", "fdatasync jobs.db-journal", "the journal of its making", "small", False),
        ("sqlite", "fdatasync DIRECTORY", "the names of these files", "small", False),
    )
]
"""All syncs that the stores and SQLite make."""


def stops(plan: Plan) -> Iterator[int | None]:
    """Where to cut the power, from the end on: what a sync is for it has been for since."""
    yield None
    calls = len(plan.calls())
    yield from range(calls, 0, -max(1, calls // _MOST))


def finds(plan: Plan, at: Callable[[Plan], Iterator[int | None]] = stops) -> LostError | None:
    """The first loss; None if there is none."""
    for stop in at(plan):
        try:
            plan.cut(stop)
        except LostError as lost:
            return lost
    return None


def main() -> int:
    print(f"| sync | of what | {' | '.join(KINDS)} |")
    print(f"|---|---|{'---|' * len(KINDS)}")
    wrong = 0
    with ExitStack() as stack:
        volumes = [stack.enter_context(volume(kind)) for kind in KINDS]
        for sync in SYNCS:
            found = [finds(sync.plan(each)) is not None for each in volumes]
            wrong += found != [sync.found] * len(found)
            answers = " | ".join("yes" if each else "no" for each in found)
            print(f"| `{sync.scheme}:` `{sync.site}` | {sync.of} | {answers} |", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
