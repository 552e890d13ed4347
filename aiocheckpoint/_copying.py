"""Copying keys from one store to another: what a record names first, then the record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from typing import Literal, NamedTuple

from . import _spool
from ._abreast import abreast, patiently
from ._calls import bounded, read_blob
from ._contents import Part, Stream, Tick, parts_of
from ._errors import (
    CodecError,
    ConflictError,
    CorruptCheckpointError,
    SealedError,
    StoreError,
    StoreUnavailableError,
)
from ._keys import store_name
from ._looking import Look, blobs_of, look_at, see
from ._records import Record
from .abc import Put, Store

Existing = Literal["refuse", "skip", "overwrite"]
"""What becomes of a key that is in the target with another record."""
Outcome = Literal["copied", "same", "skipped", "refused", "gone", "failed"]

_ROUNDS = 50
_PAUSE = 0.1
_AT_ONCE = 4


class Copied(NamedTuple):
    """What became of a key."""

    key: str
    outcome: Outcome
    why: str = ""
    """What is wrong, or was left out."""
    size: int = 0
    """Bytes of its blobs that were copied."""
    spooled: bool = False
    """True if this machine's spool has something of it, which may be newer than the source."""


async def copy(
    source: Store, target: Store, keys: AsyncIterable[str], existing: Existing, tick: Tick
) -> AsyncGenerator[Copied, None]:
    """Copy these keys, a few at a time; what became of each, in no order.

    Raises:
        SealedError: the source was opened without a keyring, and is encrypted.
        StoreUnavailableError: one of the stores does not answer.
    """

    async def one(key: str) -> Copied:
        try:
            copied = await copy_key(source, target, key, existing, tick)
            return copied._replace(spooled=await asyncio.to_thread(_is_spooled, source, key))
        except StoreUnavailableError:
            raise
        except StoreError as exc:  # such as a record that is too large for the target
            return Copied(key, "failed", str(exc))

    outcomes = abreast(keys, one, _AT_ONCE)
    async with aclosing(outcomes):
        async for outcome in outcomes:
            yield outcome


def _is_spooled(store: Store, key: str) -> bool:
    base = store.spool_dir
    return base is not None and bool(_spool.left_over(base / store_name(key)))


async def copy_key(
    source: Store, target: Store, key: str, existing: Existing, tick: Tick
) -> Copied:
    """Copy one key, with its generations, under the same names.

    What comes is one record with all that it names, whoever writes to the source meanwhile. It is
    done when the record is in the target; cut short before that, the target has blobs that nothing
    names, which the next try finds there.

    Raises:
        StoreError: one of the stores does not answer, or refuses for good.
    """
    copying = _Copying(source, target, key, existing, tick)
    damage = ""
    for _ in range(_ROUNDS):
        try:
            return await patiently(copying.run)
        except SealedError:
            raise
        except (CorruptCheckpointError, CodecError) as exc:
            if str(exc) == damage:  # as in read_head: damage is what is there twice
                return copying.ended("failed", damage)
            damage = str(exc)
        await asyncio.sleep(_PAUSE)
    return copying.ended("failed", "it changes faster than it can be read")


class _Copying:
    """One key on its way, in as many rounds as it takes."""

    def __init__(
        self, source: Store, target: Store, key: str, existing: Existing, tick: Tick
    ) -> None:
        self._source = source
        self._target = target
        self._key = key
        self._existing = existing
        self._tick = tick
        self._size = 0
        self._there = set[str]()
        """The blobs that the target has of it."""
        self._good = set[str]()
        """Those of them that we have put there, or read."""
        self._mine: bytes | None = None
        """The record that we have put there, as far as we know."""

    async def run(self) -> Copied:
        """One round. What is missing or damaged may have been collected since we looked.

        Raises:
            CorruptCheckpointError, CodecError: something is missing, damaged or of a later format.
            StoreError: one of the stores does not answer, or refuses for good.
        """
        key = self._key
        look = await look_at(self._source, key)
        if look is None:
            return self.ended("gone")
        old = await bounded(self._target.load(key), "load", key)
        # Listed between the reading and the commit, as by a claim: once that has succeeded, none
        # of them can be of anybody who came after.
        before = await bounded(self._target.list_blobs(key), "list_blobs", key)
        self._there = set(before)
        same = old is not None and old.record == look.frame
        if same and look.named <= self._there:
            return self.ended("same" if self._mine is None else "copied")
        if old is not None and not same and old.record != self._mine:
            if self._existing == "skip":
                return self.ended("skipped")
            if self._existing == "refuse":
                return self.ended("refused", "it is there already, and differs")
        record = look.head.record
        if record is None:
            raise (CodecError if look.head.later else CorruptCheckpointError)(look.head.fault)
        await self._put_blobs(record)
        if not same:
            self._mine = look.frame
            try:
                await self._commit(Put(key, None if old is None else old.version, look.frame))
            except ConflictError:
                return self.ended("failed", "somebody wrote to it in the target meanwhile")
            if superseded := sorted(set(before) - look.named):
                await bounded(self._target.delete_blobs(key, superseded), "delete_blobs", key)
            # nothing named them before: somebody may have collected them
            self._there = set(await bounded(self._target.list_blobs(key), "list_blobs", key))
            await self._put_blobs(record)
        # only now: under another record they would stand in for it, before its own
        return self.ended("copied", await self._put_generations(look))

    def ended(self, outcome: Outcome, why: str = "") -> Copied:
        return Copied(self._key, outcome, why, self._size)

    async def _commit(self, put: Put) -> None:
        answers = await bounded(
            self._target.commit([put]), "commit", self._key, size=len(put.record)
        )
        if isinstance(answers[0], StoreError):
            raise answers[0]

    async def _put_generations(self, look: Look) -> str:
        """Copy those that are whole; what was left out."""
        left_out = []
        for name, seen in look.generations:
            try:
                if seen.record is None:
                    raise CorruptCheckpointError(seen.fault)
                await self._put_blobs(seen.record)
                if await self._has_generation(name, seen.record):
                    continue
                frame = await read_blob(self._source, self._key, name, seen.size)
                if see(self._key, frame).record != seen.record:
                    raise CorruptCheckpointError(f"{name} cannot be read twice")
            except FileNotFoundError:
                continue  # collected since
            except (CorruptCheckpointError, CodecError) as exc:
                names = await bounded(self._source.list_blobs(self._key), "list_blobs", self._key)
                if name in names:
                    left_out.append(f"a generation was left out ({exc})")
                continue
            await self._put(name, frame)
        return "; ".join(left_out)

    async def _put_blobs(self, record: Record) -> None:
        if blobs_of(record) <= self._there & self._good:
            return
        parts = await parts_of(self._source, self._key, record)
        for part in parts.values():
            if not await self._has(part):
                await self._stream(part)

    async def _has(self, part: Part) -> bool:
        """Whether the target has this blob. One that we have not put there may be damaged, in
        clear, or encrypted under another key: it is read."""
        if part.name not in self._there:
            return False
        if part.name not in self._good:
            stream = Stream(self._target, self._key, part, lambda _: None)
            if not part.known or await stream.read() is not None:
                return False
            self._good.add(part.name)
        return True

    async def _has_generation(self, name: str, record: Record) -> bool:
        if name in self._there - self._good:
            try:
                frame = await read_blob(self._target, self._key, name, 0)
                if see(self._key, frame).record != record:
                    return False
            except (FileNotFoundError, CorruptCheckpointError, CodecError):
                return False
            self._good.add(name)
        return name in self._there

    async def _stream(self, part: Part) -> None:
        stream = Stream(self._source, self._key, part, self._count)
        async with aclosing(stream.chunks()) as chunks:
            put = self._target.put_blob(self._key, part.name, chunks)
            try:
                await bounded(put, "put_blob", self._key, size=part.size or 0)
            except StoreError as exc:
                if stream.fault is not None:  # not the target's
                    what = f"{part.what} of {self._key!r} {stream.fault}: {part.name}"
                    raise CorruptCheckpointError(what) from exc
                raise
        self._now_there(part.name)

    async def _put(self, name: str, data: bytes) -> None:
        put = self._target.put_blob(self._key, name, data)
        await bounded(put, "put_blob", self._key, size=len(data))
        self._now_there(name)
        self._count(len(data))

    def _now_there(self, name: str) -> None:
        self._there.add(name)
        self._good.add(name)

    def _count(self, size: int) -> None:
        self._size += size
        self._tick(size)
