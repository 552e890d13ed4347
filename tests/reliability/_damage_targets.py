"""What is read that damage or a liar may have made, and what reading it may come to."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import xxhash

from aiocheckpoint import Keyring
from aiocheckpoint._errors import CodecError, CorruptCheckpointError, StoreError
from aiocheckpoint._keys import check_key, key_of, store_name
from aiocheckpoint._records import Blob, Checkpoint, Files, Record, decode_record, encode_record
from aiocheckpoint._region import _HEAD, make_region, read_region
from aiocheckpoint._sealing import HEAD, Place, Staging, seal, unseal, unstage
from aiocheckpoint._trees import Chunk, Entry, Manifest, Pack, decode_manifest, encode_manifest
from aiocheckpoint.abc import Put
from aiocheckpoint.stores import _object_urls, _postgres_url, _redis_url
from aiocheckpoint.stores.sqlite import SqliteStore

CLAIM = bytes(range(16))
_DAMAGE = (CorruptCheckpointError, CodecError)
_STATES = [b"%d:" % n * 40 for n in range(1, 5)]


class Target(NamedTuple):
    """Something that is read, and may have been written by anybody."""

    samples: list[bytes]
    read: Callable[[bytes], Any]
    """What it says; None where it rightly says nothing."""
    refuses: tuple[type[Exception], ...]
    """The errors that it may end with."""
    known: Iterable[Any] | None = None
    """All that may be read; None if anything may."""
    mend: Callable[[bytearray], object] | None = None
    """Makes its checksums right again; None if it has none."""
    sealed: bool = False
    """Nothing else may be read even then."""
    burst: int = 500
    """How many to try at once: few where reading is slow."""

    def judge(self, data: bytearray, *, lies: bool) -> str:
        """Read it, its checksums made right if it `lies`; what came of it.

        Raises:
            AssertionError: it says what nobody wrote.
            Any error that it must not end with.
        """
        if lies and self.mend is not None:
            self.mend(data)
        try:
            said = self.read(bytes(data))
        except self.refuses:
            return "refused"
        if self.known is not None and said is not None and (self.sealed or not lies):
            assert said in self.known, f"a wrong state: {said!r}"
        return "read"


Run = Callable[[Coroutine[Any, Any, Any]], Any]


def targets(scratch: Path, run: Run) -> dict[str, Target]:
    """All of them, by name. They use the directory, and have their coroutines run."""
    records, manifests = _records(), _manifests()
    return {
        "records": Target(
            records, _read_record, _DAMAGE, [_read_record(one) for one in records], _mend_frame
        ),
        "manifests": Target(
            manifests,
            _read_manifest,
            _DAMAGE,
            [_read_manifest(one) for one in manifests],
            _mend_frame,
        ),
        "regions": _regions(scratch),
        "sealed": _sealed(),
        "staged": _staged(),
        "databases": _databases(scratch, run),
        "keys": Target([b"train/7", b"A b.C", "é/Ω".encode()], _read_key, (ValueError,)),
        "urls": Target(_URLS, _read_url, (ValueError,)),
    }


def _small() -> Record:
    return Record(key="k", run=bytes(8), claim=CLAIM, epoch=3, commit=9, seq=4, codec="bytes")


def _records() -> list[bytes]:
    small = _small()
    rich = msgspec.structs.replace(
        small,
        status="done",
        result=b"r",
        result_codec="bytes",
        created=1.7e9,
        blob=Blob("state-1", 7, bytes(16)),
        files=Files("t-1", Blob("tree-1", 9, bytes(16)), ("pack-1",), 1, 10),
        compression="zstd",
        size=3,
    )
    return [encode_record(small, b"state"), encode_record(rich, b"")]


def _read_record(data: bytes) -> Any:
    record, state = decode_record("k", data)
    Checkpoint.of(record, state)
    return record, state


def _manifests() -> list[bytes]:
    chunk = Chunk(0, 0, 10, bytes(16))
    root = Entry(b"", "directory", 0o755)
    entries = (root, Entry(b"f", "file", 0o644, 0, b"", (chunk,)), Entry(b"l", "link", target=b"f"))
    return [encode_manifest(Manifest((Pack("p", 100),), entries))]


def _read_manifest(data: bytes) -> Any:
    manifest = decode_manifest("k", data)
    for entry in manifest.entries:
        parts = entry.path.split(b"/")
        assert b".." not in parts, f"a path that leads out: {entry.path!r}"
        assert not entry.path.startswith(b"/"), f"an absolute path: {entry.path!r}"
    return manifest


def _mend_frame(data: bytearray) -> None:
    if len(data) > 16:
        data[-16:] = xxhash.xxh3_128_digest(bytes(data[:-16]))


def _regions(scratch: Path) -> Target:
    """A region of the spool, after one state and after more."""
    region = make_region(scratch / "region", CLAIM, "bytes", "", 100, lambda seq, data: None)
    path = scratch / "region.alone"
    size = _HEAD + 2 * (region.capacity + 24)
    samples = []
    for seq, data in enumerate(_STATES, 1):
        region.stage(seq, data)
        samples.append(region.path.read_bytes()[:size])

    def read(data: bytes) -> Any:
        path.write_bytes(data)
        found = read_region(path, CLAIM)
        return None if found is None else found.staged.data

    def mend(data: bytearray) -> None:
        if len(data) >= _HEAD:
            digest = xxhash.xxh3_64_intdigest(bytes(data[: _HEAD - 8]))
            data[_HEAD - 8 : _HEAD] = digest.to_bytes(8, "little")

    return Target(samples, read, (ValueError,), _STATES, mend)


_KEYS = Keyring({"now": bytes(range(32)), "before": bytes(range(1, 33))})


def _sealed() -> Target:
    place = Place("blob", "k", "state-1")

    def mend(data: bytearray) -> None:
        if len(data) >= HEAD:
            digest = xxhash.xxh3_64_intdigest(bytes(data[: HEAD - 8]))
            data[HEAD - 8 : HEAD] = digest.to_bytes(8, "little")

    samples = [seal(_KEYS, place, state) for state in _STATES]
    read = lambda data: unseal(_KEYS, place, data)  # noqa: E731
    return Target(samples, read, _DAMAGE, _STATES, mend, sealed=True)


def _staged() -> Target:
    staging = Staging(_KEYS, "k", CLAIM)
    sealing = staging.sealer("bytes", "")

    def read(data: bytes) -> bytes:
        return unstage(_KEYS, "k", CLAIM, staging.under, "bytes", "", 1, data)

    return Target([sealing(1, state) for state in _STATES], read, (ValueError,), _STATES)


def _databases(scratch: Path, run: Run) -> Target:
    """A database of several keys. What is lost from sight may be taken for never written: SQLite
    has no checksums of its own."""
    path = scratch / "jobs.db"
    keys = [f"k{number}" for number in range(4)]
    frames = {
        key: encode_record(msgspec.structs.replace(_small(), key=key), state)
        for key, state in zip(keys, _STATES, strict=True)
    }

    async def fill() -> None:
        store = SqliteStore(path)
        await store.commit([Put(key, None, frame) for key, frame in frames.items()])
        await store.aclose()

    async def look() -> Any:
        store = SqliteStore(path)
        try:
            there = [key async for key in store.keys("")]
            head = await store.load("k1")
        finally:
            await store.aclose()
        assert len(there) == len(set(there)), f"a key twice: {there}"
        return None if head is None else decode_record("k1", head.record)[1]

    def read(data: bytes) -> Any:
        for name in ("jobs.db-wal", "jobs.db-shm"):
            (scratch / name).unlink(missing_ok=True)
        path.write_bytes(data)
        return run(look())

    run(fill())
    return Target([path.read_bytes()], read, (*_DAMAGE, StoreError), _STATES[1:2], burst=50)


def _read_key(data: bytes) -> None:
    key = check_key(data.decode())
    name = store_name(key)
    assert len(name) <= 255, "a name too long for file systems"
    assert "/" not in name, "a name that is a path"
    assert not name.startswith("."), "a name that is hidden, or leads out"
    assert key_of(name) in (key, None), "a name that is of another key"


_URLS = [
    b"s3://bucket/prefix?endpoint_url=http://localhost:9000&region=x",
    b"redis://user:secret@host:6379/3?prefix=p&ttl=5",
    b"postgresql://user:secret@host:5432/db?table=t&sslmode=require",
    b"postgresql:///db?host=/tmp",
]


_PARSERS: dict[str, Callable[[str], object]] = {
    "s3": lambda url: _object_urls.parse_url(url, {"s3": ("endpoint_url", "region")}),
    "redis": lambda url: _redis_url.place(url, None, None),
    "rediss": lambda url: _redis_url.place(url, None, None),
    "postgresql": _postgres_url.parse_url,
}


def parse_url(url: str) -> None:
    parse = _PARSERS.get(url.partition(":")[0])
    if parse is None:
        raise ValueError("no scheme of ours")
    parse(url)


def _read_url(data: bytes) -> None:
    url = data.decode()
    try:
        parse_url(url)
    except ValueError as exc:
        where_it_belongs = url.partition("://")[2].startswith("user:secret@")
        if where_it_belongs and url.count("secret") == 1 and "secret" in str(exc):
            raise AssertionError(f"a secret in an error: {exc}") from exc
        raise
