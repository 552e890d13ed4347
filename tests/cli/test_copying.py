"""What is copied is whole, opens and goes on; what differs is kept; what was cut short goes on."""

from __future__ import annotations

import asyncio
import gc
import shutil
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

import aiocheckpoint
from aiocheckpoint import FencedError, StoreError, StoreUnavailableError, _abreast
from aiocheckpoint._copying import Copied, Existing, copy, copy_key
from aiocheckpoint._verifying import verify
from aiocheckpoint.abc import Put, Source, Store, Version
from aiocheckpoint.stores import open_store
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import FaultyStore, Wrapper

from .. import children
from ..trees import seen
from .filled import (
    KEYS,
    LARGE,
    Overtaken,
    damage_blob,
    damage_head,
    double,
    fill,
    generations,
    record_of,
)


def ignore(size: int) -> None:
    """Counts nothing."""


async def copied(source: Store, target: Store, existing: Existing = "refuse") -> dict[str, Copied]:
    """Copy all; what became of each key."""
    outcomes = {}
    async with aclosing(copy(source, target, source.keys(""), existing, ignore)) as each:
        async for one in each:
            outcomes[one.key] = one
    return outcomes


async def contents(store: Store) -> dict[str, tuple[bytes, dict[str, bytes]]]:
    """All that lies in a store."""
    found = {}
    async for key in store.keys(""):
        head = await store.load(key)
        assert head is not None
        blobs = {}
        for name in await store.list_blobs(key):
            blobs[name] = b"".join([chunk async for chunk in store.open_blob(key, name)])
        found[key] = (head.record, blobs)
    return found


async def sound(store: Store) -> bool:
    async with aclosing(verify(store, "", ignore)) as reports:
        return not [report async for report in reports if report.damage]


async def test_what_is_copied_goes_on(store: Store, target: Store, tmp_path: Path) -> None:
    """States, files, results and the record before: all of it, between any two stores."""
    await fill(store, tmp_path)
    outcomes = await copied(store, target)
    assert {one.outcome for one in outcomes.values()} == {"copied"}
    assert sorted(outcomes) == KEYS
    assert outcomes["tree"].size > 5 << 20
    assert await contents(target) == await contents(store)
    async with aiocheckpoint.Runtime(target, keep=2) as rt:
        assert await rt.run(double, 1, key="done/1") == 2
        async with rt.open("large") as cp:
            assert cp.resumed
            assert cp.epoch == 2
            assert await cp.read() == b"\2" * LARGE
            await cp.write(b"next")
        async with rt.open("tree") as cp:
            assert await cp.read() == b"after"
            assert await cp.restore(tmp_path / "back") == tmp_path / "back"
            assert seen(tmp_path / "back") == seen(tmp_path / "tree")
            (tmp_path / "tree" / "changes").write_bytes(b"further")
            await cp.save(tmp_path / "tree", state=b"further")
    assert await sound(target)


async def test_a_copied_generation_stands_in(store: Store, target: Store, tmp_path: Path) -> None:
    """keep=2 is worth as much in the copy as where it came from."""
    await fill(store, tmp_path)
    await copied(store, target)
    await damage_head(target, "tree")
    await target.delete_blobs("tree", (await generations(target, "tree"))[-1:])
    async with aiocheckpoint.open(target, "tree", keep=2) as cp:
        assert await cp.read() == b"before"
        await cp.restore(tmp_path / "back")
    assert (tmp_path / "back" / "changes").read_bytes() == b"before"


async def test_what_is_the_same_is_passed_over(store: Store, target: Store, tmp_path: Path) -> None:
    """The second time there is nothing to do; what was new since is copied."""
    await fill(store, tmp_path)
    await copied(store, target)
    async with aiocheckpoint.open(store, "new") as cp:
        await cp.write(b"new")
    outcomes = await copied(store, target)
    assert outcomes.pop("new").outcome == "copied"
    assert {one.outcome for one in outcomes.values()} == {"same"}


async def test_what_differs_is_kept_unless_told(
    store: Store, target: Store, tmp_path: Path
) -> None:
    """Refused, skipped, or replaced with all that it had; its writer is fenced."""
    async with aiocheckpoint.open(store, "k", keep=2) as cp:
        await cp.write(b"a" * LARGE)
    with pytest.raises(FencedError):
        async with aiocheckpoint.open(target, "k", keep=2) as other:
            for number in range(5):
                await other.write(bytes([number]) * LARGE)
                await other.flush()
            before = await target.load("k")
            assert (await copied(store, target))["k"].outcome == "refused"
            assert (await copied(store, target, "skip"))["k"].outcome == "skipped"
            assert await target.load("k") == before
            assert (await copied(store, target, "overwrite"))["k"].outcome == "copied"
            assert await contents(target) == await contents(store), (
                "nothing else may stand in for it"
            )
            await other.write(b"too late")
            await other.flush()
    assert (await copied(store, target))["k"].outcome == "same"
    async with aiocheckpoint.open(target, "k", keep=2) as cp:
        assert await cp.read() == b"a" * LARGE


class Torn(Wrapper):
    """Fails at the n-th blob."""

    def __init__(self, store: Store, n: int, error: StoreError) -> None:
        super().__init__(store)
        self._error = error
        self._left = n
        self.puts: list[str] = []

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        self._left -= 1
        if not self._left:
            raise self._error
        await super().put_blob(key, name, source)
        self.puts.append(name)


async def test_a_copy_that_was_cut_short_goes_on(
    store: Store, target: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No head without its blobs; and what was put once is not put again."""
    await fill(store, tmp_path)
    monkeypatch.setattr(_abreast, "PATIENCE", 0.0)
    gone = StoreUnavailableError("no more", op="put_blob")
    torn = Torn(target, 4, gone)
    with pytest.raises(StoreUnavailableError, match="no more"):
        await copied(store, torn)
    assert await sound(target)
    again = Torn(target, 1000, gone)
    await copied(store, again)
    assert not set(torn.puts) & set(again.puts)
    assert await contents(target) == await contents(store)


async def test_a_key_that_the_target_refuses_holds_up_no_other(
    store: Store, target: Store, tmp_path: Path
) -> None:
    """It is told with the target's words; all others are copied."""
    await fill(store, tmp_path)
    refusing = Torn(target, 1, StoreError("too large", op="put_blob"))
    outcomes = await copied(store, refusing)
    bad = [one for one in outcomes.values() if one.outcome != "copied"]
    assert [(one.outcome, one.why) for one in bad] == [("failed", "put_blob: too large")]
    assert len(outcomes) == len(KEYS)


async def test_what_is_damaged_is_not_copied(store: Store, target: Store, tmp_path: Path) -> None:
    """A damaged head, state or pack: told, and the target has no such key. A damaged generation is
    left out, and told."""
    await fill(store, tmp_path)
    await damage_head(store, "small")
    large = (await record_of(store, "large")).blob
    tree = (await record_of(store, "tree")).files
    assert large is not None
    assert tree is not None
    await damage_blob(store, "large", large.name)
    await damage_blob(store, "tree", tree.packs[0], at=3 << 20)
    generation = (await generations(store, "done/1"))[0]
    await damage_blob(store, "done/1", generation)
    outcomes = await copied(store, target)
    for key, part in {"small": "checksum", "large": large.name, "tree": tree.packs[0]}.items():
        assert outcomes[key].outcome == "failed"
        assert part in outcomes[key].why
        assert await target.load(key) is None
    assert outcomes["done/1"].outcome == "copied"
    assert "left out" in outcomes["done/1"].why
    assert generation not in await target.list_blobs("done/1")
    assert await sound(target)


async def test_a_key_that_moves_on_is_copied_anew() -> None:
    """Its state was collected before it could be read: the next look has the next one."""
    inner, target = MemoryStore(), MemoryStore()
    async with aiocheckpoint.open(inner, "k", min_interval=0) as cp:
        await cp.write(b"x" * LARGE)
        await cp.flush()
        store = Overtaken(inner, cp, 3)
        one = await copy_key(store, target, "k", "refuse", ignore)
    assert (one.outcome, one.why) == ("copied", "")
    assert store.left == 0
    assert await sound(target)
    found = await record_of(target, "k")
    assert found.blob is not None
    assert await target.list_blobs("k") == [found.blob.name]


async def test_a_store_that_is_down_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several keys fail at once: one error is raised, and of the others nobody hears."""
    monkeypatch.setattr(_abreast, "PATIENCE", 0.0)
    unheard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: unheard.append(told))
    source, target = MemoryStore(), FaultyStore(MemoryStore())
    for number in range(10):
        async with aiocheckpoint.open(source, f"{number}") as cp:
            await cp.write(b"x")
    target.down = True
    with pytest.raises(StoreUnavailableError, match="the store is down"):
        await copied(source, target)
    gc.collect()
    await asyncio.sleep(0)
    assert unheard == []


class Moving(FaultyStore):
    """With each commit of it, or just before it, a program stores its next state."""

    def __init__(
        self, store: Store, cp: aiocheckpoint.Checkpointer[bytes], *, first: bool = False
    ) -> None:
        super().__init__(store)
        self._cp = cp
        self._first = first

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        if self._first:
            await self._move_on()
        try:
            return await super().commit(batch)
        finally:
            if not self._first:
                await self._move_on()

    async def _move_on(self) -> None:
        await self._cp.write(b"next")
        await self._cp.flush()


async def test_an_answer_that_was_lost_is_read_back() -> None:
    """The key is copied, not refused as another's, though the source moved on meanwhile."""
    inner, target = MemoryStore(), MemoryStore()
    async with aiocheckpoint.open(inner, "k", min_interval=0) as cp:
        await cp.write(b"1")
        await cp.flush()

        faulty = Moving(target, cp)
        faulty.lose_answers(1)
        one = await copy_key(inner, faulty, "k", "refuse", ignore)
    assert one.outcome == "copied"


async def test_a_copy_that_fails_leaves_the_generations_of_another_alone() -> None:
    """Where a program writes to the key in the target, nothing of the source stands in for it."""
    inner, target = MemoryStore(), MemoryStore()
    for _ in range(3):  # the source's are of a later epoch, and would be taken first
        async with aiocheckpoint.open(inner, "k", keep=2) as cp:
            await cp.write(b"x")
    async with aiocheckpoint.open(target, "k", keep=2) as cp:
        await cp.write(b"y")
        await cp.flush()
        before = await generations(target, "k")
        one = await copy_key(inner, Moving(target, cp, first=True), "k", "overwrite", ignore)
        assert (one.outcome, one.why[:18]) == ("failed", "somebody wrote to ")
    assert before[-1] in await generations(target, "k")
    await damage_head(target, "k")
    async with aiocheckpoint.open(target, "k", keep=2) as cp:
        assert await cp.read() in (b"y", b"next")
    assert await sound(target)


class Greedy(Wrapper):
    """Somebody collects what nothing names, just before the head is put that names it."""

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        await self.store.delete_blobs("k", await self.store.list_blobs("k"))
        return await super().commit(batch)


async def test_blobs_that_a_collector_took_are_put_again() -> None:
    """In the target nothing names them before the head is there."""
    inner, target = MemoryStore(), MemoryStore()
    async with aiocheckpoint.open(inner, "k") as cp:
        await cp.write(b"x" * LARGE)
    one = await copy_key(inner, Greedy(target), "k", "refuse", ignore)
    assert one.outcome == "copied"
    assert await sound(target)


async def test_states_in_the_spool_are_pointed_out(tmp_path: Path) -> None:
    """They are not copied, and may be newer than what is."""
    url = f"file:{tmp_path / 'jobs'}"
    killed = "async with aiocheckpoint.open(url, 'k') as cp: await cp.write(b'x'); die()"
    await asyncio.to_thread(children.run, killed, url)
    source = open_store(url)
    target = MemoryStore()
    assert (await copied(source, target))["k"].spooled
    async with aiocheckpoint.open(source, "k") as cp:
        assert await cp.read() == b"x"
    one = (await copied(source, target, "overwrite"))["k"]
    assert (one.outcome, one.spooled) == ("copied", False)
    await source.aclose()


WRITING = """
from pathlib import Path
import shutil, tempfile
base = Path(tempfile.mkdtemp(dir=args[0]))
async with aiocheckpoint.open(url, "live", keep=2, min_interval=0) as cp:
    for number in range(1, 100000):
        tree = base / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        (tree / "number").write_text(str(number))
        (tree / "large").write_bytes(bytes([number % 256]) * 5_000_000)
        await cp.save(tree, state=state(number, 1_500_000))
        say(number)
"""


@pytest.mark.parametrize("url", ["file:jobs", "sqlite:jobs.db"])
async def test_a_copy_beside_a_writer_is_of_one_moment(url: str, tmp_path: Path) -> None:
    """A process writes states and files all the time: each copy has a state and its own files."""
    scheme, _, name = url.partition(":")
    url = f"{scheme}:{tmp_path / name}"
    with children.start(WRITING, url, tmp_path) as process:
        try:
            assert process.stdout is not None
            source = open_store(url)
            numbers = [0]
            for _ in range(5):
                while int(await asyncio.to_thread(process.stdout.readline)) <= numbers[-1]:
                    pass
                target = MemoryStore()
                outcomes = await copied(source, target)
                assert (outcomes["live"].outcome, outcomes["live"].why) == ("copied", "")
                assert await sound(target)
                back = tmp_path / "back"
                async with aiocheckpoint.open(target, "live") as cp:
                    number = children.number_of(await cp.read())
                    await cp.restore(back)
                assert (back / "number").read_text() == str(number)
                assert (back / "large").read_bytes() == bytes([number % 256]) * 5_000_000
                shutil.rmtree(back)
                numbers.append(number)
            await source.aclose()
        finally:
            process.kill()
    assert numbers == sorted(set(numbers)), "it went on meanwhile"
