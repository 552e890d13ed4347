"""Record frames: what was encoded comes back, or an error that says what is wrong with it."""

from __future__ import annotations

import struct
from datetime import UTC
from typing import Any

import msgspec
import pytest
import xxhash
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aiocheckpoint import Checkpoint, CheckpointError, CodecError, CorruptCheckpointError
from aiocheckpoint._records import FORMAT, SEALED_MAGIC, Blob, Record, decode_record, encode_record
from aiocheckpoint._records import Status as RecordStatus

STATUSES: list[RecordStatus] = ["running", "done", "failed"]
SMALL = Record(key="k", run=b"r" * 8, claim=b"c" * 16, epoch=3, commit=2, seq=7, codec="bytes")

counts = st.integers(0, 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
blobs = st.builds(Blob, name=texts, size=counts, digest=st.binary(max_size=16))
records = st.builds(
    Record,
    key=texts,
    run=st.binary(max_size=8),
    claim=st.binary(max_size=16),
    epoch=counts,
    commit=counts,
    attempt=counts,
    burnt=counts,
    status=st.sampled_from(STATUSES),
    result=st.none() | st.binary(max_size=50),
    result_codec=texts,
    seq=counts,
    origin=st.binary(max_size=16),
    codec=texts,
    created=st.floats(0, 2e9),
    blob=st.none() | blobs,
)


def sealed(body: bytes) -> bytes:
    """A frame whose checksum is right, whatever else it is."""
    return body + xxhash.xxh3_128_digest(body)


@given(record=records, data=st.binary(max_size=300))
def test_what_was_encoded_comes_back(record: Record, data: bytes) -> None:
    assert decode_record(record.key, encode_record(record, data)) == (record, data)


@given(record=records, other=records)
def test_different_records_have_different_frames(record: Record, other: Record) -> None:
    assert (encode_record(record, b"") == encode_record(other, b"")) == (record == other)


def test_every_truncation_is_damage() -> None:
    frame = encode_record(SMALL, b"state")
    for size in range(len(frame)):
        with pytest.raises(CorruptCheckpointError):
            decode_record("k", frame[:size])


def test_every_flipped_bit_is_an_error_and_never_another_record() -> None:
    frame = encode_record(SMALL, b"state")
    for position in range(len(frame)):
        for bit in range(8):
            bad = bytearray(frame)
            bad[position] ^= 1 << bit
            with pytest.raises(CorruptCheckpointError):
                decode_record("k", bytes(bad))


def test_appended_bytes_are_damage() -> None:
    with pytest.raises(CorruptCheckpointError):
        decode_record("k", encode_record(SMALL, b"state") + b"\0")


@settings(max_examples=300)
@given(data=st.binary(max_size=200))
def test_foreign_bytes_are_damage(data: bytes) -> None:
    assume(data[:8] != SEALED_MAGIC)
    with pytest.raises(CorruptCheckpointError) as caught:
        decode_record("k", data)
    assert "'k'" in str(caught.value)


@given(
    tail=st.binary(max_size=100),
    form=st.integers(0, 2**16 - 1),
    header=st.integers(0, 2**32 - 1),
    size=st.integers(0, 2**64 - 1),
)
def test_lying_sizes_are_damage_although_the_checksum_is_right(
    tail: bytes, form: int, header: int, size: int
) -> None:
    body = struct.pack("<8sHIQ", b"\x89AIOCKP\n", form, header, size) + tail
    with pytest.raises(CodecError if form != FORMAT else CorruptCheckpointError):
        decode_record("k", sealed(body))


@pytest.mark.parametrize("later", [2, 3, 2**16 - 1])
def test_a_later_format_asks_for_an_upgrade(later: int) -> None:
    body = struct.pack("<8sH", b"\x89AIOCKP\n", later) + b"whatever it is that comes then" * 5
    with pytest.raises(CodecError, match=f"format {later}.*upgrade aiocheckpoint"):
        decode_record("k", sealed(body))


def test_a_damaged_frame_of_a_later_format_is_damage() -> None:
    body = struct.pack("<8sH", b"\x89AIOCKP\n", 2) + b"whatever it is that comes then" * 5
    with pytest.raises(CorruptCheckpointError):
        decode_record("k", sealed(body)[:-1] + b"\0")


@pytest.mark.parametrize(
    "header",
    [b"", b"\xc1", msgspec.msgpack.encode([1, 2]), msgspec.msgpack.encode({"key": "k"})],
)
def test_a_header_that_makes_no_sense_is_damage(header: bytes) -> None:
    body = struct.pack("<8sHIQ", b"\x89AIOCKP\n", FORMAT, len(header), 0) + header
    with pytest.raises(CorruptCheckpointError, match="makes no sense"):
        decode_record("k", sealed(body))


@pytest.mark.parametrize(
    "change",
    [
        {"created": float("nan")},
        {"created": 1e300},
        {"epoch": 2**64 - 1},
        {"attempt": 2**64 - 1},
        {"burnt": -1},
        {"seq": -1},
        {"size": -1},
        {"blob": Blob("state-x", -(10**12), b"")},
    ],
)
def test_numbers_that_no_writer_writes_are_damage(change: dict[str, Any]) -> None:
    """A count is no negative number, and can be counted on; a time is one that has a date."""
    frame = encode_record(msgspec.structs.replace(SMALL, **change), b"")
    with pytest.raises(CorruptCheckpointError, match="makes no sense"):
        decode_record("k", frame)


def test_the_record_of_another_key_is_damage() -> None:
    with pytest.raises(CorruptCheckpointError, match="another key, 'k'"):
        decode_record("other", encode_record(SMALL, b""))


def test_each_kind_of_damage_has_its_own_words() -> None:
    frame = encode_record(SMALL, b"state" * 100)
    flipped = frame[:-20] + bytes([frame[-20] ^ 1]) + frame[-19:]
    messages = []
    for bad in (b"SQLite format 3\0", frame[:10], frame[:-100], flipped):
        with pytest.raises(CheckpointError) as caught:
            decode_record("k", bad)
        messages.append(str(caught.value))
    assert "is not an aiocheckpoint record" in messages[0]
    assert "cut short" in messages[1]
    assert f"cut short: {len(frame) - 100} of {len(frame)}" in messages[2]
    assert "checksum" in messages[3]


def test_a_checkpoint_shows_its_record() -> None:
    record = msgspec.structs.replace(SMALL, created=1e9, attempt=4, burnt=1, status="failed")
    found = Checkpoint.of(record, b"state")
    assert (found.key, found.seq, found.epoch, found.claim) == ("k", 7, 3, (b"c" * 16).hex())
    assert (found.attempt, found.burnt, found.status) == (4, 1, "failed")
    assert (found.codec, found.payload, found.size) == ("bytes", b"state", 5)
    assert found.created.tzinfo is UTC
    assert found.created.timestamp() == 1e9


def test_a_header_whose_text_is_no_text_is_damage() -> None:
    """A checksum that is right proves nothing of what is below it."""
    good = encode_record(Record(key="k", run=bytes(8), claim=bytes(16), epoch=1, commit=1), b"")
    body = good[:-16].replace(b"\xa1k", b"\xa1\xdd")
    with pytest.raises(CorruptCheckpointError, match="makes no sense"):
        decode_record("k", body + xxhash.xxh3_128_digest(body))
