"""Two runtimes on a store with faults, against a plain model: a state machine of Hypothesis."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable, Coroutine
from typing import ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aiocheckpoint._errors import StoreError, StoreUnavailableError

from ._latest import NOTHING, Broken, Pair
from ._plan import Fault, few, outages, plans
from ._sides import FLUSH, KEYS, LARGE, Handle, Sides
from ._torture import Case, Counts
from ._victim import numbers_of

sides = st.sampled_from([0, 1])
keys = st.sampled_from(KEYS)
which = st.integers(0, 2 * len(KEYS) - 1)
"""Of the handles that are open, by their place."""
sizes = st.sampled_from([20, 20, 5_000, LARGE])
patiences = st.sampled_from([None, None, None, 0.0, 0.05, 1.0, 10.0])
"""Seconds after which a call is cancelled."""
Plan = list[Fault]
Step = Callable[[Handle], Coroutine[object, object, None]]


class Faults(RuleBasedStateMachine):
    """What is done to two keys, from two sides. A rule may take as long as it likes: no time."""

    counts: ClassVar[Counts] = Counts()

    def __init__(self) -> None:
        super().__init__()
        self.all = Sides(self.counts)

    def with_handle(self, which: int, plan: Plan, step: Step) -> None:
        handles = self.all.handles
        handle = handles[sorted(handles)[which % len(handles)]]
        self.all.stores[handle.side].plan.extend(plan)
        self.counts["steps"] += 1
        self.all.run(step(handle))

    @initialize(
        keep=st.sampled_from([1, 1, 2]),
        transactional=st.booleans(),
        min_interval=st.sampled_from([0.0, 0.1, 5.0]),
    )
    def begin(self, keep: int, transactional: bool, min_interval: float) -> None:
        self.all.keep = keep
        self.all.base.transactional = transactional
        self.all.base.min_interval = min_interval
        self.all.runtimes = [self.all.run(self.all.enter(side)) for side in (0, 1)]
        for key in KEYS:
            self.open(0, key, [], None)

    # What goes wrong, and that it is over.

    @rule(side=sides, plan=plans)
    def trouble(self, side: int, plan: Plan) -> None:
        self.all.stores[side].plan.extend(plan)

    @rule(side=sides, fault=outages)
    def outage(self, side: int, fault: Fault) -> None:
        self.all.stores[side].always = fault

    @rule()
    def heal(self) -> None:
        self.all.run(self.all.heal())

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.3, 3.0, 31.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.all.run(asyncio.sleep(seconds))

    # What is done.

    @precondition(lambda self: len(self.all.handles) < 2 * len(KEYS))
    @rule(side=sides, key=keys, plan=few, patience=patiences)
    def open(self, side: int, key: str, plan: Plan, patience: float | None) -> None:
        self.all.stores[side].plan.extend(plan)

        async def step() -> None:
            if (side, key) not in self.all.handles and (
                handle := await self.all.open_one(side, key, patience)
            ):
                await self.all.claimed(key, handle)

        self.all.run(step())

    @precondition(lambda self: len(self.all.handles) < 2 * len(KEYS) - 1)
    @rule(key=keys)
    def race(self, key: str) -> None:
        """Both sides open a key at once; who comes second by the epoch is the winner."""

        async def step() -> None:
            if any((side, key) in self.all.handles for side in (0, 1)):
                return
            opening = (self.all.open_one(side, key, None) for side in (0, 1))
            opened = [one for one in await asyncio.gather(*opening) if one]
            attempts = self.all.keys[key].attempts
            for handle in sorted(opened, key=lambda one: one.cp.epoch):
                await self.all.claimed(key, handle)
                handle.claim.attempts = attempts - 1  # the other's may have come later

        self.all.run(step())

    @precondition(lambda self: self.all.handles)
    @rule(
        which=which,
        plan=few,
        size=sizes,
        times=st.sampled_from([1, 1, 3, 20]),
        pause=st.sampled_from([None, 0.0, 0.001, 0.05, 0.2]),
    )
    def write(self, which: int, plan: Plan, size: int, times: int, pause: float | None) -> None:
        async def step(handle: Handle) -> None:
            for _ in range(times):
                await self.all.write(handle, size)
                if pause is not None:
                    await asyncio.sleep(pause)

        self.with_handle(which, plan, step)

    @precondition(lambda self: self.all.handles)
    @rule(
        which=which, plan=few, patience=patiences, size=sizes, times=st.sampled_from([1, 1, 0, 2])
    )
    def flush(self, which: int, plan: Plan, patience: float | None, size: int, times: int) -> None:
        async def step(handle: Handle) -> None:
            for _ in range(times):
                await self.all.write(handle, size)
            await self.all.flush(handle, patience)

        self.with_handle(which, plan, step)

    @precondition(lambda self: self.all.handles)
    @rule(which=which, plan=few, patience=patiences, failing=st.booleans())
    def leave(self, which: int, plan: Plan, patience: float | None, failing: bool) -> None:
        async def step(handle: Handle) -> None:
            await self.all.leave(handle, patience, failing=failing)

        self.with_handle(which, plan, step)

    @precondition(lambda self: self.all.handles)
    @rule(which=which, plan=few, patience=patiences, size=sizes)
    def save(self, which: int, plan: Plan, patience: float | None, size: int) -> None:
        async def step(handle: Handle) -> None:
            pair = Pair(next(self.all.states), next(self.all.trees))
            root = self.all.directory / "tree"
            root.mkdir()
            (root / "number").write_text(str(pair.tree))
            (root / "same").write_text("the same in all")
            saving = handle.cp.save(root, state=handle.state(pair, size))
            error = await self.all.attempt(saving, patience)
            del saving
            shutil.rmtree(root)
            if await handle.read() == pair:
                handle.claim.stage(pair)
            if not isinstance(error, BaseException):
                self.all.acknowledged(handle)
                self.counts["saved"] += 1
            elif not isinstance(error, StoreUnavailableError):
                self.all.promised(handle, error)

        self.with_handle(which, plan, step)

    @precondition(lambda self: self.all.handles)
    @rule(which=which, plan=few, patience=patiences)
    def restore(self, which: int, plan: Plan, patience: float | None) -> None:
        async def step(handle: Handle) -> None:
            number = await self.all.restored(handle, patience)
            if isinstance(number, int):
                self.counts["restored"] += number > 0
                if number != handle.claim.newest.tree:
                    raise Broken(f"files {number} were restored for {handle.claim.newest}")
            elif not isinstance(number, StoreUnavailableError):
                self.all.promised(handle, number)

        self.with_handle(which, plan, step)

    @precondition(lambda self: self.all.handles)
    @rule(which=which, plan=few, patience=patiences)
    def delete(self, which: int, plan: Plan, patience: float | None) -> None:
        async def step(handle: Handle) -> None:
            side, key = handle.side, handle.cp.key
            model = self.all.keys[key]
            model.attempts += 1
            error = await self.all.attempt(handle.cp.delete(), patience)
            if error is None:
                if handle.claim.most < len(handle.claim.history):
                    raise Broken("a superseded handle has deleted the key")
                model.deleted()
                self.counts["deleted"] += 1
                del self.all.handles[side, key]
                await handle.block.__aexit__(None, None, None)
                return
            model.may_be_gone = True
            if isinstance(error, asyncio.CancelledError):  # it goes on, and may yet come through
                del self.all.handles[side, key]
                self.all.ghosts[f"{side}{key}"] += 1
                await self.all.attempt(handle.block.__aexit__(None, None, None))
            elif not isinstance(error, StoreError):
                self.all.promised(handle, error)

        self.with_handle(which, plan, step)

    @rule(side=sides, key=keys)
    def look(self, side: int, key: str) -> None:
        async def step() -> None:
            seen = await self.all.attempt(self.all.runtimes[side].latest(key))
            if isinstance(seen, StoreError):
                return
            if isinstance(seen, BaseException):
                raise Broken(f"latest() has failed: {seen!r}")
            if seen is None:
                self.all.keys[key].seen(None)
            else:
                payload = seen.payload
                self.all.keys[key].seen(Pair(*numbers_of(payload)) if payload else NOTHING)

        self.all.run(step())

    @rule(side=sides)
    def end_runtime(self, side: int) -> None:
        async def step() -> None:
            began = self.all.loop.time()
            await self.all.runtimes[side].__aexit__(None, None, None)
            if self.all.loop.time() - began > FLUSH + 15:
                raise Broken("the runtime's end took too long")
            for key, model in self.all.keys.items():
                self.all.handles.pop((side, key), None)
                del self.all.ghosts[f"{side}{key}"]
                if model.last is not None:
                    model.last.adopted = False  # it may be this runtime's
            self.all.runtimes[side] = await self.all.enter(side)

        self.all.run(step())

    # What holds after each step.

    @invariant()
    def reads_its_own(self) -> None:
        for handle in self.all.handles.values():
            read = self.all.run(handle.read())
            if read != handle.claim.newest:
                raise Broken(f"{read} was read where {handle.claim.newest} was staged")

    @invariant()
    def memory_is_bounded(self) -> None:
        self.all.check_memory()

    @invariant()
    def nothing_complains(self) -> None:
        if self.all.complaints:
            raise Broken(str(self.all.complaints))

    def teardown(self) -> None:
        try:
            if self.all.runtimes and sys.exc_info()[0] is None:
                self.all.run(self.all.end())
        finally:
            self.all.close()


def explore(case: Case, *, shrink: bool = True) -> Counts:
    """Run some programs that the case decides; what they did.

    They are few, as those that Hypothesis draws from one seed resemble one another.

    Raises:
        Broken: a program that breaks a guarantee was found; the shortest such is in the notes.
    """

    class Counting(Faults):
        counts = Counts()

    how = settings(
        max_examples=20,
        stateful_step_count=30,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
    )
    number = case.random().getrandbits(64)
    run_state_machine_as_test(seeded(number)(Counting), settings=how)
    return Counting.counts
