"""A collector takes what is past, and nothing that anybody may yet need."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import aiocheckpoint
from aiocheckpoint import Checkpointer, Runtime, StoreError
from aiocheckpoint._collecting import Leftovers, finished, leftovers
from aiocheckpoint._heads import generation_name, state_name
from aiocheckpoint._looking import Generation, Look, Seen, look_at
from aiocheckpoint._records import Blob, Files, Record
from aiocheckpoint._verifying import verify_key
from aiocheckpoint.abc import Put, Source, Store, Version
from aiocheckpoint.stores import open_store
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import FaultyStore, Wrapper

from .. import children
from ..support import true
from .filled import LARGE, damage_blob, fill, generations, record_of

OLD, NEW, BEFORE = 1_000.0, 3_000.0, 2_000.0
ME, ORIGIN, OTHER = b"m" * 16, b"o" * 16, b"x" * 16


def blob(name: str) -> Blob:
    return Blob(name, 1, b"")


def tree(claim: bytes, number: int, *packs: str) -> Files:
    name = f"{claim.hex()}-{number}"
    return Files(name, blob(f"tree-{name}.00000000"), packs, 1, 1)


def state(claim: bytes, commit: int) -> str:
    return f"state-{claim.hex()}-{commit}-9"


def pack(claim: bytes, number: int) -> str:
    return f"pack-{claim.hex()}-{number}.00000000"


def manifest(claim: bytes, number: int) -> str:
    return f"tree-{claim.hex()}-{number}.00000000"


def record(**changes: object) -> Record:
    values: dict[str, object] = {
        "key": "k",
        "run": b"r",
        "claim": ME,
        "origin": ORIGIN,
        "epoch": 3,
        "commit": 5,
        "status": "done",
        "created": OLD,
        "files": tree(ME, 4, pack(ME, 2)),
    }
    return Record(**{**values, **changes})  # type: ignore[arg-type]


def look(head: Record, *names: str, kept: list[Record | None] | None = None) -> Look:
    """What a look would find: these blobs, and all that the head and the generations name."""
    there = set(names)
    gens = []
    for number, one in enumerate(kept or []):
        name = (
            f"gen-00000001-000000000{number}-{OTHER.hex()}" if one is None else generation_name(one)
        )
        gens.append(Generation(name, Seen(one, 0, None if one else "damaged")))
        there.add(name)
    made = Look("k", frozenset(there), b"", 1, Seen(head, 0, None), frozenset(there), gens)
    return made._replace(before=made.before | made.named)


def removable(of: Look) -> set[str]:
    left = leftovers(of, BEFORE)
    assert not set(left.removable) & of.named
    assert {*left.removable, *left.doubtful} == of.before - of.named
    return set(left.removable)


@pytest.mark.parametrize("status", ["running", "done"])
def test_states_of_the_past_go(status: str) -> None:
    """Up to the head's commit of its own claim; of others those after their first, which shows
    that the claim had been made. What is of a claim that may be under way stays."""
    past = {state(ME, 1), state(ME, 5), state(OTHER, 2), state(ORIGIN, 7)}
    future = {state(ME, 6), state(ME, 70), state(OTHER, 1), "state-x", "state-" + "g" * 32 + "-1-1"}
    head = record(status=status, created=NEW)
    assert removable(look(head, *past, *future)) == past


def test_what_is_named_stays() -> None:
    """By the head, by a generation, and by the mere name of a generation that cannot be read."""
    head = record(blob=blob(state(ME, 4)))
    before = record(commit=3, blob=blob(state(ME, 3)), files=tree(OTHER, 1, pack(OTHER, 1)))
    unread = f"gen-00000001-0000000002-{OTHER.hex()}-{state(OTHER, 2)}"
    seen = look(head, state(ME, 4), state(ME, 3), state(ME, 2), state(OTHER, 2), kept=[before])
    assert removable(seen) == {state(ME, 2), state(OTHER, 2)}
    damaged = Generation(unread, Seen(None, 0, "damaged"))
    seen = seen._replace(generations=[damaged, *seen.generations])
    assert removable(seen._replace(before=seen.before | {unread})) == {state(ME, 2)}


def test_files_of_the_past_go_once_the_run_is_at_rest() -> None:
    """Trees before the head's, and those of claims before it."""
    past = {pack(ME, 1), manifest(ME, 3), manifest(ME, 1), pack(OTHER, 9), manifest(OTHER, 9)}
    assert removable(look(record(), *past)) == past
    assert removable(look(record(), *past, pack(ME, 2))) == past
    assert removable(look(record(status="running"), *past)) == set()
    assert removable(look(record(created=NEW), *past)) == set()
    assert removable(look(record(), *past, kept=[None])) == set(), "it may need any of them"


@pytest.mark.parametrize(
    "doubtful", [manifest(ME, 5), pack(ME, 5), manifest(ORIGIN, 1), pack(ORIGIN, 1), "pack-odd"]
)
def test_files_that_may_yet_be_named_keep_all(doubtful: str) -> None:
    """A state in the spool may go with newer files of the head's claim, or of the claim whose state
    it carries on, and those may be built upon any others."""
    assert removable(look(record(), doubtful, pack(OTHER, 1), manifest(ME, 1))) == set()


def test_a_damaged_head_keeps_all() -> None:
    """Nobody can tell what it names."""
    seen = look(record(), state(ME, 1))._replace(head=Seen(None, 0, "damaged"))
    assert leftovers(seen, BEFORE) == Leftovers("k", [], sorted(seen.before - seen.named))
    assert finished(seen, {"done"}, BEFORE) is None


def test_finished_keys_are_those_that_were_asked_for() -> None:
    """By status and by age; a running one never."""
    assert finished(look(record()), {"done"}, BEFORE) is not None
    assert finished(look(record()), {"failed"}, BEFORE) is None
    assert finished(look(record(created=NEW)), {"done"}, BEFORE) is None
    assert finished(look(record(status="failed")), {"done", "failed"}, BEFORE) is not None
    assert finished(look(record(status="running")), {"done", "failed"}, BEFORE) is None


def test_names_are_what_the_writer_makes() -> None:
    """The names that the rules read are those that are put."""
    assert state_name(record(seq=9)) == state(ME, 5)


# Against the real writer.


def ignore(size: int) -> None:
    """Counts nothing."""


async def collect(store: Store, key: str, before: float | None = None) -> list[str]:
    """What a collector would do to a key that nobody has written to for no time at all."""
    seen = await look_at(store, key)
    assert seen is not None
    left = leftovers(seen, time.time() + 1 if before is None else before)
    await store.delete_blobs(key, left.removable)
    return left.removable


async def sound(store: Store, key: str) -> bool:
    report = await verify_key(store, key, ignore)
    assert report is not None
    return not report.damage


async def save_twice(cp: Checkpointer[bytes], base: Path) -> str:
    for number in (1, 2):
        base.mkdir(exist_ok=True)
        (base / "file").write_bytes(bytes([number]) * 5_000_000)
        await cp.save(base, state=bytes([number]) * LARGE)
    return "ready"


class Hoarding(Wrapper):
    """Deletes no blob: as if every process had been killed before it could."""

    async def delete_blobs(self, key: str, names: Sequence[str]) -> None:
        raise StoreError("not now", op="delete_blobs", key=key)


async def test_what_a_finished_run_has_left_goes(store: Store, tmp_path: Path) -> None:
    """Earlier states and files, of it and of a claim before; the newest stay, and the result."""
    async with aiocheckpoint.open(Hoarding(store), "k", min_interval=0) as cp:
        await save_twice(cp, tmp_path / "tree")
    async with Runtime(Hoarding(store), min_interval=0) as rt:
        run = aiocheckpoint.task(key="k")(save_twice)
        assert await rt.run(run, tmp_path / "tree") == "ready"
    before = await store.list_blobs("k")
    head = await record_of(store, "k")
    assert head.blob is not None
    assert head.files is not None
    named = {head.blob.name, *head.files.blobs}
    taken = await collect(store, "k")
    assert {name[:5] for name in taken} == {"state", "pack-", "tree-"}
    assert set(taken) == set(before) - named
    assert set(await store.list_blobs("k")) == named
    async with Runtime(store) as rt:
        assert await rt.run(run, tmp_path / "tree") == "ready"
        async with rt.open("k") as cp:
            assert await cp.read() == b"\2" * LARGE
            await cp.restore(tmp_path / "back")
    assert (tmp_path / "back" / "file").read_bytes() == b"\2" * 5_000_000


async def test_what_a_zombie_has_left_goes(store: Store) -> None:
    """A state that it put after it had been fenced."""
    async with aiocheckpoint.open(store, "k") as cp:
        await cp.write(b"x" * LARGE)
    zombie = await record_of(store, "k")
    async with aiocheckpoint.open(store, "k") as cp:
        await cp.write(b"y" * LARGE)
    left = f"state-{zombie.claim.hex()}-{zombie.commit + 1}-7"
    await store.put_blob("k", left, b"z" * LARGE)
    assert left in await collect(store, "k")
    async with aiocheckpoint.open(store, "k") as cp:
        assert await cp.read() == b"y" * LARGE


async def test_a_sound_store_stays_sound(store: Store, tmp_path: Path) -> None:
    """Collecting everywhere harms neither heads nor generations."""
    await fill(store, tmp_path)
    keys = [key async for key in store.keys("")]
    for key in keys:
        kept = await generations(store, key)
        await collect(store, key)
        assert await generations(store, key) == kept
        assert await sound(store, key)


async def test_a_damaged_generation_keeps_the_files(tmp_path: Path) -> None:
    """It cannot say which of them it needs."""
    store = MemoryStore()
    await fill(store, tmp_path)
    left = f"pack-{'0' * 32}-1.00000000"
    await store.put_blob("tree", left, b"left")
    await damage_blob(store, "tree", (await generations(store, "tree"))[0])
    assert left not in await collect(store, "tree")


class GatedClaim(FaultyStore):
    """Told when the blob of a claim was put."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.was_put = threading.Event()

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        await super().put_blob(key, name, source)
        self.was_put.set()


async def test_a_claim_under_way_keeps_what_it_has_put(tmp_path: Path) -> None:
    """The state that it takes from the spool is in the store, its head is not."""
    inner = MemoryStore()
    spool = tmp_path / "spool"
    store = GatedClaim(inner)
    async with aiocheckpoint.open(inner, "k", spool=spool, min_interval=0) as cp:
        await cp.write(b"first")
        await cp.flush()
        first = await inner.load("k")
        await cp.write(b"s" * LARGE)
        regions = [path for path in spool.rglob("*") if path.is_file()]
        kept = {path: path.read_bytes() for path in regions}
    assert first is not None
    # as it was before the last state was stored: a kill would have left it so
    head = await inner.load("k")
    assert head is not None
    await inner.commit([Put("k", head.version, first.record)])
    await inner.delete_blobs("k", await inner.list_blobs("k"))
    for path, data in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o600)

    async def claim() -> bytes | None:
        async with aiocheckpoint.open(store, "k", spool=spool) as cp:
            return await cp.read()

    with store.held():
        claiming = asyncio.create_task(claim())
        await asyncio.to_thread(store.was_put.wait, 10)
        put = await inner.list_blobs("k")
        assert [name[:6] for name in put] == ["state-"]
        assert await collect(inner, "k") == []
        assert await inner.list_blobs("k") == put
    assert await claiming == b"s" * LARGE
    assert await sound(inner, "k")


KILLED_WITH_A_MOVED_TREE = """
from pathlib import Path
from aiocheckpoint.stores import open_store
from aiocheckpoint.testing import FaultyStore

async def bad(cp):
    await cp.write(b"first")
    raise ZeroDivisionError

store = FaultyStore(open_store(url))
async with Runtime(store) as rt:
    try:
        await rt.run(bad, key="k")
    except ZeroDivisionError:
        pass
    async with rt.open("k") as cp:
        tree = Path(args[0])
        tree.mkdir()
        (tree / "file").write_bytes(b"moved" * 1_000_000)
        await cp.save(tree, state=b"saved")
        (tree / "file").write_bytes(b"again" * 1_000_000)
        store.down = True
        await cp.save(tree, state=b"moved", move=True)
        die()
"""


async def test_a_claim_that_stores_moved_files_keeps_them(tmp_path: Path) -> None:
    """They have the names of the claim that moved them, which is the head's, and the run is over:
    only their number tells that they may yet be named."""
    url = f"file:{tmp_path / 'jobs'}"
    await asyncio.to_thread(children.run, KILLED_WITH_A_MOVED_TREE, url, tmp_path / "tree")
    inner = open_store(url)
    store = FaultyStore(inner)
    before = await inner.list_blobs("k")
    assert (await record_of(inner, "k")).status == "failed"

    async def claim() -> bytes | None:
        async with aiocheckpoint.open(store, "k") as cp:
            await cp.restore(tmp_path / "back")
            return await cp.read()

    begun = store.commit_begun(1)
    with store.held():
        claiming = asyncio.create_task(claim())
        assert await asyncio.to_thread(begun.wait, 10)
        put = set(await inner.list_blobs("k")) - set(before)
        assert {name[:5] for name in put} == {"pack-", "tree-"}
        assert not put & set(await collect(inner, "k"))
    assert await claiming == b"moved"
    assert (tmp_path / "back" / "file").read_bytes() == b"again" * 1_000_000
    await inner.aclose()


class GatedPacks(Wrapper):
    """Each pack waits until it is let through, by its turn."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.reached = 0
        self.go_on = [threading.Event() for _ in range(9)]

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        if name.startswith("pack-"):
            self.reached += 1
            await asyncio.to_thread(self.go_on[self.reached - 1].wait, 20)
        await super().put_blob(key, name, source)


async def test_a_save_under_way_keeps_what_it_builds_on(tmp_path: Path) -> None:
    """Two saves began upon the same files; the first is stored and names them no more, the second
    will name them again. A pack of the claim before looks like any that is left over."""
    inner = MemoryStore()
    same, other = tmp_path / "same", tmp_path / "other"
    for tree in (same, other):
        tree.mkdir()
    (same / "file").write_bytes(b"same" * 2_000_000)
    (other / "file").write_bytes(b"other" * 1_000_000)
    async with aiocheckpoint.open(inner, "k") as cp:
        await cp.save(same, state=b"first")
    pack = next(name for name in await inner.list_blobs("k") if name.startswith("pack-"))
    store = GatedPacks(inner)
    async with aiocheckpoint.open(store, "k", min_interval=0) as cp:
        one = asyncio.create_task(cp.save(other))
        await true(lambda: store.reached == 1)
        (same / "more").write_bytes(b"more")
        two = asyncio.create_task(cp.save(same))
        await true(lambda: store.reached == 2)
        store.go_on[0].set()
        await one
        seen = await look_at(inner, "k")
        assert seen is not None
        assert pack in seen.before - seen.named
        assert pack not in await collect(inner, "k", time.time() - 1)
        store.go_on[1].set()
        await two
        head = await record_of(inner, "k")
        assert head.files is not None
        assert pack in head.files.packs
        assert await sound(inner, "k")


class Collecting(Wrapper):
    """Before and after each call of a writer, somebody collects."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.taken = 0

    async def commit(self, batch: Sequence[Put]) -> Sequence[Version | StoreError]:
        await self._collect(batch[0].key)
        answers = await super().commit(batch)
        await self._collect(batch[0].key)
        return answers

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        await self._collect(key)
        await super().put_blob(key, name, source)
        await self._collect(key)

    async def delete_blobs(self, key: str, names: Sequence[str]) -> None:
        await self._collect(key)
        await super().delete_blobs(key, names)

    async def _collect(self, key: str) -> None:
        seen = await look_at(self.store, key)
        if seen is not None:
            taken = leftovers(seen, time.time() - 86400).removable
            self.taken += len(taken)
            await self.store.delete_blobs(key, taken)


@pytest.mark.parametrize("keep", [1, 2])
async def test_a_writer_beside_a_collector_misses_nothing(keep: int, tmp_path: Path) -> None:
    """States and files, two saves at once, claims and runs that go on: all is there, always."""
    inner = MemoryStore()
    store = Collecting(inner)
    trees = []
    for number in (1, 2):
        tree = tmp_path / f"tree{number}"
        tree.mkdir()
        (tree / "same").write_bytes(b"same" * 300_000)
        trees.append(tree)
    for attempt in range(3):
        async with aiocheckpoint.open(store, "k", keep=keep, min_interval=0) as cp:
            assert cp.resumed == (attempt > 0)
            for number in range(4):
                await cp.write(bytes([attempt, number]) * (LARGE // 2))
                await cp.flush()
                for which, tree in enumerate(trees):
                    (tree / "other").write_bytes(bytes([attempt, number, which]) * 1000)
                await asyncio.gather(*(cp.save(tree) for tree in trees))
                assert await sound(inner, "k")
            assert await cp.restore(tmp_path / f"back{attempt}") is not None
        assert await sound(inner, "k")
    assert store.taken or keep > 1, "or it would show nothing"
