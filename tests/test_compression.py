"""Compression: what is stored is smaller, what is read is the same, and no header makes us hold
more than it may."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import aiocheckpoint
from aiocheckpoint import CodecError, CorruptCheckpointError, Keyring, Runtime
from aiocheckpoint._compression import QUICK, WORTH, compress, decompress
from aiocheckpoint._files import read_manifest, store_tree
from aiocheckpoint._records import INLINE_LIMIT, Blob, Record, decode_record, encode_record
from aiocheckpoint._trees import Chunk, Manifest, decode_manifest, encode_manifest
from aiocheckpoint._unpacking import unpack
from aiocheckpoint.stores.memory import MemoryStore

from .children import read_back, run
from .support import files, run_script
from .trees import make, make_odd, seen

TEXT = b"the same again and again, "


def record_of(store: MemoryStore, key: str = "k") -> tuple[Record, bytes]:
    """The header and what lies inline, as they are stored."""
    return decode_record(key, store._heads[key].record)


def rewrite(store: MemoryStore, data: bytes | None = None, **changes: Any) -> None:
    """Change the record under its checksum, as its owner can."""
    record, inline = record_of(store)
    record = msgspec.structs.replace(record, **changes)
    frame = encode_record(record, inline if data is None else data)
    store._heads["k"] = store._heads["k"]._replace(record=frame)


# One state


@given(
    data=st.one_of(
        st.binary(max_size=600),
        st.builds(lambda part, n: part * n, st.binary(max_size=20), st.integers(0, 20_000)),
    )
)
def test_what_is_compressed_is_smaller_and_comes_back(data: bytes) -> None:
    """Anything is compressed to less and back to itself, or not at all."""
    small = compress(data)
    if small is None:
        return
    assert len(data) >= WORTH
    assert len(data) // 1024 <= len(small) < len(data)
    assert decompress(small, len(data)) == data
    assert decompress(memoryview(small), len(data)) == data


def test_what_does_not_pay_is_left_alone() -> None:
    """Small states and random ones stay as they are; nothing becomes next to nothing."""
    assert compress(b"x" * (WORTH - 1)) is None
    assert compress(os.urandom(1_000_000)) is None
    assert len(compress(bytes(10_240_000)) or b"") == 10_000


@settings(deadline=None)
@given(
    data=st.binary(max_size=40),
    size=st.integers(0, 2**63),
    claimed=st.sampled_from([None, "right", "wrong"]),
)
def test_lies_about_sizes_are_found(data: bytes, size: int, claimed: str | None) -> None:
    """Neither the record's size nor the frame's makes us hold more than a thousand times what is
    there."""
    frame = zstandard.ZstdCompressor(write_content_size=claimed is not None).compress(data * 100)
    if claimed == "right":
        size = len(data * 100) + 1
    with pytest.raises(ValueError, match=r"."):
        decompress(frame if claimed else data, size or 1)


def test_a_frame_that_asks_for_a_large_window_is_refused() -> None:
    """Memory that only a foreign compressor asks for is not given."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    data = os.urandom(9 << 20)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compress(data * 2)
    with pytest.raises(ValueError, match="memory"):
        decompress(frame, len(data) * 2)


def test_cut_and_changed_frames_are_found_or_right() -> None:
    """A frame that is cut short never gives a shorter state."""
    data = TEXT * 1000
    frame = compress(data)
    assert frame is not None
    for size in range(len(frame)):
        try:
            assert decompress(frame[:size], len(data)) == data
        except ValueError:
            pass


# Through the runtime


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("size", [0, 100, 199, 200, QUICK, 300_000, 2_000_000, 30_000_000])
async def test_states_of_any_size(size: int, keep: int) -> None:
    """Each state comes back, takes less, and says how it is stored; reading needs no option."""
    store = MemoryStore()
    state = (TEXT * (size // len(TEXT) + 1))[:size]
    async with aiocheckpoint.open(store, "k", compression="zstd", keep=keep) as cp:
        await cp.write(state)
        await cp.flush()
        assert cp.statistics().bytes == size
        latest = await cp.latest()
        assert latest is not None
        assert (latest.payload, latest.size) == (state, size)
    record, inline = record_of(store)
    assert record.compression == ("zstd" if size >= WORTH else "")
    assert record.size == (size if size >= WORTH else 0)
    assert len(inline) == (size if size < WORTH else len(compress(state) or b""))
    async with aiocheckpoint.open(store, "k", keep=keep) as cp:
        assert await cp.read() == state
        await cp.flush()
    assert record_of(store)[0].compression == ""


async def test_large_states_that_stay_large_are_blobs() -> None:
    """What is over 1 MiB compressed lies in a blob, which later claims carry on as it is."""
    store = MemoryStore()
    state = os.urandom(3_000_000).hex().encode()
    async with aiocheckpoint.open(store, "k", compression="zstd") as cp:
        await cp.write(state)
    blob = record_of(store)[0].blob
    assert blob is not None
    assert INLINE_LIMIT < blob.size < len(state) * 0.6
    for options in ({}, {"compression": "zstd"}, {}):
        async with aiocheckpoint.open(store, "k", **options) as cp:  # type: ignore[call-overload]
            assert await cp.read() == state
            await cp.flush()
            record, inline = record_of(store)
            assert (record.blob, record.compression, record.size) == (blob, "zstd", len(state))
            assert inline == b""


async def test_what_does_not_become_smaller_is_stored_plain() -> None:
    """Random states are not marked, nor are they larger."""
    store = MemoryStore()
    for size in (1000, 3_000_000):
        state = os.urandom(size)
        async with aiocheckpoint.open(store, "k", compression="zstd") as cp:
            await cp.write(state)
        record, inline = record_of(store)
        assert (record.compression, record.size) == ("", 0)
        assert inline == (state if size == 1000 else b"")


async def test_only_what_is_stored_is_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand writes that are coalesced cost no more compressing than their commits."""
    calls = []

    def counted(data: bytes) -> bytes | None:
        calls.append(len(data))
        return compress(data)

    monkeypatch.setattr("aiocheckpoint._commits.compress", counted)
    store = MemoryStore()
    async with aiocheckpoint.open(store, "k", compression="zstd", min_interval=60) as cp:
        for number in range(1000):
            await cp.write(TEXT * 10 + b"%d" % number)
        await cp.flush()
        assert cp.statistics().stored == 1000
    assert 1 <= len(calls) <= 3


LIES: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    "too large": (CorruptCheckpointError, {"size": 1 << 60}),
    "a byte more": (CorruptCheckpointError, {"size": 30_001}),
    "a byte less": (CorruptCheckpointError, {"size": 29_999}),
    "none": (CorruptCheckpointError, {"size": 0}),
    "negative": (CorruptCheckpointError, {"size": -1}),
    "no frame": (CorruptCheckpointError, {"data": b"not compressed" * 100}),
    "nothing": (CorruptCheckpointError, {"data": b""}),
    "another way": (CodecError, {"compression": "brotli"}),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_record_that_lies_is_damage(lie: str) -> None:
    """A header whose size is not the state's is damage, and an unknown name asks for an upgrade."""
    store = MemoryStore()
    async with aiocheckpoint.open(store, "k", compression="zstd") as cp:
        await cp.write(os.urandom(15_000).hex().encode())
    error, changes = LIES[lie]
    rewrite(store, **changes)
    with pytest.raises(error):
        async with aiocheckpoint.open(store, "k"):
            pass


async def test_a_damaged_compressed_state_falls_back() -> None:
    """A good generation stands in, as for any damage."""
    store = MemoryStore()
    async with aiocheckpoint.open(store, "k", compression="zstd", keep=2) as cp:
        await cp.write(TEXT * 100)
    rewrite(store, size=5)
    async with aiocheckpoint.open(store, "k", keep=2) as cp:
        assert await cp.read() == TEXT * 100


# Files


@pytest.mark.parametrize("encrypted", [False, True])
async def test_trees_are_compressed_chunk_by_chunk(tmp_path: Path, encrypted: bool) -> None:
    """Trees come back as they were; only what changed is stored again; all takes less."""
    tree = make_odd(tmp_path / "tree")
    make(tree, text=TEXT * 500_000, random=os.urandom(5_000_000), many__a=TEXT * 20, many__b=b"b")
    options: dict[str, Any] = {"compression": "zstd"}
    reading: dict[str, Any] = {}
    if encrypted:
        reading = {"encryption": Keyring({"a": Keyring.generate_key()})}
        options.update(reading)
    store = MemoryStore()

    def stored() -> int:
        return sum(len(blob) for blob in list(store._blobs["k"].values()))

    async with aiocheckpoint.open(store, "k", **options) as cp:
        await cp.save(tree, state=b"one")
        first = stored()
        assert first < 15_500_000  # 28 MB, half of which is text
        make(tree, many__b=b"changed")
        await cp.save(tree, state=b"two")
        assert stored() < first + 100_000
    async with aiocheckpoint.open(store, "k", **reading) as cp:
        await cp.restore(tmp_path / "back")
        assert seen(tmp_path / "back") == seen(tree)
        with (tree / "text").open("r+b") as file:  # its second chunk alone, and not compressed
            file.seek(5 << 20)
            file.write(b"changed")
        await cp.save(tree)
        await cp.restore(tmp_path / "again")
        assert seen(tmp_path / "again") == seen(tree)
    async with aiocheckpoint.open(store, "k", **options) as cp:
        await cp.restore(tmp_path / "last")
    assert seen(tmp_path / "last") == seen(tree)


def test_a_manifest_that_lies_about_compression_is_refused(tmp_path: Path) -> None:
    """Pieces that are larger in the pack than in the file, or in an unknown way, are not read."""
    tree = make(tmp_path / "tree", text=TEXT * 1000)
    out = tmp_path / "out"

    async def main() -> None:
        store = MemoryStore()
        stored = await store_tree(store, "k", "t-1", tree, None, compression="zstd")
        manifest = await read_manifest(store, "k", stored)
        assert manifest.compression == "zstd"
        (chunk,) = manifest.entries[1].chunks
        assert 0 < chunk.compressed < chunk.size
        pack = store._blobs["k"][stored.packs[0]]

        async def read(name: str, start: int, size: int) -> AsyncIterator[bytes]:
            yield pack[start : start + size]

        for compressed in (chunk.size, chunk.size + 1, -1):
            lie = _with(manifest, msgspec.structs.replace(chunk, compressed=compressed))
            with pytest.raises(CorruptCheckpointError, match="is compressed to"):
                decode_manifest("k", encode_manifest(lie))
        for size in (chunk.size + 1, 4 << 20, chunk.compressed + 1):
            lie = _with(manifest, msgspec.structs.replace(chunk, size=size))
            with pytest.raises(CorruptCheckpointError, match="cannot be decompressed"):
                await unpack("k", lie, out, read)
        plain = _with(manifest, msgspec.structs.replace(chunk, compressed=0, size=len(pack)))
        with pytest.raises(CorruptCheckpointError, match="are damaged"):
            await unpack("k", plain, out, read)
        with pytest.raises(CodecError, match="upgrade"):
            await unpack("k", msgspec.structs.replace(manifest, compression="brotli"), out, read)
        assert not out.exists()
        await unpack("k", manifest, out, read)

    asyncio.run(main())
    assert seen(out) == seen(tree)


def test_a_list_of_more_files_than_the_record_says_is_refused(tmp_path: Path) -> None:
    """One small piece that is listed again and again comes to no more than `files_size` says."""
    tree = make(tmp_path / "tree", text=bytes(4 << 20))

    async def main() -> None:
        store = MemoryStore()
        stored = await store_tree(store, "k", "t-1", tree, None, compression="zstd")
        manifest = await read_manifest(store, "k", stored)
        root, entry = manifest.entries
        bomb = root, msgspec.structs.replace(entry, chunks=entry.chunks * 1000)
        frame = encode_manifest(msgspec.structs.replace(manifest, entries=bomb))
        name = stored.manifest.name
        await store.put_blob("k", name, frame)
        blob = Blob(name, len(frame), xxhash.xxh3_128_digest(frame))
        with pytest.raises(CorruptCheckpointError, match="number, size or packs"):
            await read_manifest(store, "k", msgspec.structs.replace(stored, manifest=blob))

    asyncio.run(main())


def _with(manifest: Manifest, chunk: Chunk) -> Manifest:
    root, entry = manifest.entries
    entries = root, msgspec.structs.replace(entry, chunks=(chunk,))
    return msgspec.structs.replace(manifest, entries=entries)


# Options


@pytest.mark.parametrize("wrong", ["gzip", "", True, 3])
def test_unknown_compression_is_refused(wrong: Any, tmp_path: Path) -> None:
    """The option is `zstd` or None."""
    with pytest.raises(ValueError, match="'zstd', or None"):
        Runtime(tmp_path, compression=wrong)


def test_without_zstandard_the_errors_name_the_extra(tmp_path: Path) -> None:
    """Asked for, it is an ImportError; met in a store, a CodecError, and not damage."""
    script = run_script(
        """
import asyncio, sys
import aiocheckpoint

async def main():
    async with aiocheckpoint.open(sys.argv[1], "k", compression="zstd") as cp:
        await cp.write(b"x" * 1000)
    sys.modules["zstandard"] = None
    try:
        aiocheckpoint.open(sys.argv[1], "k", compression="zstd")
    except ImportError as exc:
        print(exc)
    try:
        async with aiocheckpoint.open(sys.argv[1], "k") as cp:
            pass
    except aiocheckpoint.CodecError as exc:
        print(exc)

asyncio.run(main())
""",
        f"file:{tmp_path}/store",
    )
    lines = script.stdout.splitlines()
    assert len(lines) == 2
    assert all("pip install 'aiocheckpoint[zstd]'" in line for line in lines)


def test_a_killed_process_has_its_state_plain_in_the_spool(tmp_path: Path) -> None:
    """What was staged is promoted, and compressed as it is stored."""
    url = f"file:{tmp_path}/store"
    run(
        """
    async with aiocheckpoint.open(url, "k", compression="zstd", min_interval=1000) as cp:
        await cp.write(b"1" * 1000)
        await cp.flush()
        await cp.write(b"2" * 1000)
        die()
""",
        url,
    )
    assert read_back(url, compression="zstd") == b"2" * 1000
    assert read_back(url) == b"2" * 1000


def test_blocking_and_scripts_compress(tmp_path: Path) -> None:
    """The other two ways in take the option as well."""
    url = f"file:{tmp_path}/store"
    with aiocheckpoint.blocking.open(url, "k", compression="zstd") as cp:
        cp.write(TEXT * 1000)
    assert not [path for path in files(tmp_path) if TEXT * 2 in path.read_bytes()]

    async def task(cp: aiocheckpoint.Checkpointer[bytes]) -> bytes | None:
        return await cp.read()

    assert aiocheckpoint.run(task, store=url, key="k", compression="zstd") == TEXT * 1000
