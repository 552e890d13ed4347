"""The public surface as a type checker sees it. Never run: `make check` reads it.

Each `assert_type` is a promise; each `type: ignore[code]` is a wrong use that must stay an error,
since an ignore that is not needed is one itself.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, assert_type

import aiocheckpoint
from aiocheckpoint import (
    Checkpoint,
    Checkpointer,
    MsgspecCodec,
    Outcome,
    PickleCodec,
    RecoverableError,
    RetryPolicy,
    Runtime,
    Statistics,
    Store,
    Task,
    blocking,
    task,
)
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import FaultyStore, check_resumes, interrupt_at, no_waiting


@dataclass
class State:
    step: int


class Hex:
    """A codec of one's own, by protocol alone."""

    name = "hex"

    def encode(self, state: int, /) -> bytes:
        return b"%x" % state

    def decode(self, data: bytes, /) -> int:
        return int(data, 16)


class NoCodec:
    name = "no"


# Stores

memory: Store = MemoryStore()
faulty: Store = FaultyStore(memory)


# Handles


async def opening() -> None:
    async with aiocheckpoint.open("sqlite:jobs.db", "k") as plain:
        assert_type(plain, Checkpointer[bytes])
    async with aiocheckpoint.open(Path("jobs"), "k", keep=2, spool=None) as by_path:
        assert_type(by_path, Checkpointer[bytes])
    async with aiocheckpoint.open(memory, "k", type=State) as typed:
        assert_type(typed, Checkpointer[State])
    async with aiocheckpoint.open(memory, "k", type=dict[str, int]) as generic:
        assert_type(generic, Checkpointer[dict[str, int]])
    async with aiocheckpoint.open(memory, "k", codec=Hex()) as coded:
        assert_type(coded, Checkpointer[int])
    async with aiocheckpoint.open(memory, "k", codec=MsgspecCodec(State)) as packed:
        assert_type(packed, Checkpointer[State])
    async with aiocheckpoint.open(memory, "k", codec=PickleCodec()) as pickled:
        assert_type(pickled, Checkpointer[object])

    aiocheckpoint.open(memory, "k", type=State, codec=Hex())  # type: ignore[call-overload]
    aiocheckpoint.open(memory, "k", codec=NoCodec())  # type: ignore[call-overload]
    aiocheckpoint.open(memory)  # type: ignore[call-overload]
    aiocheckpoint.open(7, "k")  # type: ignore[call-overload]


def opening_without_a_loop(cp: Checkpointer[State]) -> None:
    with aiocheckpoint.blocking.open("sqlite:jobs.db", "k") as plain:
        assert_type(plain, blocking.Checkpointer[bytes])
    with blocking.open(Path("jobs"), "k", type=State, keep=2, spool=None) as typed:
        assert_type(typed, blocking.Checkpointer[State])
    with blocking.open(memory, "k", codec=Hex()) as coded:
        assert_type(coded, blocking.Checkpointer[int])
    assert_type(blocking.Checkpointer(cp), blocking.Checkpointer[State])
    assert_type(typed.read(), State | None)
    assert_type(typed.read(State(0)), State)
    assert_type(typed.read(default=0), State | int)
    assert_type(typed.write(State(1)), int)
    assert_type(typed.latest(), Checkpoint | None)
    assert_type(typed.statistics(), Statistics)
    assert_type((typed.key, typed.epoch, typed.attempt), tuple[str, int, int])
    assert_type((typed.resumed, typed.due, typed.stopping), tuple[bool, bool, bool])

    typed.write(1)  # type: ignore[arg-type]
    typed.key = "other"  # type: ignore[misc]
    blocking.open(memory, "k", type=State, codec=Hex())  # type: ignore[call-overload]
    blocking.open(memory)  # type: ignore[call-overload]
    blocking.Checkpointer(typed)  # type: ignore[arg-type]


async def opening_in_a_runtime(rt: Runtime) -> None:
    async with rt.open("k") as plain:
        assert_type(plain, Checkpointer[bytes])
    async with rt.open("k", type=State, min_interval=1) as typed:
        assert_type(typed, Checkpointer[State])
    async with rt.open("k", codec=Hex()) as coded:
        assert_type(coded, Checkpointer[int])

    rt.open("k", type=State, codec=Hex())  # type: ignore[call-overload]
    rt.open("k", spool=None)  # type: ignore[call-overload]


async def using(cp: Checkpointer[State]) -> None:
    assert_type(await cp.read(), State | None)
    assert_type(await cp.read(State(0)), State)
    assert_type(await cp.read(default=0), State | int)
    assert_type(await cp.write(State(1)), int)
    assert_type(cp.write_nowait(State(1)), int)
    assert_type(await cp.latest(), Checkpoint | None)
    assert_type(cp.statistics(), Statistics)
    assert_type((cp.key, cp.epoch, cp.attempt), tuple[str, int, int])
    assert_type((cp.resumed, cp.due, cp.stopping), tuple[bool, bool, bool])

    await cp.write(1)  # type: ignore[arg-type]
    await cp.write(None)  # type: ignore[arg-type]
    cp.write_nowait(b"x")  # type: ignore[arg-type]
    cp.key = "other"  # type: ignore[misc]


# Tasks


async def plain(cp: Checkpointer[bytes], name: str, steps: int) -> list[float]:
    return []


@task(key="train/{name}", retry=3)
async def train(cp: Checkpointer[bytes], name: str, steps: int) -> list[float]:
    return []


@task(key="typed", type=State, retry=RetryPolicy(on=OSError))
async def typed(cp: Checkpointer[State]) -> None: ...


@task(key="coded", codec=Hex())
async def coded(cp: Checkpointer[int], *more: int) -> State:
    return State(1)


@task(key="k")
async def with_default(cp: Checkpointer[bytes], steps: int = 3) -> None: ...


@task(key="k")  # type: ignore[arg-type]
async def without_type(cp: Checkpointer[State]) -> None: ...


@task(key="k", type=State)  # type: ignore[arg-type]
async def mistyped(cp: Checkpointer[int]) -> None: ...


@task(key="k")  # type: ignore[arg-type]
def not_async(cp: Checkpointer[bytes]) -> int:
    return 1


@task()  # type: ignore[call-overload,untyped-decorator]
async def without_key(cp: Checkpointer[bytes]) -> None: ...


async def running(rt: Runtime) -> None:
    assert_type(train, Task[bytes, str, int, list[float]])
    assert_type(await rt.run(train, "a", 1), list[float])
    assert_type(await rt.run(plain, "a", 1, key="k", retry=2, fresh=True), list[float])
    assert_type(await rt.run(train.using(retry=0), "a", 1), list[float])
    assert_type(await rt.run(typed.using(key="other")), None)
    assert_type(await rt.run(functools.partial(plain, steps=1), "a", key="k"), list[float])

    await rt.run(train, "a")  # type: ignore[arg-type]
    await rt.run(train, "a", "b")  # type: ignore[arg-type]
    await rt.run(plain, 1, 1, key="k")  # type: ignore[arg-type]
    await rt.run(train, "a", 1, steps=1)  # type: ignore[call-arg]
    await rt.run(train, "a", 1, retry="3")  # type: ignore[arg-type]
    await train("a", 1)  # type: ignore[operator]

    # right, but more than the type system says of a TypeVarTuple: a task's arguments have no
    # defaults, and a partial of a task is not seen
    await rt.run(with_default)  # type: ignore[arg-type]
    functools.partial(train, steps=1)  # type: ignore[misc,operator,arg-type]


@task(key="resize/{path}", type=State)
async def resize(cp: Checkpointer[State], path: Path) -> float:
    return 1.0


async def one_number(cp: Checkpointer[bytes], number: int) -> str:
    return ""


async def paths() -> AsyncIterator[Path]:
    yield Path()


async def mapping(rt: Runtime) -> None:
    async with rt.map(resize, [Path()]) as outcomes:
        assert_type(outcomes, AsyncIterator[Outcome[Path, float]])
        async for outcome in outcomes:
            assert_type(outcome, Outcome[Path, float])
            assert_type((outcome.item, outcome.key), tuple[Path, str])
            assert_type(outcome.result, float | None)
            assert_type(outcome.error, Exception | None)
            assert_type(outcome.unwrap(), float)
    async with rt.map(resize, paths(), max_concurrency=3, retry=2, progress=True) as lazily:
        assert_type([one.unwrap() async for one in lazily], list[float])
    async with rt.map(one_number, range(3), key="{number}") as by_template:
        assert_type(by_template, AsyncIterator[Outcome[int, str]])
    async with rt.map(one_number, range(3), key=lambda number: f"{number + 1}") as by_item:
        assert_type([one.unwrap() async for one in by_item], list[str])

    rt.map(resize, ["a"])  # type: ignore[arg-type]
    rt.map(resize, Path())  # type: ignore[arg-type]
    rt.map(train, ["a"])  # type: ignore[arg-type]
    rt.map(one_number, range(3), key=len)  # type: ignore[arg-type]
    rt.map(one_number, range(3), key="{number}", fresh=True)  # type: ignore[call-arg]
    rt.map(one_number, range(3), key="{number}", max_concurrency="3")  # type: ignore[arg-type]


def script() -> None:
    assert_type(aiocheckpoint.run(train, "a", 1, store="memory:"), list[float])
    assert_type(aiocheckpoint.run(plain, "a", 1, store=memory, key="k"), list[float])
    aiocheckpoint.run(train, "a", 1)  # type: ignore[call-arg]
    aiocheckpoint.run(train, "a", 1, store=memory, backend="curio")  # type: ignore[arg-type]


async def plain_function(cp: Checkpointer[bytes]) -> None:
    assert_type(await train.fn(cp, "a", 1), list[float])
    assert_type(aiocheckpoint.current(), Checkpointer[Any])


# Tests of tasks


async def testing(rt: Runtime) -> int:
    assert_type(await check_resumes(train, "a", 1, lost=True), list[float])
    assert_type(await check_resumes(plain, "a", 1, key="k", at=range(1, 3)), list[float])
    await check_resumes(train, "a")  # type: ignore[arg-type]
    interrupt_at(3)  # type: ignore[call-arg]
    interrupt_at(write=3, by=15)  # type: ignore[arg-type]
    interrupt_at(write=3, by=signal.SIGTERM, key="k")
    with no_waiting(), interrupt_at(write=3, by=OSError("no")):
        raise OSError
    return 1  # reachable: the block may swallow what it raised


# Runtimes


async def looking(rt: Runtime) -> None:
    assert_type(await rt.latest("k"), Checkpoint | None)
    assert_type([key async for key in rt.keys("a", status="done")], list[str])
    assert_type(rt.stop(), None)
    assert_type(rt.statistics(), Statistics)
    rt.keys(status="finished")  # type: ignore[arg-type]


# Policies

RetryPolicy(on=(OSError, ValueError), retries=0, wait_max=timedelta(minutes=1), deadline=None)
RetryPolicy(on=lambda exc: isinstance(exc, OSError))
RetryPolicy(on=lambda exc: timedelta(seconds=1))
RetryPolicy(on=lambda exc: 0.5 if isinstance(exc, OSError) else False)
RetryPolicy(retries=3)  # type: ignore[call-arg]
RetryPolicy(OSError)  # type: ignore[call-arg]
RetryPolicy(on=KeyboardInterrupt)  # type: ignore[arg-type]
RetryPolicy(on=lambda exc: "soon")  # type: ignore[arg-type,return-value]
RetryPolicy(on=OSError, wait_initial=None)  # type: ignore[arg-type]
RetryPolicy(on=OSError).retries = 4  # type: ignore[misc]
RecoverableError("again", retry_after=1.5)
RecoverableError("again", retry_after="soon")  # type: ignore[arg-type]
