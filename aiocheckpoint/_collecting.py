"""Collecting from outside: finished keys that are old, and blobs that nothing will ever name.

A collector claims nothing and knows no writer. What it may take follows from names alone, and from
the order in which it looked: blobs first, then the head, then generations. docs/ has the proof.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import NamedTuple

from ._looking import Look
from ._records import Record, Status
from .abc import Version

_STATE = re.compile(r"state-([0-9a-f]{32})-(\d+)-\d+")
_FILES = re.compile(r"(?:pack|tree)-([0-9a-f]{32})-(\d+)\.[0-9a-f]+")


class Finished(NamedTuple):
    """A key whose run has ended, as it was when we looked."""

    key: str
    version: Version
    status: Status
    created: float


class Leftovers(NamedTuple):
    """The blobs of a key that nothing names."""

    key: str
    removable: list[str]
    """Nothing ever will."""
    doubtful: list[str]
    """Something may, or we cannot tell."""


def finished(look: Look, statuses: Container[str], before: float) -> Finished | None:
    """The key, if its run ended so, and it was not written to since then."""
    record = look.head.record
    if record is None or record.status == "running" or record.status not in statuses:
        return None
    if record.created > before:
        return None
    return Finished(look.key, look.version, record.status, record.created)


def leftovers(look: Look, before: float) -> Leftovers:
    """What lies under a key that nothing names. Of files only if the run has ended and nobody has
    written since `before`."""
    unnamed = look.before - look.named
    record = look.head.record
    if record is None:
        return Leftovers(look.key, [], sorted(unnamed))
    removable = {name for name in unnamed if _past_state(name, record)}
    files = {name for name in unnamed if name.startswith(("pack-", "tree-"))}
    at_rest = record.status != "running" and record.created <= before
    readable = all(generation.seen.record is not None for generation in look.generations)
    # all or none: one that is still to be named may have been built upon others
    if at_rest and readable and all(_past_files(name, record) for name in files):
        removable |= files
    return Leftovers(look.key, sorted(removable), sorted(unnamed - removable))


def _past_state(name: str, record: Record) -> bool:
    """A later record of a claim names the state of the one before it, or a new one: once the head
    is at commit n and does not name it, no later one of the same claim does.

    Of another claim: what it put after its first commit shows that it had the key before, and
    as the head is not its own, it has lost it since. What it put for its first commit may be that
    of a claim which is just being made.
    """
    match = _STATE.fullmatch(name)
    if match is None:
        return False
    commit = int(match[2])
    if match[1] == record.claim.hex():
        return commit <= record.commit
    return commit > 1


def _past_files(name: str, record: Record) -> bool:
    """Files are put by who has the key, and by a claimant for what was moved into the spool by the
    head's claim, or by the one whose state it carries on; those have higher numbers than the
    files of the head."""
    match = _FILES.fullmatch(name)
    if match is None:
        return False
    claim, number = match[1], int(match[2])
    if claim not in (record.claim.hex(), record.origin.hex()):
        return True
    newest, _, last = ("" if record.files is None else record.files.id).rpartition("-")
    return newest == claim and last.isdecimal() and number <= int(last)
