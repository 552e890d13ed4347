"""Programs to interrupt: together they use every call of the package that waits.

Each says what it does meanwhile, which names its points, and keeps an account of what must be
stored, whatever becomes of it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import anyio
import anyio.lowlevel

import aiocheckpoint
from aiocheckpoint import Checkpointer, FlushTimeoutError, RetryPolicy, Runtime
from aiocheckpoint.testing import FaultyStore

from ._place import Place


async def opening(place: Place) -> None:
    """A key whose opening may be given up, and that is opened at once again."""
    async with place.runtime() as rt:
        block = rt.open("k")
        cp = None
        with place.step("open"):
            cp = await block.__aenter__()
        if cp is not None:
            await cp.write(place.account().write(b"1"))
            with place.step("leave"):
                await block.__aexit__(None, None, None)
            place.is_stored("k")
        async with place.open(rt) as again:
            await again.write(place.account().write(b"2"))
            await again.flush()
            assert rt._engine is not None
            held = len(rt._engine.writer.holding)
            assert held == 1, f"{held} claims are held"


async def handle(place: Place) -> None:
    """States alone."""
    account = place.account()
    async with place.runtime() as rt:
        async with place.open(rt) as cp:
            with place.step("write"):  # the writer sleeps: it wakes it, and yields
                await cp.write(account.write(b"1"))
            with place.step("write"):
                await cp.write(account.write(b"2"))
            with place.step("read"):
                assert await cp.read() == b"2"
            with place.step("flush"):
                await cp.flush()
            with place.step("latest"):
                await cp.latest()
            with place.step("write"):
                cp._slot.seen, cp._pace.yielded = None, 0.0  # as when it is time to yield
                await cp.write(account.write(b"3"))
            with place.step("Runtime.flush"):
                await rt.flush()
            await cp.write(account.write(b"4"))
        with place.step("Runtime.latest"):
            await rt.latest("k")
        with place.step("Runtime.keys"):
            assert [key async for key in rt.keys("")] == ["k"]
        try:
            async with place.open(rt) as cp:
                cp.write_nowait(account.write(b"5"))
                raise LookupError("the block's own")
        except LookupError:
            pass


async def saving(place: Place) -> None:
    """Files, copied."""
    account = place.account()
    async with place.runtime() as rt, place.open(rt) as cp:
        cp.write_nowait(account.write(b"1"))
        with place.step("save"), account.saving("one", b"2"):
            await cp.save(place.tree("one"), state=b"2")
        with place.step("restore"):
            await place.restore(cp, "out")
        with place.step("save"), account.saving("two"):
            await cp.save(place.tree("two"))
        (place.directory / "mount").mkdir()
        with place.step("restore into a directory"):
            await place.restore(cp, "mount")
        cp.write_nowait(account.write(b"3"))


async def moving(place: Place) -> None:
    """Files, moved."""
    account = place.account()
    async with place.runtime() as rt, place.open(rt) as cp:
        for name in ("one", "two"):
            tree = account.gone_trees[name] = place.tree(name)
            with place.step("save(move=True)"), account.saving(name, name.encode()):
                await cp.save(tree, state=name.encode(), move=True)
        with place.step("restore, not stored yet"):
            await place.restore(cp, "out")
        tree = account.gone_trees["three"] = place.tree("three")
        with place.step("save(move=True)"), account.saving("three"):
            await cp.save(tree, move=True)


async def promoting(place: Place) -> None:
    """A key whose newest state and files only the spool has: opening it stores them."""
    account = place.account()
    account.spooled = b"1", "one"

    async def before() -> None:
        store = FaultyStore(place.opened())
        with suppress(FlushTimeoutError):
            async with aiocheckpoint.open(store, "k", spool=place.spool, flush_timeout=0) as cp:
                store.down = True
                await cp.save(place.tree("one"), state=b"1", move=True)
        await store.aclose()

    with place.points.unseen():
        thread = threading.Thread(target=lambda: asyncio.run(before()))
        thread.start()
        thread.join()
    async with place.runtime() as rt, place.block("open, promoting", rt.open("k")) as cp:
        account.pairs, account.spooled = {account.spooled}, None
        with place.step("restore"):
            await place.restore(cp, "out")
        await cp.write(account.write(b"2"))


async def deleting(place: Place) -> None:
    """Keys that go."""
    account, other = place.account(), place.account("other")
    async with place.runtime() as rt:
        async with place.open(rt) as cp:
            await cp.write(account.write(b"1"))
            with place.points.doing("delete"), account.changing((None, None)):
                await cp.delete()
        async with place.open(rt, "other") as cp:
            await cp.write(other.write(b"1"))
        with place.points.doing("Runtime.delete"), other.changing((None, None)):
            await rt.delete("other")


async def alone(place: Place) -> None:
    """A handle with a runtime of its own."""
    account = place.account()
    opening = aiocheckpoint.open(place.store, "k", spool=place.spool, keep=place.keep)
    async with place.block("aiocheckpoint.open", opening) as cp:
        await cp.write(account.write(b"1"))
        await cp.write(account.write(b"2"))


def flaky(place: Place) -> Callable[[Checkpointer[bytes], str], Awaitable[str]]:
    """A task that fails at its first attempt, and returns its key at the second."""

    async def fn(cp: Checkpointer[bytes], item: str) -> str:
        account = place.account(cp.key)
        done = int(await cp.read(default=b"0"))
        for step in range(done, 3):
            await cp.write(account.write(b"%d" % (step + 1)))
            await cp.flush()
            if step == 1:
                raise LookupError("the first attempt's")
        return item

    return fn


_policy = RetryPolicy(on=LookupError, retries=3, wait_initial=0.001, wait_jitter=0)


async def running(place: Place) -> None:
    """A run with a retry, and the result of one that is done."""
    fn = flaky(place)

    async def rerun(rt: Runtime) -> None:
        assert await rt.run(fn, "k", key="k", retry=_policy) == "k"

    place.rerun = rerun
    async with place.runtime() as rt:
        for what in ("run", "run, done before"):
            with place.step(what):
                await rt.run(fn, "k", key="k", retry=_policy)


async def mapping(place: Place) -> None:
    """A map that is taken to its end, and one that is left early."""
    fn = flaky(place)
    items = [f"item{n}" for n in range(3)]

    async def later() -> AsyncIterator[str]:
        for item in items:
            await anyio.lowlevel.checkpoint()
            yield item

    async def rerun(rt: Runtime) -> None:
        async with rt.map(fn, items, key="{item}", retry=_policy) as outcomes:
            assert sorted([one.unwrap() async for one in outcomes]) == items

    place.rerun = rerun
    async with place.runtime() as rt:
        over = rt.map(fn, later(), key="{item}", max_concurrency=2, retry=_policy)
        async with place.block("map", over) as outcomes:
            with place.points.doing("map, iterating"):
                results = [one.unwrap() async for one in outcomes]
        assert sorted(results) == items
        early = rt.map(fn, (f"early{n}" for n in range(3)), key="{item}", retry=_policy)
        async with place.block("map, early", early) as outcomes:
            with place.points.doing("map, iterating"):
                await anext(outcomes)


PROGRAMS = (opening, handle, saving, moving, promoting, deleting, alone, running, mapping)
