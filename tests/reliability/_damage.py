"""Damage and lies: what is stored, mutated, its checksums left as they are or made right again."""

from __future__ import annotations

import random
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import xxhash

from aiocheckpoint._errors import CodecError, CorruptCheckpointError
from aiocheckpoint._keys import check_key, key_of, store_name
from aiocheckpoint._records import Blob, Checkpoint, Files, Record, decode_record, encode_record
from aiocheckpoint._region import _HEAD, make_region, read_region
from aiocheckpoint._trees import Chunk, Entry, Manifest, Pack, decode_manifest, encode_manifest
from aiocheckpoint.stores import _object_urls, _postgres_url, _redis_url

from ._torture import Budget, Case, Counts

CLAIM = bytes(range(16))
_BURST = 500
"""Mutants a case."""
_MEMORY = 1 << 20
"""Bytes that reading may take besides 16 times what it reads."""
_STATES = [b"%d:" % n * 40 for n in range(1, 5)]


class Target(NamedTuple):
    """Something that is read, and may have been written by anybody."""

    samples: list[bytes]
    read: Callable[[bytes], Any]
    """What it says; nothing where it rightly says nothing."""
    refuses: tuple[type[Exception], ...]
    """The errors that it may end with."""
    mend: Callable[[bytearray], object] | None
    """Makes its checksums right again; None if it has none, and anything may come of it."""


def targets(scratch: Path) -> dict[str, Target]:
    damage = (CorruptCheckpointError, CodecError)
    region = scratch / "region"

    def read_bytes_of_region(data: bytes) -> Any:
        region.write_bytes(data)
        found = read_region(region, CLAIM)
        return None if found is None else found.staged.data

    return {
        "records": Target(_records(), _read_record, damage, _mend_frame),
        "manifests": Target(_manifests(), _read_manifest, damage, _mend_frame),
        "regions": Target(_regions(scratch), read_bytes_of_region, (ValueError,), _mend_region),
        "keys": Target([b"train/7", b"A b.C", "é/Ω".encode()], _read_key, (ValueError,), None),
        "urls": Target(_URLS, _read_url, (ValueError,), None),
    }


def _records() -> list[bytes]:
    small = Record(key="k", run=bytes(8), claim=CLAIM, epoch=3, commit=9, seq=4, codec="bytes")
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


def _regions(scratch: Path) -> list[bytes]:
    path = scratch / "sample"
    region = make_region(path, CLAIM, "bytes", "", 100, lambda seq, data: None)
    samples = []
    for seq, data in enumerate(_STATES, 1):
        region.stage(seq, data)
        samples.append(path.read_bytes())
    return samples


def _mend_frame(data: bytearray) -> None:
    if len(data) > 16:
        data[-16:] = xxhash.xxh3_128_digest(bytes(data[:-16]))


def _mend_region(data: bytearray) -> None:
    if len(data) >= _HEAD:
        digest = xxhash.xxh3_64_intdigest(bytes(data[: _HEAD - 8]))
        data[_HEAD - 8 : _HEAD] = digest.to_bytes(8, "little")


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
    "postgresql": _postgres_url.parse_url,
}


def _read_url(data: bytes) -> None:
    url = data.decode()
    parse = _PARSERS.get(url.partition(":")[0])
    if parse is None:
        raise ValueError("no scheme of ours")
    try:
        parse(url)
    except ValueError as exc:
        where_it_belongs = url.partition("://")[2].startswith("user:secret@")
        if where_it_belongs and url.count("secret") == 1 and "secret" in str(exc):
            raise AssertionError(f"a secret in an error: {exc}") from exc
        raise


def mutated(rng: random.Random, sample: bytes) -> bytearray:
    """A sample with a few bytes changed, cut, repeated, put in or exchanged."""
    data = bytearray(sample)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64)))
        elif kind == 2:
            del data[at : at + rng.choice((1, 2, 8, 64))]
        elif kind == 3:
            data[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\xdd\xff\xff\xff", b"../x"))
        elif kind == 4 and data:
            data[at:at] = data[: rng.randrange(len(data))]
        elif at < len(data):
            data[at] ^= 1 << rng.randrange(8) if kind == 5 else rng.randrange(1, 256)
    return data


def attack(rng: random.Random, target: Target, known: list[Any]) -> str:
    """Read one mutant; what came of it. `known` is what the samples say.

    Raises:
        AssertionError: a wrong state, or memory out of proportion.
        Any error that it must not end with.
    """
    sample = rng.choice(target.samples)
    data = mutated(rng, sample)
    lies = target.mend is not None and rng.random() < 0.5
    if lies and target.mend is not None:
        target.mend(data)
    try:
        said = target.read(bytes(data))
    except target.refuses:
        return "refused"
    if target.mend is not None and not lies and said is not None:
        assert said in known, f"a wrong state: {said!r}"
    return "read"


def part(budget: Budget) -> Counts:
    """Mutate and read; one case is 500 mutants of one kind."""
    with tempfile.TemporaryDirectory() as name:
        everything = targets(Path(name))
        known = {
            kind: [target.read(sample) for sample in target.samples] if target.mend else []
            for kind, target in everything.items()
        }
        known["regions"] = list(_STATES)

        def one(case: Case) -> Counts:
            rng = case.random()
            kind = list(everything)[case.number % len(everything)]
            counts = Counts(mutants=_BURST, wrong=0)
            tracemalloc.start()
            try:
                for _ in range(_BURST):
                    counts[attack(rng, everything[kind], known[kind])] += 1
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            largest = max(map(len, everything[kind].samples))
            assert peak < _MEMORY + 64 * largest, f"{kind}: {peak:,} bytes of memory"
            return counts

        return budget.each(one)
