"""Sealing: the form of what is stored encrypted.

A sealed object is

    magic (8) | format (u16) | key id (64) | check (8) | salt (32) | XXH3-64 of all before (8)
    segments: ciphertext of 1 MiB (the last: of what is left) | tag (16)

The key of an object is derived by HKDF-SHA256 from the keyring's, a salt of its own, and a
description of what and where it is; it encrypts nothing else. So nothing opens in another place,
and the number of objects under one keyring key has no bound that matters. Segments are sealed by
AES-256-GCM, each under its number and whether it is the last: none can be left out, repeated,
moved or cut off. This is the AES-GCM-HKDF streaming AEAD of Tink, without its nonce prefix, which
a salt of 32 bytes makes superfluous; segments so numbered are STREAM of Hoang, Reyhanitabar,
Rogaway and Vizar (CRYPTO 2015).

What a claim stages in the spool has a key of its own, too, and each state a number that no other
has under it:

    nonce (12) | ciphertext | tag (16)

The checksum of the head tells a damaged key id from one that the keyring does not have; the check
is derived from the keyring's key, and tells that from another one of the same id.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
import xxhash

from ._errors import CodecError, CorruptCheckpointError
from ._keyring import CHECK_SIZE, Keyring, check_value, derive
from ._records import MAGIC, SEALED_MAGIC

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FORMAT = 1
SEGMENT = 1 << 20
"""Plain bytes in a segment; only the last has fewer."""
TAG = 16

_SALT = 32
_HEAD = struct.Struct(f"<8sH64s{CHECK_SIZE}s{_SALT}s")
_SUM = struct.Struct("<Q")
HEAD = _HEAD.size + _SUM.size
_NONCE = struct.Struct(">3xQ?")
_STAGED_NONCE = struct.Struct(">4xQ")
_STAGING_SALT = 16  # beside the claim's id, which is as random
_SEQ = struct.Struct("<Q")


class Place(NamedTuple):
    """What a sealed object is, and where it lies."""

    kind: Literal["record", "blob"]
    key: str
    name: str = ""

    def __str__(self) -> str:
        which = f" {self.name}" if self.name else ""
        return f"the stored {self.kind}{which} of {self.key!r}"


class Sealed:
    """One object: its head, and its segments, sealed and opened one by one."""

    def __init__(self, place: Place, head: bytes, aead: AESGCM) -> None:
        self._place = place
        self._aead = aead
        self.head = head

    def seal(self, number: int, data: bytes | memoryview, *, last: bool) -> bytes:
        return self._aead.encrypt(_NONCE.pack(number, last), data, None)

    def open(self, number: int, data: bytes | memoryview, *, last: bool) -> bytes:
        """The plain bytes of a segment.

        Raises:
            CorruptCheckpointError: it is not what was sealed there.
        """
        from cryptography.exceptions import InvalidTag

        try:
            return self._aead.decrypt(_NONCE.pack(number, last), data, None)
        except InvalidTag:
            pass
        raise CorruptCheckpointError(
            f"{self._place} is damaged, cut short, or not what was sealed there"
        )


def new(keyring: Keyring, place: Place) -> Sealed:
    """An object to be sealed under the primary key, once."""
    salt, key_id = os.urandom(_SALT), keyring.primary
    check = check_value(keyring, key_id)
    head = _HEAD.pack(SEALED_MAGIC, FORMAT, key_id.encode(), check, salt)
    head += _SUM.pack(xxhash.xxh3_64_intdigest(head))
    return Sealed(place, head, derive(keyring, key_id, salt, _info(*place)))


def begun(keyring: Keyring, place: Place, head: bytes | memoryview) -> Sealed:
    """The object that begins so.

    Raises:
        CorruptCheckpointError: it is damaged, or not a sealed object.
        CodecError: it is not encrypted, or in a later format, or under a key that is not at hand.
    """
    head = bytes(head)
    if head[:8] == MAGIC:
        raise CodecError(
            f"{place} is not encrypted, and the store was opened with encryption=: it is refused,"
            " as whoever can write to the store can have made it. To encrypt a store, copy it into"
            " a new one (aiocheckpoint copy with --target-keys); to read it as it is, open it"
            " without encryption="
        )
    if head[:8] != SEALED_MAGIC:
        raise CorruptCheckpointError(
            f"{place} is not an encrypted one (foreign, or its first bytes are damaged)"
        )
    if len(head) < HEAD:
        raise CorruptCheckpointError(f"{place} is cut short: {len(head)} bytes")
    if _SUM.unpack(head[-_SUM.size :])[0] != xxhash.xxh3_64_intdigest(head[: -_SUM.size]):
        raise CorruptCheckpointError(f"{place} is damaged: its head's checksum does not match")
    _, form, padded, check, salt = _HEAD.unpack(head[: -_SUM.size])
    if form != FORMAT:
        raise CodecError(
            f"{place} is encrypted in format {form}, and this aiocheckpoint reads format {FORMAT}:"
            " upgrade aiocheckpoint"
        )
    key_id = padded.rstrip(b"\0").decode("ascii", "backslashreplace")
    lack = lacking(keyring, key_id, check)
    if lack is not None:
        raise CodecError(f"{place} is encrypted under {lack}")
    return Sealed(place, head, derive(keyring, key_id, salt, _info(*place)))


def lacking(keyring: Keyring, key_id: str, check: bytes) -> str | None:
    """Which key it is that the keyring does not have, and what to do; None if it has it."""
    if key_id not in keyring.ids:
        return (
            f"the key {key_id!r}, and the keyring has {', '.join(keyring.ids)}: add that key to it"
        )
    if check != check_value(keyring, key_id):
        return (
            f"another key of the same id, {key_id!r}, than the keyring's: give the keyring the one"
            " that was used"
        )
    return None


def _info(*what: str | bytes) -> bytes:
    return msgspec.msgpack.encode(("aiocheckpoint", FORMAT, *what))


def seal(keyring: Keyring, place: Place, data: bytes) -> bytes:
    """A whole object."""
    sealed = new(keyring, place)
    if len(data) <= SEGMENT:
        return sealed.head + sealed.seal(0, data, last=True)
    view = memoryview(data)
    parts = [sealed.head]
    for number, start in enumerate(range(0, len(data), SEGMENT)):
        part = view[start : start + SEGMENT]
        parts.append(sealed.seal(number, part, last=start + SEGMENT >= len(data)))
    return b"".join(parts)


def unseal(keyring: Keyring, place: Place, data: bytes) -> bytes:
    """What was sealed as a whole object.

    Raises:
        CorruptCheckpointError, CodecError: see `begun` and `Sealed.open`.
    """
    sealed = begun(keyring, place, data[:HEAD])
    view = memoryview(data)[HEAD:]
    if len(view) <= SEGMENT + TAG:
        return sealed.open(0, view, last=True)
    parts = []
    for number, start in enumerate(range(0, len(view), SEGMENT + TAG)):
        part = view[start : start + SEGMENT + TAG]
        parts.append(sealed.open(number, part, last=start + SEGMENT + TAG >= len(view)))
    return b"".join(parts)


class StagingKey(NamedTuple):
    """Which key a claim has sealed its staged states under."""

    key_id: str
    salt: bytes
    check: bytes


class Staging:
    """Seals what one claim stages, in this process alone: states of all its regions and threads."""

    ROOM = 28
    """Bytes that a sealed state has more than the plain one."""

    def __init__(self, keyring: Keyring, key: str, claim: bytes) -> None:
        key_id = keyring.primary
        check = check_value(keyring, key_id)
        self.under = StagingKey(key_id, os.urandom(_STAGING_SALT), check)
        self._aead = _staging(keyring, key, claim, self.under)
        self._numbers = itertools.count()  # one for all: no number may come twice

    def sealer(self, codec: str, tree: str) -> Callable[[int, bytes], bytes]:
        """A function that seals states of this codec that go with this tree."""
        encrypt, numbers = self._aead.encrypt, self._numbers
        nonce_of, seq_of, about = _STAGED_NONCE.pack, _SEQ.pack, _about(codec, tree)

        def seal(seq: int, data: bytes) -> bytes:
            nonce = nonce_of(next(numbers))
            return nonce + encrypt(nonce, data, seq_of(seq) + about)

        return seal


def unstage(
    keyring: Keyring,
    key: str,
    claim: bytes,
    under: StagingKey,
    codec: str,
    tree: str,
    seq: int,
    data: bytes,
) -> bytes:
    """A staged state.

    Raises:
        KeyError: the keyring has no such key.
        ValueError: it is not what was sealed there.
    """
    from cryptography.exceptions import InvalidTag

    aead = _staging(keyring, key, claim, under)
    nonce, sealed = data[: _STAGED_NONCE.size], data[_STAGED_NONCE.size :]
    try:
        return aead.decrypt(nonce, sealed, _SEQ.pack(seq) + _about(codec, tree))
    except InvalidTag:
        pass
    raise ValueError("it was not sealed here")


def _about(codec: str, tree: str) -> bytes:
    return msgspec.msgpack.encode((codec, tree))


def _staging(keyring: Keyring, key: str, claim: bytes, under: StagingKey) -> AESGCM:
    return derive(keyring, under.key_id, under.salt, _info("spool", key, claim))
