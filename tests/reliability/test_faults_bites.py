"""What the state machine of store faults looks for, it finds: one flaw after the other, put in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aiocheckpoint import Checkpointer, _calls
from aiocheckpoint._commits import Commit
from aiocheckpoint._errors import CheckpointError, FencedError, StoreError, StoreUnavailableError
from aiocheckpoint._exit import Exit
from aiocheckpoint._held import Held
from aiocheckpoint._ledger import Ledger
from aiocheckpoint._records import Record
from aiocheckpoint._writer import Writer
from aiocheckpoint.abc import Put, Version

from ._faulted import FaultedStore
from ._faults import explore
from ._torture import Budget

Patch = pytest.MonkeyPatch


def _forgets_after_a_failure(patch: Patch) -> None:
    sound = Writer._retry_later

    def forgetting(self: Writer, held: Held, error: StoreUnavailableError) -> None:
        sound(self, held, error)
        held.slot.stored = held.taken.seq

    patch.setattr(Writer, "_retry_later", forgetting)


def _acknowledges_what_had_no_answer(patch: Patch) -> None:
    sound = Writer.settled

    def trusting(self: Writer, held: Held, outcome: Version | StoreError) -> None:
        lost = isinstance(outcome, StoreUnavailableError)
        sound(self, held, held.version if lost else outcome)

    patch.setattr(Writer, "settled", trusting)


def _stores_the_older_state_at_a_retry(patch: Patch) -> None:
    sound = Writer._compose
    before: dict[Held, bytes] = {}

    def stale(self: Writer, held: Held) -> Commit | None:
        commit = sound(self, held)
        if commit is not None:
            if held.failures == 0:
                before[held] = commit[0].record
            return Put(held.slot.key, held.version, before.get(held, commit[0].record)), held
        return None

    patch.setattr(Writer, "_compose", stale)


def _keeps_every_state(patch: Patch) -> None:
    sound = Held.next_record
    kept: list[object] = []

    def keeping(self: Held, staged: Any, meta: Any) -> Any:
        kept.append(staged)
        return sound(self, staged, meta)

    patch.setattr(Held, "next_record", keeping)


def _is_never_fenced(patch: Patch) -> None:
    sound = Held.fenced_by

    def unless_deleted(self: Held, theirs: Record | None) -> FencedError | None:
        return sound(self, theirs) if theirs is None else None

    patch.setattr(Held, "fenced_by", unless_deleted)


def _leaves_blobs(patch: Patch) -> None:
    patch.setattr(Ledger, "adopt", lambda *_: [])


def _collects_after_a_failure(patch: Patch) -> None:
    sound = Writer._retry_later

    def tidy(self: Writer, held: Held, error: StoreUnavailableError) -> None:
        sound(self, held, error)
        if held.record.blob is not None and isinstance(self.store, FaultedStore):
            well = self.store.store
            self.commits.start(well.delete_blobs(held.slot.key, [held.record.blob.name]))

    patch.setattr(Writer, "_retry_later", tidy)


def _retries_what_was_forbidden(patch: Patch) -> None:
    sound = Writer._refused

    def stubborn(self: Writer, held: Held, error: CheckpointError) -> None:
        if isinstance(error, StoreError):
            self._retry_later(held, StoreUnavailableError("?", op="commit"))
        else:
            sound(self, held, error)

    patch.setattr(Writer, "_refused", stubborn)


def _waits_in_write(patch: Patch) -> None:
    sound = Checkpointer.write

    async def waiting(self: Checkpointer[bytes], state: bytes) -> int:
        seq = await sound(self, state)
        if self.statistics().errors:
            await self.flush()
        return seq

    patch.setattr(Checkpointer, "write", waiting)


def _gives_up(patch: Patch) -> None:
    patch.setattr(Writer, "_retry_later", lambda *_: None)


def _waits_for_ever(patch: Patch) -> None:
    patch.setattr(_calls, "OP_TIMEOUT", 1e9)


def _leaves_in_silence(patch: Patch) -> None:
    patch.setattr(Exit, "_failure", lambda *_: None)


@pytest.mark.parametrize(
    ("flaw", "said"),
    [
        (_forgets_after_a_failure, "backwards|not stored"),
        (_acknowledges_what_had_no_answer, "backwards|newer claim has not found"),
        (_stores_the_older_state_at_a_retry, "backwards"),
        (_keeps_every_state, "states are held"),
        (_is_never_fenced, "newer claim|nobody|which is not of"),
        (_leaves_blobs, "blobs are left"),
        (_collects_after_a_failure, "Corrupt|backwards"),
        (_retries_what_was_forbidden, "did not tell|refuses for good"),
        (_waits_in_write, "has waited|nobody has promised"),
        (_gives_up, "newest of .* is not stored"),
        (_waits_for_ever, "it hangs|is not stored"),
        (_leaves_in_silence, "backwards|newer claim has not found"),
    ],
)
def test_a_flaw_is_found(flaw: Callable[[Patch], None], said: str, monkeypatch: Patch) -> None:
    flaw(monkeypatch)
    with pytest.raises(AssertionError, match=said):
        Budget(cases=40, seed=1).each(lambda case: explore(case, shrink=False))
