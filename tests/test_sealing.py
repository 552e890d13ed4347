"""What is sealed: whatever is changed, cut off, exchanged or moved does not open."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiocheckpoint import CodecError, CorruptCheckpointError, Keyring
from aiocheckpoint._keys import store_name
from aiocheckpoint._records import decode_record
from aiocheckpoint._sealed import SealedStore
from aiocheckpoint._sealing import HEAD, SEGMENT, TAG, Place, seal, unseal
from aiocheckpoint.abc import Store
from aiocheckpoint.stores.file import FileStore
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.stores.sqlite import SqliteStore
from aiocheckpoint.testing.contract import StoreContract, put, read

pytestmark = pytest.mark.anyio

KEYRING = Keyring({"new": Keyring.generate_key(), "old": Keyring.generate_key()})
OTHER = Keyring({"new": Keyring.generate_key()})
PLACE = Place("record", "k")
T = TypeVar("T")

sizes = st.one_of(
    st.integers(0, 100),
    st.sampled_from([SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT, 5 * SEGMENT + 7]),
)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Stores run on the I/O thread's loop, which is asyncio."""
    return "asyncio"


def content(size: int) -> bytes:
    """Bytes of which no two pieces of a segment's size are alike."""
    return (b"%07d|" * (size // 8 + 1) % tuple(range(size // 8 + 1)))[:size]


class TestSealedMemoryStore(StoreContract):
    """A sealed store is a store."""

    in_memory = True
    inner: MemoryStore | None = None

    async def make_store(self) -> Store:
        self.inner = self.inner or MemoryStore()
        return SealedStore(self.inner, KEYRING)

    async def raw_head(self, store: Store, key: str) -> bytes | None:
        assert self.inner is not None
        head = self.inner._heads.get(key)
        return head and unseal(KEYRING, Place("record", key), head.record)


class TestSealedFileStore(StoreContract):
    """So it is on the disk."""

    @pytest.fixture(autouse=True)
    def _path(self, tmp_path: Path) -> None:
        self.path = tmp_path / "jobs"

    async def make_store(self) -> Store:
        return SealedStore(FileStore(self.path), KEYRING)

    async def raw_head(self, store: Store, key: str) -> bytes | None:
        heads = sorted((self.path / store_name(key)).glob("head.*"))
        record = heads[-1].read_bytes() if heads else None
        if not record or record.startswith(b"aiocheckpoint: "):
            return None
        return unseal(KEYRING, Place("record", key), record)


class TestSealedSqliteStore(StoreContract):
    """And in a database, which commits in batches."""

    @pytest.fixture(autouse=True)
    def _path(self, tmp_path: Path) -> None:
        self.path = tmp_path / "jobs.db"

    async def make_store(self) -> Store:
        return SealedStore(SqliteStore(self.path), KEYRING)

    async def raw_head(self, store: Store, key: str) -> bytes | None:
        connection = sqlite3.connect(self.path)
        try:
            select = "SELECT record FROM aiocheckpoint_heads WHERE key=?"
            row: tuple[bytes] | None = connection.execute(select, (key,)).fetchone()
        finally:
            connection.close()
        return row and unseal(KEYRING, Place("record", key), row[0])


@settings(deadline=None, max_examples=60)
@given(size=sizes)
def test_what_is_sealed_opens(size: int) -> None:
    """A whole object of any size comes back, is never the same twice, and shows nothing."""
    data = content(size)
    sealed = seal(KEYRING, PLACE, data)
    segments = max(1, -(-size // SEGMENT))
    assert len(sealed) == HEAD + size + segments * TAG
    assert unseal(KEYRING, PLACE, sealed) == data
    assert seal(KEYRING, PLACE, data) != sealed
    if size > 16:
        assert data[:16] not in sealed


@pytest.mark.parametrize("size", [0, 1, 20])
def test_every_flipped_bit_is_found(size: int) -> None:
    """No bit of a sealed object may be another: not of its head, text or tag."""
    sealed = seal(KEYRING, PLACE, content(size))
    for bit in range(len(sealed) * 8):
        forged = bytearray(sealed)
        forged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptCheckpointError):
            unseal(KEYRING, PLACE, bytes(forged))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_flipped_bit_of_a_large_object_is_found(data: st.DataObject) -> None:
    """So it is wherever it lies in many segments."""
    sealed = bytearray(seal(KEYRING, PLACE, content(2 * SEGMENT + 5)))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptCheckpointError):
        unseal(KEYRING, PLACE, bytes(sealed))


def test_every_truncation_is_found() -> None:
    """An object that was cut short after any byte does not open, nor does one with a byte more."""
    sealed = seal(KEYRING, PLACE, content(50))
    for size in range(len(sealed)):
        with pytest.raises(CorruptCheckpointError):
            unseal(KEYRING, PLACE, sealed[:size])
    with pytest.raises(CorruptCheckpointError):
        unseal(KEYRING, PLACE, sealed + b"\0")
    long = seal(KEYRING, PLACE, content(3 * SEGMENT))
    for segments in range(3):  # where only the mark of the last one tells
        with pytest.raises(CorruptCheckpointError):
            unseal(KEYRING, PLACE, long[: HEAD + segments * (SEGMENT + TAG)])


def test_segments_cannot_be_moved() -> None:
    """Segments that change places, are repeated, left out, or come from elsewhere do not open."""
    ones, twos = (seal(KEYRING, PLACE, content(4 * SEGMENT)) for _ in range(2))
    head, a, b, c, d = _parts(ones)
    others = _parts(twos)
    for forged in (
        [head, b, a, c, d],
        [head, a, c, b, d],
        [head, a, a, c, d],
        [head, a, b, d],
        [head, b, c, d],
        [head, a, b, c],
        [head, a, b, c, d, d],
        [head, a, others[2], c, d],
        [others[0], a, b, c, d],
    ):
        with pytest.raises(CorruptCheckpointError):
            unseal(KEYRING, PLACE, b"".join(forged))
    assert unseal(KEYRING, PLACE, b"".join([head, a, b, c, d])) == content(4 * SEGMENT)


def _parts(sealed: bytes) -> list[bytes]:
    starts = range(HEAD, len(sealed), SEGMENT + TAG)
    return [sealed[:HEAD], *(sealed[start : start + SEGMENT + TAG] for start in starts)]


@pytest.mark.parametrize(
    "place",
    [
        Place("record", "other"),
        Place("record", "k", "name"),
        Place("blob", "k"),
        Place("blob", "k", "name"),
        Place("record", ""),
    ],
)
def test_nothing_opens_elsewhere(place: Place) -> None:
    """A record does not open as another key's, nor as a blob, nor the other way round."""
    with pytest.raises(CorruptCheckpointError):
        unseal(KEYRING, place, seal(KEYRING, PLACE, b"state"))
    with pytest.raises(CorruptCheckpointError):
        unseal(KEYRING, PLACE, seal(KEYRING, place, b"state"))


def test_any_key_of_the_keyring_opens() -> None:
    """What an old key sealed is read with it; what it is sealed under is the primary."""
    secret = Keyring.generate_key()
    old = Keyring({"2025-01": secret})
    both = Keyring({"2026-11": Keyring.generate_key(), "2025-01": secret})
    assert unseal(both, PLACE, seal(old, PLACE, b"state")) == b"state"
    with pytest.raises(CodecError, match="under the key '2026-11', and the keyring has 2025-01"):
        unseal(old, PLACE, seal(both, PLACE, b"state"))
    assert Keyring({"a": secret, "b": secret}, primary="b").ids == ("b", "a")


def test_another_key_of_the_same_id_does_not_open() -> None:
    """It is no damage, for which an earlier generation would stand in."""
    with pytest.raises(CodecError, match="another key of the same id, 'new'"):
        unseal(OTHER, PLACE, seal(KEYRING, PLACE, b"state"))


def test_what_is_not_sealed_is_told_apart() -> None:
    """Plain records are refused, foreign bytes are damage, a later format says so."""
    with pytest.raises(CodecError, match="not encrypted"):
        unseal(KEYRING, PLACE, b"\x89AIOCKP\n and so on")
    for foreign in (b"", b"x", b"x" * 1000, b"\x89AIOCKE\n"):
        with pytest.raises(CorruptCheckpointError):
            unseal(KEYRING, PLACE, foreign)


async def test_ranges_are_slices() -> None:
    """Any range of a sealed blob is what the same range of its bytes is."""
    store = SealedStore(MemoryStore(), KEYRING)
    data = content(2 * SEGMENT + 100)
    edges = [0, 1, 50, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 2 * SEGMENT + 99]
    edges += [len(data), len(data) + 1, 3 * SEGMENT, 5 * SEGMENT]
    for total in (0, 1, SEGMENT, 2 * SEGMENT, len(data)):
        await store.put_blob("k", "b", data[:total])
        for start in edges:
            assert await read(store.open_blob("k", "b", start)) == data[start:total]
            for size in (0, 1, 100, SEGMENT, SEGMENT + 1, 2 * SEGMENT):
                part = await read(store.open_blob("k", "b", start, size))
                assert part == data[:total][start : start + size], (total, start, size)


class _Narrow(MemoryStore):
    """A store whose blobs come in chunks of a size of its own, and that counts what it gave."""

    def __init__(self, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk
        self.given = 0

    async def open_blob(
        self, key: str, name: str, start: int = 0, size: int | None = None
    ) -> AsyncIterator[bytes]:
        async for chunk in super().open_blob(key, name, start, size):
            self.given += len(chunk)
            for at in range(0, len(chunk), self.chunk):
                yield chunk[at : at + self.chunk]


@settings(deadline=None, max_examples=40)
@given(
    total=sizes,
    start=st.integers(0, 6 * SEGMENT),
    size=st.one_of(st.none(), st.integers(0, 3 * SEGMENT)),
    chunk=st.sampled_from([777_777, SEGMENT, SEGMENT + TAG, 1 << 30]),
    cuts=st.lists(st.integers(1, 2 * SEGMENT), max_size=8),
)
def test_ranges_of_any_stream(
    total: int, start: int, size: int | None, chunk: int, cuts: list[int]
) -> None:
    """However the chunks come in and out, a range is a slice, and reads no more than it touches."""
    data = content(total)

    async def chunks() -> AsyncIterator[bytes]:
        at = 0
        for cut in [*cuts, total]:
            if part := data[at : at + cut]:
                yield part
            at += cut

    async def main() -> None:
        inner = _Narrow(chunk)
        store = SealedStore(inner, KEYRING)
        await store.put_blob("k", "b", chunks())
        end = None if size is None else start + size
        assert await read(store.open_blob("k", "b", start, size)) == data[start:end]
        if size is not None and start < total:
            assert inner.given <= size + 2 * (SEGMENT + TAG) + 6 * TAG + 2 * HEAD

    asyncio.run(main())


async def test_a_range_is_verified() -> None:
    """A range with a changed byte in any segment that it touches fails; another one does not."""
    inner = MemoryStore()
    store = SealedStore(inner, KEYRING)
    data = content(3 * SEGMENT)
    await store.put_blob("k", "b", data)
    sealed = bytearray(inner._blobs["k"]["b"])
    sealed[HEAD + SEGMENT + TAG + 5] ^= 1
    inner._blobs["k"]["b"] = bytes(sealed)
    assert await read(store.open_blob("k", "b", 0, SEGMENT)) == data[:SEGMENT]
    assert await read(store.open_blob("k", "b", 2 * SEGMENT)) == data[2 * SEGMENT :]
    for start, size in ((0, SEGMENT + 1), (SEGMENT, 1), (SEGMENT + 9, 5), (2 * SEGMENT - 1, 1)):
        with pytest.raises(CorruptCheckpointError, match="stored blob b of 'k' is damaged"):
            await read(store.open_blob("k", "b", start, size))


async def test_a_range_past_a_cut_is_damage() -> None:
    """Whatever was cut off, a range that lay there is damage, and not merely short."""
    inner = MemoryStore()
    store = SealedStore(inner, KEYRING)
    await store.put_blob("k", "b", content(3 * SEGMENT))
    whole = inner._blobs["k"]["b"]
    for size in (0, 9, HEAD, HEAD + 1, HEAD + SEGMENT + TAG, HEAD + 2 * (SEGMENT + TAG)):
        inner._blobs["k"]["b"] = whole[:size]
        for start in (0, SEGMENT, 2 * SEGMENT, 2 * SEGMENT + 5):
            if size == HEAD + 2 * (SEGMENT + TAG) and start == 0:
                continue  # the first segment is there, and not known to be the last
            with pytest.raises(CorruptCheckpointError):
                await read(store.open_blob("k", "b", start, 10))


async def test_blobs_open_under_their_name_alone() -> None:
    """A blob that was copied to another name or key does not open there."""
    inner = MemoryStore()
    store = SealedStore(inner, KEYRING)
    await store.put_blob("k", "b", b"x" * 100)
    inner._blobs["k"]["c"] = inner._blobs["k"]["b"]
    inner._blobs["other"] = {"b": inner._blobs["k"]["b"]}
    for key, name in (("k", "c"), ("other", "b")):
        with pytest.raises(CorruptCheckpointError):
            await read(store.open_blob(key, name))


async def test_a_record_that_does_not_open_has_its_version() -> None:
    """What cannot be opened is told when it is decoded; its version is known, to replace it."""
    inner = MemoryStore()
    store = SealedStore(inner, KEYRING)
    version = await put(inner, "k", None, b"rubbish")
    head = await store.load("k")
    assert head is not None
    assert head.version == version
    with pytest.raises(CorruptCheckpointError, match="not an encrypted one"):
        decode_record("k", head.record)
    await store.delete("k", version)


async def test_a_large_batch_is_sealed_record_by_record() -> None:
    """Records of one batch do not open in each other's place."""
    inner = MemoryStore()
    store = SealedStore(inner, KEYRING)
    for number in range(40):
        await put(store, f"{number}", None, os.urandom(100_000 if number % 9 == 0 else 10))
    inner._heads["1"] = inner._heads["2"]
    head = await store.load("1")
    assert head is not None
    with pytest.raises(CorruptCheckpointError):
        decode_record("1", head.record)
