"""A machine of handles on a store with faults, beside a model that is a few numbers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from aiocheckpoint import Checkpointer, FencedError, Runtime
from aiocheckpoint._errors import StoreError, StoreUnavailableError
from aiocheckpoint.stores.memory import MemoryStore

from ._faulted import Fault, FaultedStore, impatient
from ._torture import Budget, Case, Counts
from ._victim import numbers_of, state

T = TypeVar("T")

COUNTS = Counts()
"""Of all machines so far."""

_SITES = st.sampled_from((0, 1))
_KEYS = st.sampled_from(("a", "b", "c"))
_SIZES = st.sampled_from((30, 500, 5_000))


@dataclass
class _Handle:
    cp: Checkpointer[bytes]
    block: AbstractAsyncContextManager[Checkpointer[bytes]]
    staged: int
    """The number of its newest state."""
    size: int = 0


@dataclass
class _Key:
    """All that the model knows of a key."""

    acknowledged: int = 0
    """No older state may be found any more."""
    written: set[int] = field(default_factory=set)
    """The states that may be found: of whoever owned the key when he wrote them."""
    owner: int | None = None
    """Whose claim is the newest; None if it may be anybody's."""


class Faults(RuleBasedStateMachine):
    """Two runtimes claim keys from each other, write and flush, on a store that does as it is told.

    The numbers of the states rise, whoever writes them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.memory = MemoryStore()
        self.store = FaultedStore(self.memory)
        self.numbers = itertools.count(1)
        self.keys = {key: _Key() for key in "abc"}
        self.handles: dict[tuple[int, str], _Handle] = {}
        self.runtimes = [self._runtime(), self._runtime()]
        for runtime in self.runtimes:
            self._run(runtime.__aenter__())
        COUNTS["machines"] += 1

    def _runtime(self) -> Runtime:
        return Runtime(self.store, spool=None, min_interval=0, flush_timeout=20)

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        COUNTS["calls"] += 1
        return self.runner.run(call)

    @property
    def _forbidden(self) -> bool:
        return self.store.met[Fault.FORBIDDEN.name] > 0

    def _promised(self, error: StoreError, site: int, key: str) -> None:
        """Anything but what the guarantees say of errors is one too many."""
        if isinstance(error, StoreUnavailableError) or not self._forbidden:
            raise error
        COUNTS["forbidden"] += 1

    def _fenced(self, site: int, key: str, error: FencedError) -> None:
        if self.keys[key].owner == site:
            raise error
        COUNTS["fenced"] += 1

    def _acknowledged(self, site: int, key: str) -> None:
        """What this handle staged last counts as stored."""
        model, handle = self.keys[key], self.handles[site, key]
        COUNTS["acknowledged"] += 1
        if model.owner not in (site, None):  # fenced: it was stored before that, and found
            assert handle.staged <= model.acknowledged, "a fenced handle has stored something"
            return
        assert handle.staged >= model.acknowledged
        model.acknowledged = handle.staged

    def _found(self, key: str, data: bytes | None) -> int:
        number = numbers_of(data)[0] if data else 0
        model = self.keys[key]
        assert number >= model.acknowledged, f"lost: {number} found, {model.acknowledged} stored"
        assert number == 0 or number in model.written, f"{number} was written by a fenced handle"
        return number

    @rule(faults=st.lists(st.sampled_from(Fault), min_size=1, max_size=6))
    def trouble(self, faults: list[Fault]) -> None:
        self.store.plan.extend(faults)

    @rule(site=_SITES, key=_KEYS)
    def opens(self, site: int, key: str) -> None:
        if (site, key) in self.handles:
            return
        block = self.runtimes[site].open(key, type=bytes)
        model = self.keys[key]
        model.owner = None
        try:
            cp = self._run(block.__aenter__())
        except StoreError as error:
            self._promised(error, site, key)
            return
        number = self._found(key, self._run(cp.read()))
        model.owner = site
        model.acknowledged = number  # a claim commits what it carries on
        self.handles[site, key] = _Handle(cp, block, number)
        COUNTS["openings"] += 1

    @rule(site=_SITES, key=_KEYS, size=_SIZES, times=st.integers(1, 4))
    def writes(self, site: int, key: str, size: int, times: int) -> None:
        if (handle := self.handles.get((site, key))) is None:
            return
        for _ in range(times):
            number = next(self.numbers)
            if self.keys[key].owner in (site, None):
                self.keys[key].written.add(number)
            handle.staged, handle.size = number, size
            COUNTS["writes"] += 1
            try:
                self._run(handle.cp.write(state(number, 0, size)))
            except FencedError as error:
                self._fenced(site, key, error)
                return
            except StoreError as error:
                self._promised(error, site, key)

    @rule(site=_SITES, key=_KEYS)
    def flushes(self, site: int, key: str) -> None:
        if (handle := self.handles.get((site, key))) is None:
            return
        try:
            self._run(handle.cp.flush())
        except FencedError as error:
            self._fenced(site, key, error)
        except StoreError as error:
            self._promised(error, site, key)
        else:
            self._acknowledged(site, key)

    @rule(site=_SITES, key=_KEYS)
    def leaves(self, site: int, key: str) -> None:
        if (handle := self.handles.get((site, key))) is None:
            return
        try:
            self._run(handle.block.__aexit__(None, None, None))
        except FencedError as error:
            self._fenced(site, key, error)
        except StoreError as error:
            self._promised(error, site, key)
        else:
            if self.keys[key].owner == site:
                self._acknowledged(site, key)
        finally:
            del self.handles[site, key]

    @rule(site=_SITES, key=_KEYS)
    def looks(self, site: int, key: str) -> None:
        try:
            found = self._run(self.runtimes[site].latest(key))
        except StoreError:
            return  # it says so at once, and tries nothing again
        model = self.keys[key]
        number = self._found(key, found.payload if found else None)
        if model.owner is not None:
            model.acknowledged = number  # it was seen, and must not go back
        COUNTS["looks"] += 1

    @rule()
    def heals(self) -> None:
        """All is well again: then all that is staged gets stored, with nobody doing anything."""
        self.store.plan.clear()
        for (site, key), handle in self.handles.items():
            if self.keys[key].owner != site:
                continue
            with suppress(StoreError):  # what was refused for good is told once
                self._run(handle.cp.flush())
            if not self._forbidden:
                self._run(handle.cp.flush())
                self._acknowledged(site, key)

    @invariant()
    def commits_of_a_key_come_one_by_one(self) -> None:
        assert self.store.most_under_way <= 2, "one by each runtime"

    def teardown(self) -> None:
        try:
            self.store.plan.clear()
            self._run(self.store.settle())
            for site, key in list(self.handles):
                self.leaves(site, key)
            for runtime in self.runtimes:
                self._run(runtime.__aexit__(None, None, None))
            self._run(self._afterwards())
            for name, count in self.store.met.items():
                COUNTS[name.lower()] += count
        finally:
            self.runner.close()

    async def _afterwards(self) -> None:
        """A new process finds what counts as stored, and after its claim nothing lies about."""
        async with Runtime(self.memory, spool=None) as runtime:
            for key in self.keys:
                if self.keys[key].written or self.keys[key].owner is not None:
                    async with runtime.open(key, type=bytes) as cp:
                        data = await cp.read()
                        self._found(key, data)
                    left = await self.memory.list_blobs(key)
                    large = data is not None and len(data) > 2_000
                    assert len(left) == large, f"blobs that no record names: {left}"


def machines(budget: Budget) -> Counts:
    """One case is twenty machines of up to forty steps each."""

    def one(case: Case) -> Counts:
        COUNTS.clear()
        chosen = settings(
            max_examples=20,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=False,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        seeded = type("Faults", (Faults,), {})
        seed(case.random().getrandbits(64))(seeded)
        with impatient():
            run_state_machine_as_test(seeded, settings=chosen)
        return Counts(COUNTS)

    return budget.each(one)
