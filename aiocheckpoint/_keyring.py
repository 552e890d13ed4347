"""The keyring: the secret keys that records, files and the spool are sealed under."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn, Self

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_SIZE = 32
CHECK_SIZE = 8
_ID = re.compile(r"(?!#)[!-<>-~]{1,64}")
_LARGEST = 1 << 20  # bytes that a file of keys may have


class Keyring:
    """The keys of an encrypted store, each under an id: for `encryption=`.

        Keyring({"2026-11": new, "2025-01": old})

    What is stored is sealed under the first key, or the one that `primary` names; what was sealed
    under any of them can be read. A key is 32 random bytes: `Keyring.generate_key()` makes one.
    An id says nothing secret, and is stored in clear: 1 to 64 printable ASCII characters, no space
    and no `=` among them, no `#` first. A keyring shows its keys to nobody, and is not pickled.

    Raises:
        ImportError: the extra `encryption` is not installed.
    """

    __slots__ = ("_checks", "_keys", "_primary")

    def __init__(self, keys: Mapping[str, bytes], primary: str | None = None) -> None:
        if fault := _fault(keys, primary):
            del keys, self  # there are tools that show what the frames of an error hold
            raise ValueError(fault)
        self._keys = dict(keys)
        self._primary = next(iter(keys)) if primary is None else primary
        del keys
        _aesgcm()
        self._checks = {key_id: _check_value(key) for key_id, key in self._keys.items()}

    @property
    def primary(self) -> str:
        """The id of the key that seals."""
        return self._primary

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all keys, the primary first."""
        return self._primary, *(key_id for key_id in self._keys if key_id != self._primary)

    @staticmethod
    def generate_key() -> bytes:
        """A new key: 32 bytes from the operating system. Keep it: nothing opens without it."""
        return os.urandom(KEY_SIZE)

    @classmethod
    def load(cls, path: str | os.PathLike[str], primary: str | None = None) -> Self:
        """The keyring in a file: a line `id = key in base64` for each, the primary first.

        Empty lines, and those that start with `#`, say nothing.

        Raises:
            PermissionError: others than its owner may read or write it.
            ValueError: it is not such a file.
            OSError: it cannot be read.
        """
        return cls(_read(path), primary)

    def __repr__(self) -> str:
        return f"Keyring(<keys of {', '.join(self.ids)}>)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a keyring is not pickled: load it in the process that needs it")


def _read(path: str | os.PathLike[str]) -> dict[str, bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise ValueError(f"{os.fspath(path)} is not a regular file")
        if info.st_mode & 0o077:
            raise PermissionError(
                f"{os.fspath(path)} holds keys, and others than its owner may use it: chmod 600 it"
            )
        keys = _parsed(file.read(_LARGEST))
    if isinstance(keys, int):
        raise ValueError(
            f"{os.fspath(path)}, line {keys}: it is an id of its own, =, and {KEY_SIZE} bytes in"
            " base64"
        )
    return keys


def _parsed(text: bytes) -> dict[str, bytes] | int:
    """The keys in a text, or the number of the line that is wrong: an error is not raised here,
    where the frame holds keys."""
    keys: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith(b"#"):
            continue
        key_id, equals, key = (part.strip() for part in line.partition(b"="))
        try:
            name = key_id.decode("ascii")
            if not equals or name in keys:
                return number
            keys[name] = base64.b64decode(key, validate=True)
        except (ValueError, binascii.Error):
            return number
        if _key_fault(name, keys[name]) is not None:
            return number
    return keys


def _fault(keys: Mapping[str, bytes], primary: str | None) -> str | None:
    for key_id, key in keys.items():
        if fault := _key_fault(key_id, key):
            return fault
    if not keys:
        return "a keyring needs a key: Keyring({'2026-11': Keyring.generate_key()})"
    if primary is not None and primary not in keys:
        return f"primary={primary!r} is none of the keys {', '.join(keys)}"
    return None


def _key_fault(key_id: object, key: object) -> str | None:
    # neither is shown: they may be the wrong way round
    if not isinstance(key_id, str) or not _ID.fullmatch(key_id):
        return (
            "a key's id is 1 to 64 printable ASCII characters, no space and no = among them, no #"
            " first"
        )
    if not isinstance(key, bytes) or len(key) != KEY_SIZE:
        return (
            f"the key {key_id!r} is not {KEY_SIZE} bytes: make one by Keyring.generate_key(); a"
            " password is no key"
        )
    return None


def check_encryption(keyring: Keyring | None) -> Keyring | None:
    known: object = keyring
    if not (known is None or isinstance(known, Keyring)):
        raise TypeError("encryption= is a Keyring, or None for none")  # not shown: it may be a key
    return keyring


def check_value(keyring: Keyring, key_id: str) -> bytes:
    """Tells a key from another of the same id, and nothing more of it.

    Raises:
        KeyError: the keyring has no key of this id.
    """
    return keyring._checks[key_id]


def derive(keyring: Keyring, key_id: str, salt: bytes, info: bytes) -> AESGCM:
    """A cipher with a key of its own, for what `salt` and `info` name together.

    Raises:
        KeyError: the keyring has no key of this id.
    """
    return _aesgcm()(_hkdf(keyring._keys[key_id], KEY_SIZE, salt, info))


def _check_value(key: bytes) -> bytes:
    return _hkdf(key, CHECK_SIZE, b"", b"aiocheckpoint: which key")


def _hkdf(key: bytes, size: int, salt: bytes, info: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), size, salt, info).derive(key)


def _aesgcm() -> type[AESGCM]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as exc:
        raise ImportError(
            f"encryption needs {exc.name or 'cryptography'}, which is not installed:"
            " pip install 'aiocheckpoint[encryption]'",
            name=exc.name,
        ) from exc
    return AESGCM
