"""Verifying finds every damage, and takes nothing for damage that was collected meanwhile."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest

import aiocheckpoint
from aiocheckpoint._contents import Check, Part, Piece
from aiocheckpoint._verifying import Report, verify, verify_key
from aiocheckpoint.abc import Put, Store
from aiocheckpoint.stores.memory import MemoryStore

from .filled import KEYS, LARGE, Overtaken, damage_blob, damage_head, fill, generations, record_of


def ignore(size: int) -> None:
    """Counts nothing."""


async def damaged(store: Store) -> dict[str, dict[str, str]]:
    """By key and place, what is wrong in a store."""
    found: dict[str, Report] = {}
    async with aclosing(verify(store, "", ignore)) as reports:
        async for report in reports:
            found[report.key] = report
    assert sorted(found) == KEYS
    return {key: dict(found[key].damage) for key in KEYS if found[key].damage}


async def test_a_sound_store_is_sound(store: Store, tmp_path: Path) -> None:
    """Nothing is reported of a store that nobody harmed, and all of it was read."""
    await fill(store, tmp_path)
    assert await damaged(store) == {}
    report = await verify_key(store, "tree", ignore)
    assert report is not None
    assert report.size > 5 << 20
    assert report.records == 1 + len(await generations(store, "tree"))
    assert report.unnamed == []
    assert await verify_key(store, "absent", ignore) is None


async def test_each_damage_is_named(store: Store, tmp_path: Path) -> None:
    """A bit of a head, state, list of files, pack or generation, and each that is missing."""
    await fill(store, tmp_path)
    tree = (await record_of(store, "tree")).files
    large = (await record_of(store, "large")).blob
    assert tree is not None
    assert large is not None
    await damage_head(store, "small")
    assert list((await damaged(store))["small"]) == ["head"]
    await damage_blob(store, "large", large.name)
    found = await damaged(store)
    assert found["large"] == {large.name: "the state is damaged: its checksum does not match"}
    await damage_blob(store, "tree", tree.packs[0], at=3 << 20)
    found = await damaged(store)
    assert found["tree"] == {
        tree.packs[0]: "a pack of files is damaged: its checksum does not match"
    }
    await damage_blob(store, "tree", tree.manifest.name)
    assert set((await damaged(store))["tree"]) == {tree.packs[0], tree.manifest.name}
    generation = (await generations(store, "done/1"))[0]
    await damage_blob(store, "done/1", generation)
    assert list((await damaged(store))["done/1"]) == [generation]
    await store.delete_blobs("large", [large.name])
    assert (await damaged(store))["large"] == {large.name: "the state is missing"}
    assert set(await damaged(store)) == {"done/1", "large", "small", "tree"}


async def test_a_blob_of_another_length_is_damage(store: Store, tmp_path: Path) -> None:
    """One that is cut short, or goes on, is told as such, and not read to its end."""
    await fill(store, tmp_path)
    large = (await record_of(store, "large")).blob
    assert large is not None
    await store.put_blob("large", large.name, b"\2" * 10)
    assert "cut short: 10 of" in (await damaged(store))["large"][large.name]
    await store.put_blob("large", large.name, b"\2" * (LARGE + 1))
    assert "longer" in (await damaged(store))["large"][large.name]


async def test_what_nothing_names_is_counted_apart(store: Store, tmp_path: Path) -> None:
    """A blob that no record names is no damage."""
    await fill(store, tmp_path)
    await store.put_blob("small", "state-" + "a" * 32 + "-1-1", b"left")
    report = await verify_key(store, "small", ignore)
    assert report is not None
    assert report.damage == []
    assert report.unnamed == ["state-" + "a" * 32 + "-1-1"]


@pytest.mark.parametrize("times", [1, 4])
async def test_what_is_collected_meanwhile_is_no_damage(times: int) -> None:
    """The head moved on between the look and the reading of its state."""
    inner = MemoryStore()
    async with aiocheckpoint.open(inner, "k", min_interval=0) as cp:
        await cp.write(b"x" * LARGE)
        await cp.flush()
        store = Overtaken(inner, cp, times)
        report = await verify_key(store, "k", ignore)
    assert store.left == 0
    assert report is not None
    assert report.damage == []


async def test_a_record_of_a_later_format_is_reported() -> None:
    """It cannot be verified: that is said, with what to do."""
    store = MemoryStore()
    async with aiocheckpoint.open(store, "k") as cp:
        await cp.write(b"x")
    head = await store.load("k")
    assert head is not None
    import xxhash

    later = head.record[:8] + b"\x02\x00" + head.record[10:-16]
    later += xxhash.xxh3_128_digest(later)
    await store.commit([Put("k", head.version, later)])
    report = await verify_key(store, "k", ignore)
    assert report is not None
    assert "upgrade aiocheckpoint" in report.damage[0].what


@pytest.mark.parametrize("step", [1, 3, 7, 100])
def test_pieces_are_checked_wherever_the_chunks_end(step: int) -> None:
    """Gaps, neighbours and overlaps; the bytes come in steps of any size."""
    import xxhash

    data = bytes(range(100))

    def piece(start: int, size: int) -> Piece:
        return Piece(start, size, xxhash.xxh3_128_digest(data[start : start + size]))

    pieces = frozenset({piece(0, 10), piece(10, 5), piece(12, 30), piece(60, 40)})
    part = Part("p", "a pack", 100, pieces=pieces)

    def fault(of: bytes) -> str | None:
        check = Check(part)
        for at in range(0, len(of), step):
            check.feed(of[at : at + step])
        return check.fault()

    assert fault(data) is None
    for at in (0, 11, 30, 99):
        bad = bytearray(data)
        bad[at] ^= 1
        assert fault(bytes(bad)) == "is damaged: its checksum does not match"
    bad = bytearray(data)
    bad[50] ^= 1
    assert fault(bytes(bad)) is None, "what no file is made of may be anything"
    assert fault(data[:99]) == "is cut short: 99 of 100 bytes"
    assert fault(data + b"x") == "is longer than 100 bytes"
