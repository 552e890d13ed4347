"""Collecting from outside: finished keys that are old, and blobs that nothing will ever name.

A collector claims nothing and knows no writer. What it may take follows from names alone, and from
the order in which it looked: blobs first, then the head, then generations. docs/ has the proof.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from contextlib import aclosing
from typing import NamedTuple

from ._abreast import abreast, patiently
from ._calls import bounded
from ._deleting import delete_with_spool
from ._errors import ConflictError
from ._looking import Look, look_at
from ._records import Record, Status
from .abc import Store, Version

_AT_ONCE = 8

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


class Plan(NamedTuple):
    """What a collector would take."""

    keys: list[Finished]
    blobs: list[Leftovers]
    """Of keys that stay, where there is something to take."""
    doubtful: int
    """How many unnamed blobs are left."""
    damaged: list[str]
    """What is wrong with records that cannot be read; their keys are left alone."""

    @property
    def blob_count(self) -> int:
        """The blobs to take."""
        return sum(len(left.removable) for left in self.blobs)


async def plan(
    store: Store,
    prefix: str,
    statuses: Container[str],
    *,
    old: float | None,
    at_rest: float,
    tick: Callable[[], object],
) -> Plan:
    """Look at all keys that start so. Finished ones are taken that were not written to since
    `old` (None: none), and files that finished ones have left which were not since `at_rest`.

    Raises:
        StoreError: the store cannot be read.
    """

    async def one(key: str) -> Look | None:
        return await patiently(lambda: look_at(store, key))

    made = Plan([], [], 0, [])
    async with aclosing(abreast(store.keys(prefix), one, _AT_ONCE)) as looks:
        async for look in looks:
            tick()
            if look is None:
                continue
            if look.head.fault is not None:
                made.damaged.append(look.head.fault)
            if old is not None and (found := finished(look, statuses, old)):
                made.keys.append(found)
                continue
            left = leftovers(look, at_rest)
            made = made._replace(doubtful=made.doubtful + len(left.doubtful))
            if left.removable:
                made.blobs.append(left)
    made.keys.sort()
    made.blobs.sort()
    return made


async def carry_out(store: Store, planned: Plan, tick: Callable[[], object]) -> list[str]:
    """Take what was planned, however long ago; the keys that stay, as they were written to since.

    Raises:
        StoreError: the store cannot be written.
    """
    stay = []
    for old in planned.keys:
        tick()
        try:
            await delete_with_spool(store, old.key, old.version, store.spool_dir)
        except ConflictError:
            stay.append(old.key)
    for left in planned.blobs:
        tick()
        await bounded(store.delete_blobs(left.key, left.removable), "delete_blobs", left.key)
    return stay


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
