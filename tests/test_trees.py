"""Trees: manifests that lie, links that lead out, sources that change, targets that are taken."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from aiocheckpoint import CodecError, CorruptCheckpointError
from aiocheckpoint._files import restore_tree, store_tree
from aiocheckpoint._packing import Packing, lasting
from aiocheckpoint._trees import (
    CHUNK,
    Chunk,
    Entry,
    Found,
    Manifest,
    Pack,
    decode_manifest,
    encode_manifest,
    link_fault,
    scan,
)
from aiocheckpoint._unpacking import unpack
from aiocheckpoint.stores.memory import MemoryStore

from .support import files
from .trees import make, make_odd, seen

ROOT = Entry(b"", "directory", 0o755)
PACKS = (Pack("p", 100),)


def nothing(name: str, start: int, size: int) -> AsyncIterator[bytes]:
    raise AssertionError("there is nothing to read")


def chunk(**changes: Any) -> Chunk:
    return msgspec.structs.replace(Chunk(0, 0, 10, bytes(16)), **changes)


def a_file(*chunks: Chunk, path: bytes = b"f", mode: int = 0o644) -> Entry:
    return Entry(path, "file", mode, 0, b"", chunks)


def link(path: bytes, target: bytes) -> Entry:
    return Entry(path, "link", target=target)


# Manifests.

LIES: dict[str, list[Entry]] = {
    "no entries": [],
    "no root": [a_file()],
    "a link as root": [link(b"", b"x")],
    "more than a file": [a_file(path=b""), a_file()],
    "absolute": [ROOT, a_file(path=b"/etc/passwd")],
    "up": [ROOT, a_file(path=b"../f")],
    "up, later": [ROOT, Entry(b"d", "directory"), a_file(path=b"d/../../f")],
    "itself": [ROOT, a_file(path=b".")],
    "no name": [ROOT, Entry(b"d", "directory"), a_file(path=b"d/")],
    "a NUL": [ROOT, a_file(path=b"a\\0b".replace(b"\\0", b"\0"))],
    "in no directory": [ROOT, a_file(path=b"d/f")],
    "before its directory": [ROOT, a_file(path=b"d/f"), Entry(b"d", "directory")],
    "in a file": [ROOT, a_file(path=b"d"), a_file(path=b"d/f")],
    "through a link": [ROOT, link(b"d", b"x"), a_file(path=b"d/f")],
    "a link over a directory": [ROOT, Entry(b"d", "directory"), link(b"d", b"x")],
    "twice": [ROOT, a_file(), a_file()],
    "the root again": [ROOT, ROOT],
    "an absolute link": [ROOT, link(b"l", b"/etc")],
    "a link up": [ROOT, link(b"l", b"..")],
    "a link up, later": [ROOT, Entry(b"d", "directory"), link(b"d/l", b"../../x")],
    "a link down and up": [ROOT, link(b"here", b"."), link(b"l", b"here/../..")],
    "a link to nothing": [ROOT, link(b"l", b"")],
    "a directory with contents": [ROOT, Entry(b"d", "directory", 0o755, 0, b"", (chunk(),))],
    "set-uid": [ROOT, a_file(mode=0o4755)],
    "a negative mode": [ROOT, a_file(mode=-1)],
    "no such pack": [ROOT, a_file(chunk(pack=1))],
    "a negative pack": [ROOT, a_file(chunk(pack=-1))],
    "before its pack": [ROOT, a_file(chunk(start=-1))],
    "past its pack": [ROOT, a_file(chunk(start=91))],
    "an empty chunk": [ROOT, a_file(chunk(size=0))],
    "a huge chunk": [ROOT, a_file(chunk(size=CHUNK + 1))],
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_is_refused(lie: str) -> None:
    """Nothing of it can be restored: neither outside of the tree, nor what no tree is."""
    frame = encode_manifest(Manifest((Pack("p", CHUNK + 100),)[:1], tuple(LIES[lie])))
    if lie == "past its pack":
        frame = encode_manifest(Manifest(PACKS, tuple(LIES[lie])))
    with pytest.raises(CorruptCheckpointError, match="list of files of 'k' is refused"):
        decode_manifest("k", frame)


def test_a_manifest_survives_its_frame() -> None:
    """What is encoded is decoded, whatever bytes names have."""
    entries = (ROOT, a_file(chunk(), path=b"\xff\n"), link(b"l", b"\xff\n"))
    manifest = Manifest(PACKS, entries)
    assert decode_manifest("k", encode_manifest(manifest)) == manifest


def test_every_flipped_bit_of_a_manifest_is_noticed() -> None:
    """Its checksum covers all of it."""
    good = encode_manifest(Manifest(PACKS, (ROOT, a_file(chunk()))))
    for position in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            with pytest.raises(CorruptCheckpointError):
                decode_manifest("k", bytes(bad))
    for size in range(len(good)):
        with pytest.raises(CorruptCheckpointError):
            decode_manifest("k", good[:size])


def test_a_later_format_says_so() -> None:
    """A manifest of a format to come is not damage: upgrade."""
    body = b"\x89AIOCKT\n" + struct.pack("<H", 2) + b"whatever it is"
    with pytest.raises(CodecError, match="upgrade aiocheckpoint"):
        decode_manifest("k", body + xxhash.xxh3_128_digest(body))


@given(
    junk=st.recursive(
        st.none() | st.integers(-9, 9) | st.binary(max_size=9), st.lists, max_leaves=9
    )
)
def test_junk_with_a_good_checksum_is_refused(junk: object) -> None:
    """What is no manifest is damage, however well it is framed."""
    body = b"\x89AIOCKT\n" + struct.pack("<H", 1) + msgspec.msgpack.encode(junk)
    with pytest.raises(CorruptCheckpointError):
        decode_manifest("k", body + xxhash.xxh3_128_digest(body))


names = st.sampled_from([b"a", b"b", b"c", b"..", b".", b"l"])
paths = st.lists(names, min_size=1, max_size=4).map(b"/".join)


@settings(max_examples=300, deadline=None)
@given(
    entries=st.lists(
        st.builds(Entry, paths, st.just("directory"), st.just(0o755))
        | st.builds(link, paths, paths | paths.map(lambda path: b"/" + path)),
        max_size=8,
    )
)
def test_no_link_of_a_restored_tree_leads_out(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry]
) -> None:
    """Whatever links a manifest has: it is refused, or each of them, followed through all the
    others, stays in the tree."""
    frame = encode_manifest(Manifest((), (ROOT, *sorted(entries, key=lambda e: e.path))))
    try:
        manifest = decode_manifest("k", frame)
    except CorruptCheckpointError:
        return
    base = tmp_path_factory.mktemp("links")
    root = base / "root"
    asyncio.run(unpack("k", manifest, root, nothing))
    assert os.listdir(base) == ["root"]
    for entry in manifest.entries:
        if entry.kind == "link":
            path = os.path.join(os.fsencode(root), entry.path)
            real = os.path.realpath(path)
            assert real == os.fsencode(root) or real.startswith(os.fsencode(root) + b"/")


@pytest.mark.parametrize(
    ("path", "target", "allowed"),
    [
        (b"l", b"a", True),
        (b"l", b"a/b", True),
        (b"l", b"./a", True),
        (b"l", b".", True),
        (b"d/l", b"..", True),
        (b"d/l", b"../a", True),
        (b"d/e/l", b"../../a", True),
        (b"l", b"..", False),
        (b"d/l", b"../..", False),
        (b"d/l", b"a/..", False),
        (b"l", b"/", False),
        (b"l", b"//a", False),
    ],
)
def test_which_links_stay_within(path: bytes, target: bytes, allowed: bool) -> None:
    """Up at the beginning only, and no further than to the root."""
    assert (link_fault(path, target) is None) == allowed


# Sources.


async def save(root: Path, store: MemoryStore | None = None) -> None:
    await store_tree(store or MemoryStore(), "k", "t-1", root, None)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path may be 108 bytes long
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def device(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a device")
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))


@pytest.mark.parametrize(
    ("put", "says"),
    [
        (fifo, "is a FIFO"),
        (listening, "is a socket"),
        (device, "is a device"),
        (lambda path: path.symlink_to("/etc/passwd"), "which is absolute"),
        (lambda path: path.symlink_to("../outside"), "which leads out of the tree"),
    ],
    ids=["fifo", "socket", "device", "absolute", "out"],
)
def test_what_cannot_be_saved_is_named(
    tmp_path: Path, put: Callable[[Path], None], says: str
) -> None:
    """It is said which it is and what to do; nothing is opened, nothing waits."""
    source = make(tmp_path / "source", a=b"a")
    put(source / "odd")
    with pytest.raises(OSError, match=says) as caught:
        scan(source)
    assert caught.value.filename == "odd"
    if not (source / "odd").is_symlink():
        with pytest.raises(OSError, match="only files and directories can be saved"):
            scan(source / "odd")


def test_missing_and_dangling_sources_are_named(tmp_path: Path) -> None:
    """As Python names them."""
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name, error in (("missing", FileNotFoundError), ("dangling", FileNotFoundError)):
        with pytest.raises(error):
            scan(tmp_path / name)
    with pytest.raises(OSError, match="symbolic links"):
        scan(tmp_path / "loop")


def test_deep_and_wide_trees_are_scanned_in_order(tmp_path: Path) -> None:
    """Each entry comes after its directory; the depth is the file system's to limit."""
    deep = tmp_path / "source"
    for _ in range(300):
        deep = deep / "d"
    deep.mkdir(parents=True)
    for number in range(500):
        (tmp_path / "source" / f"{number}").touch()
    found = scan(tmp_path / "source")
    assert len(found) == 801
    before: set[bytes] = set()
    for entry in found[1:]:
        parent = entry.path.rpartition(b"/")[0]
        assert not parent or parent in before
        before.add(entry.path)


class Change:
    """Changes a file when the packer opens it: somebody else writes while we read."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Path], object]
    ):
        plain = Packing._open

        def opener(self: Packing, found: Found) -> int:
            if found.path == name.encode():
                change(Path(os.fsdecode(self._root)) / name)
            return plain(self, found)

        monkeypatch.setattr(Packing, "_open", opener)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"longer")


def replace(path: Path, with_: Callable[[Path], object]) -> None:
    path.unlink()
    with_(path)


@pytest.mark.parametrize("size", [1000, 6 << 20])
@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"shorter"),
        append,
        lambda path: os.utime(path, ns=(1, 1)),
        lambda path: replace(path, lambda p: p.write_bytes(os.urandom(1000))),
        lambda path: replace(path, os.mkfifo),
        lambda path: replace(path, lambda p: p.symlink_to("/etc/passwd")),
        lambda path: replace(path, os.mkdir),
        lambda path: path.unlink(),
    ],
    ids=["shorter", "longer", "touched", "replaced", "fifo", "link", "directory", "gone"],
)
async def test_a_file_that_changes_while_it_is_saved_is_an_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    anyio_backend: tuple[str, dict[str, Any]],
    size: int,
    change: Callable[[Path], object],
) -> None:
    """Whatever takes its place: no hang, nothing followed, and no blob that is half of it."""
    if anyio_backend != ("asyncio", {"use_uvloop": False}):
        return  # it runs on the I/O loop, whatever the caller's is
    source = make(tmp_path / "source", a=b"a", moving=os.urandom(size), z=b"z" * 5_000_000)
    store = MemoryStore()
    Change(monkeypatch, "moving", change)
    with pytest.raises(OSError, match=r"changed|symbolic|No such file|directory"):
        await save(source, store)
    assert store._blobs == {}


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    """What grows between the first chunk and the last is noticed at the end."""
    source = make(tmp_path / "source", large=os.urandom(9 << 20))

    async def main() -> None:
        packing = Packing(source, scan(source), None, "p")
        chunks = packing.chunks()
        await anext(chunks)
        with (source / "large").open("ab") as file:
            file.write(b"more")
        with pytest.raises(OSError, match="was changed while it was saved"):
            async for _ in chunks:
                pass
        assert packing.failure is not None

    asyncio.run(main())


# Packs.


def test_large_files_are_never_whole_in_memory(tmp_path: Path) -> None:
    """Saving and restoring 200 MB takes a few chunks' room."""
    from aiocheckpoint.stores import open_store

    size = 200 << 20
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write(os.urandom(1 << 20))
    store = open_store(f"file:{tmp_path}/s")

    async def main() -> None:
        stored = await store_tree(store, "k", "t-1", tmp_path / "large", None)
        await restore_tree(store, "k", stored, tmp_path / "out")
        await store.aclose()

    tracemalloc.start()
    asyncio.run(main())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20
    assert (tmp_path / "out").stat().st_size == size


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), rounds=st.integers(1, 25))
def test_packs_stay_few_and_mostly_used(seed: int, rounds: int) -> None:
    """After any history of changes the garbage is bounded and the packs are few."""
    rng = random.Random(seed)
    sizes = {b"%d" % n: rng.randint(1, 50_000) for n in range(20)}
    contents = {path: rng.randbytes(size) for path, size in sizes.items()}
    base: Manifest | None = None
    for number in range(rounds):
        for path in rng.sample(sorted(contents), rng.randint(1, 6)):
            contents[path] = rng.randbytes(rng.randint(1, 50_000))
        if rng.random() < 0.3:
            contents.pop(rng.choice(sorted(contents)), None)
            contents[b"n%d" % number] = rng.randbytes(100)
        base = pack_by_hand(contents, base, f"p{number}")
        decode_manifest("k", encode_manifest(base))
        live = sum(entry.size for entry in base.entries)
        assert live == sum(map(len, contents.values()))
        staying = lasting(base)
        kept = sum(base.packs[n].size for n in staying)
        assert kept <= 2 * live
        assert len(staying) <= 2 + live.bit_length()


def pack_by_hand(contents: dict[bytes, bytes], base: Manifest | None, name: str) -> Manifest:
    """What Packing does to files, without files."""
    info = os.stat(__file__)
    found = [Found.of(b"", "directory", info)]
    found += [Found.of(path, "file", info) for path in sorted(contents)]
    packing = Packing(Path("nowhere"), found, base, name)
    packing._entries.append(found[0].entry())
    for entry in found[1:]:
        chunk, _ = packing._place(entry, 0, contents[entry.path])
        packing._entries.append(entry.entry((chunk,)))
    return packing.manifest()


# Targets.


async def saved(tmp_path: Path, source: Path) -> Callable[[Path], Any]:
    store = MemoryStore()
    stored = await store_tree(store, "k", "t-1", source, None)
    return lambda target: restore_tree(store, "k", stored, target)


async def test_a_target_that_is_taken_is_left_as_it_is(
    tmp_path: Path, anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    """Files, links (dangling ones as well) and directories that are not empty stay."""
    if anyio_backend != ("asyncio", {"use_uvloop": False}):
        return  # it runs on the I/O loop, whatever the caller's is
    tree = await saved(tmp_path, make(tmp_path / "tree", a=b"a"))
    one = await saved(tmp_path, tmp_path / "tree" / "a")
    taken = make(tmp_path / "taken", file=b"mine", full__file=b"mine")
    (taken / "link").symlink_to("nowhere")
    (taken / "to-empty").symlink_to("empty")
    (taken / "empty").mkdir()
    before = seen(taken)
    for name in ("file", "full", "link", "to-empty"):
        with pytest.raises(FileExistsError, match=r"to a new"):
            await tree(taken / name)
    for name in ("file", "full", "link", "empty"):
        with pytest.raises(FileExistsError, match="to a new name"):
            await one(taken / name)
    for restore in (tree, one):
        with pytest.raises(FileNotFoundError):
            await restore(taken / "missing" / "target")
        with pytest.raises(NotADirectoryError):
            await restore(taken / "file" / "target")
    assert seen(taken) == before


async def test_damage_leaves_no_half_restored_tree(
    tmp_path: Path, anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    """A pack that is damaged, cut short or gone is an error that names it."""
    if anyio_backend != ("asyncio", {"use_uvloop": False}):
        return  # it runs on the I/O loop, whatever the caller's is
    store = MemoryStore()
    source = make_odd(tmp_path / "source")
    stored = await store_tree(store, "k", "t-1", source, None)
    (pack,) = stored.packs
    good = store._blobs["k"][pack]
    out = tmp_path / "out"
    out.mkdir()
    for bad, says in (
        (good[:-1], "cut short"),
        (good[: 5 << 20], "cut short"),
        (b"", "cut short"),
        (good[:-1] + bytes([good[-1] ^ 1]), "damaged"),
        (bytes([good[0] ^ 1]) + good[1:], "damaged"),
    ):
        store._blobs["k"][pack] = bad
        with pytest.raises(CorruptCheckpointError, match=says):
            await restore_tree(store, "k", stored, out / "tree")
        assert os.listdir(out) == []
    del store._blobs["k"][pack]
    with pytest.raises(CorruptCheckpointError, match=f"no {pack}"):
        await restore_tree(store, "k", stored, out / "tree")
    store._blobs["k"][pack] = good
    await restore_tree(store, "k", stored, out / "tree")
    assert seen(out / "tree") == seen(source)
    assert files(out)
