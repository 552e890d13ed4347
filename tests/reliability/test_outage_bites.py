"""Guarantees broken on purpose, which the outages must find."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest

from aiocheckpoint import _commits, _writer
from aiocheckpoint._commits import Commits
from aiocheckpoint._errors import (
    CorruptCheckpointError,
    FencedError,
    StoreError,
    StoreUnavailableError,
)
from aiocheckpoint._writer import Writer
from aiocheckpoint.abc import Put, Store, Version
from aiocheckpoint.stores import _postgres_blobs, postgres
from aiocheckpoint.testing import Wrapper

from ._outage_keys import Broken
from ._outage_postgresql import postgresql
from ._outage_redis import redis
from ._outage_s3 import objects
from ._outage_setting import Service
from ._outage_storm import outage


class FailsSoftly(Wrapper):
    """Gives every failed commit to `failed`, whose answer counts."""

    def failed(self, put: Put, error: StoreError) -> Version | StoreError:
        return error

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        try:
            outcomes = await self.store.commit(batch)
        except StoreUnavailableError as exc:
            outcomes = [exc] * len(batch)
        return [
            self.failed(put, outcome) if isinstance(outcome, StoreUnavailableError) else outcome
            for put, outcome in zip(batch, outcomes, strict=True)
        ]


class AcknowledgesFailures(FailsSoftly):
    """Takes an answer for a good one, whatever it says."""

    def failed(self, put: Put, error: StoreError) -> Version | StoreError:
        return error if put.expect is None else put.expect


class TakesOutagesForLasting(FailsSoftly):
    """Calls a passing error a lasting one."""

    def failed(self, put: Put, error: StoreError) -> Version | StoreError:
        return StoreError("refused", op="commit", key=put.key)


class StoresOlder(FailsSoftly):
    """Tries again what has failed, and not what is newest by then."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._kept: dict[str, Put] = {}

    def failed(self, put: Put, error: StoreError) -> Version | StoreError:
        self._kept[put.key] = put
        return error

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        older = [put._replace(record=self._kept.pop(put.key, put).record) for put in batch]
        return await super().commit(older)


HALF_OF_S3 = partial(objects, "s3", [0.5])


def found(
    kind: type[BaseException] | tuple[type[BaseException], ...],
    service: Callable[[], AbstractContextManager[Service]] = HALF_OF_S3,
    flaw: Callable[[Store], Store] = lambda store: store,
    troubles: int = 6,
) -> BaseException:
    """What comes of storms with a flaw, the first time that something does."""
    for seed in range(20):
        with service() as ill:
            try:
                outage(ill, random.Random(seed), lives=1, troubles=troubles, flaw=flaw)
            except kind as exc:
                return exc
    raise AssertionError("it was not found")


@pytest.mark.parametrize(
    "service", [HALF_OF_S3, redis, postgresql], ids=["s3", "redis", "postgresql"]
)
@pytest.mark.parametrize("flaw", [AcknowledgesFailures, StoresOlder])
def test_a_state_that_was_acknowledged_and_is_not_there_is_found(
    flaw: type[Wrapper], service: Callable[[], AbstractContextManager[Service]]
) -> None:
    assert "promised" in str(found(Broken, service, flaw))


def test_a_redis_that_keeps_nothing_is_found() -> None:
    """What the documentation asks of the server is needed. Whose key is gone is fenced."""
    found((Broken, FencedError), partial(redis, "--appendonly", "no"))


def test_a_postgresql_that_does_not_wait_for_its_disk_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (_postgres_blobs, postgres):
        monkeypatch.setattr(module, "DURABLY", "SELECT 1 WHERE false")
    assert "promised" in str(found(Broken, postgresql))


def test_an_error_that_was_not_promised_is_found() -> None:
    assert type(found(StoreError, flaw=TakesOutagesForLasting)) is StoreError


def test_a_writer_that_gives_up_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    retry_later = Writer._retry_later

    def gives_up(self: Writer, held: Any, error: StoreUnavailableError) -> None:
        if held.failures < 2:
            retry_later(self, held, error)
        else:
            held.slot.stored = held.taken.seq
            self._tell(held)

    monkeypatch.setattr(Writer, "_retry_later", gives_up)
    found(Broken, partial(objects, "s3", [1.0]))


def test_a_writer_that_keeps_what_was_replaced_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    compose, kept = Writer._compose, []

    def hoarding(self: Writer, held: Any) -> Any:
        kept.append(held.slot.newest())
        return compose(self, held)

    monkeypatch.setattr(Writer, "_compose", hoarding)
    assert "alive" in str(found(Broken))


def test_a_blob_that_is_deleted_after_a_lost_answer_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed = Writer._failed

    def deleting(self: Writer, held: Any, error: StoreError) -> None:
        if held.record.blob is not None:
            self.commits.collect(held.slot.key, [held.record.blob.name])
        failed(self, held, error)

    monkeypatch.setattr(Writer, "_failed", deleting)
    for module in (_commits, _writer):  # so that blobs are not rare
        monkeypatch.setattr(module, "INLINE_LIMIT", 20)
    found(CorruptCheckpointError)


def test_blobs_that_nobody_collects_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Commits, "collect", lambda self, key, names, left=None: None)
    assert "nothing names" in str(found(Broken, troubles=1))
