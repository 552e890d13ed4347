"""Records: what a store holds for a key, framed so that damage shows.

A frame is

    magic (8) | format (u16) | header size (u32) | state size (u64)
    header (MessagePack) | state | XXH3-128 of all before (16)

little-endian. Magic, format and the checksum at the end stay in every later format, so that a
reader tells damage from a format that it does not know yet.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
import xxhash

from ._errors import CheckpointError, CodecError, CorruptCheckpointError, SealedError

FORMAT = 1
INLINE_LIMIT = 1 << 20
"""States that are stored as up to this many bytes, compressed if they are, lie in the record;
larger ones in a blob that it names."""

MAGIC = b"\x89AIOCKP\n"
SEALED_MAGIC = b"\x89AIOCKE\n"
"""What is sealed begins with this, whatever it is."""
_PREFIX = struct.Struct("<8sHIQ")
_SUM = 16

Status = Literal["running", "done", "failed"]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Time = Annotated[float, msgspec.Meta(ge=-(2.0**35), le=2.0**37)]
"""Seconds since 1970 that a datetime can be made of; none that is not a number."""


class Blob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A large state that lies outside the record."""

    name: str
    size: Count
    digest: bytes


class Files(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A saved file or tree: the blob of its manifest, and the packs that it is made of."""

    id: str
    """Names the tree, however often it was tried to store it."""
    manifest: Blob
    packs: tuple[str, ...]
    count: Count
    """Files in it."""
    size: Count
    """Their bytes."""

    @property
    def blobs(self) -> frozenset[str]:
        return frozenset((self.manifest.name, *self.packs))


class Record(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """The header of a record.

    `run` is drawn when the key is created and kept by every claim after it: a record of another
    run tells a delete from a store that went back in time. `claim` holds the key, `origin` is the
    claim that staged the state, or began without one. (claim, commit) is never used twice: it is
    the nonce that keeps two records from being equal.
    """

    key: str
    run: bytes
    claim: bytes
    epoch: Count
    commit: Count
    attempt: Count = 1
    burnt: Count = 0
    status: Status = "running"
    result: bytes | None = None
    result_codec: str = ""
    seq: Count = 0
    origin: bytes = b""
    codec: str = ""
    created: Time = 0.0
    blob: Blob | None = None
    files: Files | None = None
    compression: str = ""
    """How the state is compressed; empty if it is not."""
    size: Count = 0
    """The bytes of the state, if it is compressed: inline and in a blob are fewer."""


class Unreadable(bytes):
    """Stands for a record that its store could not open: a record of no bytes, equal to no other,
    and why."""

    error: CheckpointError
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @classmethod
    def because(cls, error: CheckpointError) -> Unreadable:
        record = cls()
        record.error = error
        return record


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


def encode_record(record: Record, state: bytes) -> bytes:
    """Frame a header and the state that lies inline (empty when a blob holds it)."""
    header = _encode(record)
    body = _PREFIX.pack(MAGIC, FORMAT, len(header), len(state)) + header + state
    return body + xxhash.xxh3_128_digest(body)


def decode_record(key: str, data: bytes) -> tuple[Record, bytes]:
    """The header and inline state of a frame.

    Raises:
        CorruptCheckpointError: damaged, cut short, not a record, or the record of another key.
        CodecError: whole, but of a later format, or sealed under a key that is not at hand.
    """
    if isinstance(data, Unreadable):
        raise data.error.with_traceback(None)
    if data[:8] == SEALED_MAGIC:
        raise SealedError(
            f"the stored record of {key!r} is encrypted: open the store with encryption= a Keyring"
            " that has its key"
        )

    def corrupt(what: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(f"the stored record of {key!r} {what}")

    if data[:8] != MAGIC[: len(data[:8])] or not data:
        raise corrupt("is not an aiocheckpoint record (foreign, or its first bytes are damaged)")
    if len(data) < _PREFIX.size + _SUM:
        raise corrupt(f"is cut short: {len(data)} bytes")
    _, form, header_size, state_size = _PREFIX.unpack_from(data)
    body = memoryview(data)[:-_SUM]
    if xxhash.xxh3_128_digest(body) != data[-_SUM:]:
        expected = _PREFIX.size + header_size + state_size + _SUM
        if form == FORMAT and len(data) < expected:
            raise corrupt(f"is cut short: {len(data)} of {expected} bytes")
        raise corrupt("is damaged: its checksum does not match")
    if form != FORMAT:
        raise CodecError(
            f"the stored record of {key!r} has format {form}, and this aiocheckpoint reads format"
            f" {FORMAT}: upgrade aiocheckpoint"
        )
    if len(body) != _PREFIX.size + header_size + state_size:
        raise corrupt("lies about its size")
    try:
        record = _decode(body[_PREFIX.size : _PREFIX.size + header_size])
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise corrupt(f"has a header that makes no sense ({exc})") from exc
    if record.key != key:
        raise corrupt(f"belongs to another key, {record.key!r}")
    return record, bytes(body[_PREFIX.size + header_size :])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A stored record, read back: metadata and the encoded state as it was stored.

    Reading one decodes nothing, so it works after the state's type has changed.
    """

    key: str
    seq: int
    """The state's number; 0 if no state has been stored yet."""
    epoch: int
    claim: str
    attempt: int
    burnt: int
    """Retries of the run's budget that failures have used up."""
    status: Status
    created: datetime
    """When the record was made (UTC, the writing machine's clock)."""
    codec: str
    """The name of the codec of the payload: `bytes`, `msgpack`, or a codec's own; empty if there
    are files and no state."""
    payload: bytes
    size: int
    """Bytes of the payload."""
    files: int
    """How many files were saved with it."""
    files_size: int
    """Bytes of these files."""

    @classmethod
    def of(cls, record: Record, payload: bytes) -> Checkpoint:
        return cls(
            key=record.key,
            seq=record.seq,
            epoch=record.epoch,
            claim=record.claim.hex(),
            attempt=record.attempt,
            burnt=record.burnt,
            status=record.status,
            created=datetime.fromtimestamp(record.created, UTC),
            codec=record.codec,
            payload=payload,
            size=len(payload),
            files=0 if record.files is None else record.files.count,
            files_size=0 if record.files is None else record.files.size,
        )


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts since a handle was opened; of a runtime, the sums over its open handles."""

    staged: int
    """Seq of the newest staged state (a runtime: states staged)."""
    stored: int
    """Seq of the newest stored state (a runtime: commits of states)."""
    coalesced: int
    """States that a newer one replaced before they were stored."""
    bytes: int
    """Encoded bytes of the states that were stored."""
    lag: float
    """Seconds for which the stored state has been behind; 0.0 when all staged is stored."""
    spooled: bool
    """True if the newest staged state outlives the process in the spool."""
    errors: int
    """Store calls that failed."""
    last_error: BaseException | None
