"""Whatever befalls the calls of a store, the guarantees hold; where they are broken it shows."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis.errors import FlakyFailure

import aiocheckpoint
from aiocheckpoint import CheckpointError, FencedError, _commits, _writer
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import FaultyStore

from ._faults import machines
from ._torture import Budget

FOUND = (AssertionError, CheckpointError, FlakyFailure)


def test_latest_wins_whatever_befalls_the_calls() -> None:
    counts = machines(Budget(cases=3, seed=7))
    assert counts["acknowledged"] > 50
    assert counts["fenced"] > 5
    for fault in ("refused", "lost", "late", "slow", "hangs", "hangs_after", "partial"):
        assert counts[fault] > 0, f"no call was {fault}"


def _flush_returns_when_a_commit_has_failed(patch: pytest.MonkeyPatch) -> None:
    retry = _writer.Writer._retry_later

    def told(self: Any, held: Any, error: Any) -> None:
        retry(self, held, error)
        for waiter in held.waiters:
            waiter.ended(None)
        held.waiters = []

    patch.setattr(_writer.Writer, "_retry_later", told)


def _a_lost_answer_is_taken_for_a_fence(patch: pytest.MonkeyPatch) -> None:
    async def reconcile(self: Any, held: Any) -> None:
        held.busy = False
        self._refused(held, FencedError("fenced, or so it seems"))

    patch.setattr(_writer.Writer, "_reconcile", reconcile)


def _a_failed_state_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def forget(self: Any, held: Any, error: Any) -> None:
        self.settled(held, held.version)

    patch.setattr(_writer.Writer, "_retry_later", forget)


def _nothing_is_collected(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_commits.Commits, "collect", lambda *args, **kwargs: None)


def _a_store_compares_nothing(patch: pytest.MonkeyPatch) -> None:
    replace = MemoryStore._replace

    def blind(self: MemoryStore, put: Any) -> Any:
        head = self._heads.get(put.key)
        return replace(self, put._replace(expect=head and head.version))

    patch.setattr(MemoryStore, "_replace", blind)


@pytest.mark.parametrize(
    "break_it",
    [
        _flush_returns_when_a_commit_has_failed,
        _a_lost_answer_is_taken_for_a_fence,
        _a_failed_state_is_forgotten,
        _nothing_is_collected,
        _a_store_compares_nothing,
    ],
)
def test_a_broken_guarantee_is_found(
    monkeypatch: pytest.MonkeyPatch, break_it: Callable[[pytest.MonkeyPatch], None]
) -> None:
    break_it(monkeypatch)
    with pytest.raises(FOUND):
        machines(Budget(cases=10, seed=7))


SIZE = 1_000_000


def _peak_of_an_outage(keep: Callable[[bytes], object]) -> int:
    """Bytes at most while a store takes nothing and a thousand states are written."""
    store = FaultyStore(MemoryStore())
    with aiocheckpoint.blocking.open(store, "k", spool=None, min_interval=0) as cp:
        begun: threading.Event = store.next_commit()
        with store.held():
            cp.write(bytes(SIZE))
            assert begun.wait(30)
            tracemalloc.start()
            try:
                for number in range(1_000):
                    data = number.to_bytes(8, "big") * (SIZE // 8)
                    keep(data)
                    cp.write(data)
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()


def test_memory_is_bounded_however_long_a_store_takes_nothing() -> None:
    """One state is on its way, one waits, one is being made."""
    assert _peak_of_an_outage(lambda data: None) < 4 * SIZE


def test_states_that_pile_up_are_found() -> None:
    pile: list[bytes] = []
    assert _peak_of_an_outage(pile.append) > 900 * SIZE
