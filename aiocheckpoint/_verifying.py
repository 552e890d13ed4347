"""Verifying: every record, state, list and pack of a key is read and compared with its digests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import NamedTuple

from msgspec.structs import replace

from ._abreast import abreast, patiently
from ._contents import Part, Stream, Tick, parts_of
from ._errors import CodecError, CorruptCheckpointError, StoreError, StoreUnavailableError
from ._looking import Look, look_at
from ._records import Record
from .abc import Store

HEAD, STORE = "head", "store"
_ROUNDS = 50
_PAUSE = 0.1  # seconds between two looks: what is being collected is gone by then
_AT_ONCE = 4


class Damage(NamedTuple):
    """Something of a key that cannot be used. `where` is `head`, the name of a blob, or `store`
    if that refuses to read it."""

    where: str
    what: str


class Report(NamedTuple):
    """What was found under a key."""

    key: str
    damage: list[Damage]
    records: int
    """Good ones: the head, and generations."""
    blobs: int
    """Good ones."""
    size: int
    """Bytes that were read."""
    unnamed: list[str]
    """Blobs that nothing names: left over, or on their way to be named."""


async def verify(store: Store, prefix: str, tick: Tick) -> AsyncGenerator[Report, None]:
    """A report of each key that starts so, in no order.

    Raises:
        StoreUnavailableError: the store does not answer.
    """

    async def one(key: str) -> Report | None:
        try:
            return await patiently(lambda: verify_key(store, key, tick))
        except StoreUnavailableError:
            raise
        except StoreError as exc:  # such as a file that this user may not read
            return Report(key, [Damage(STORE, str(exc))], 0, 0, 0, [])

    reports = abreast(store.keys(prefix), one, _AT_ONCE)
    try:
        async for report in reports:
            if report is not None:
                yield report
    finally:
        await reports.aclose()


async def verify_key(store: Store, key: str, tick: Tick) -> Report | None:
    """Read all that a key is made of; None if it has no head (any more).

    Somebody may write to it meanwhile, and collect what we are about to read. Blobs never change,
    so what was good once need not be read again, and damage is what is still named, and still
    bad, at the next look.

    Raises:
        StoreError: it cannot be read.
    """
    verifying = _Verifying(store, key, tick)
    suspects = frozenset[str]()
    for _ in range(_ROUNDS):
        look = await look_at(store, key)
        if look is None:
            return None
        damage = await verifying.check(look)
        if all(one.where in suspects for one in damage):
            return verifying.report(look, damage)
        suspects = frozenset(one.where for one in damage)
        await asyncio.sleep(_PAUSE)
    raise StoreError("the key changes faster than it can be read", op="load", key=key)


class _Verifying:
    """One key, over several looks."""

    def __init__(self, store: Store, key: str, tick: Tick) -> None:
        self._store = store
        self._key = key
        self._tick = tick
        self._good = set[str]()
        self._size = 0

    async def check(self, look: Look) -> list[Damage]:
        """What is bad of what this look names."""
        self._size += len(look.frame)
        faults: dict[str, str] = {}
        if look.head.fault is not None:
            faults[HEAD] = look.head.fault
        for generation in look.generations:
            if generation.seen.fault is not None:
                faults[generation.name] = f"a generation cannot be used: {generation.seen.fault}"
        parts: dict[str, Part] = {}
        for record in look.records:
            await self._gather(record, parts, faults)
        for name, part in parts.items():
            if name in self._good or name in faults:
                continue
            if fault := await Stream(self._store, self._key, part, self._count).read():
                faults[name] = f"{part.what} {fault}"
            else:
                self._good.add(name)
        return [Damage(where, what) for where, what in faults.items()]

    def report(self, look: Look, damage: list[Damage]) -> Report:
        bad = {one.where for one in damage}
        records = [HEAD, *(generation.name for generation in look.generations)]
        return Report(
            self._key,
            damage,
            records=sum(name not in bad for name in records),
            blobs=len(self._good),
            size=self._size,
            unnamed=sorted(look.before - look.named),
        )

    async def _gather(self, record: Record, parts: dict[str, Part], faults: dict[str, str]) -> None:
        """Enter the blobs of a record; what two records share, once."""
        try:
            named = await parts_of(self._store, self._key, record)
        except (CorruptCheckpointError, CodecError) as exc:
            assert record.files is not None
            faults[record.files.manifest.name] = str(exc)
            named = await parts_of(self._store, self._key, replace(record, files=None))
        for name, part in named.items():
            parts[name] = part.joined(parts[name]) if name in parts else part

    def _count(self, size: int) -> None:
        self._size += size
        self._tick(size)
