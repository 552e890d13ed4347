"""Keys: what a key may be, templates over a call's arguments, names for stores."""

from __future__ import annotations

import hashlib
import inspect
import string
import unicodedata
from collections.abc import Callable

MAX_KEY_BYTES = 200
_MAX_NAME = 140
_PLAIN = frozenset(string.ascii_lowercase + string.digits + "-_.")


def check_key(key: str) -> str:
    """Return `key` if it is 1 to 200 bytes of UTF-8 without control characters.

    Raises:
        TypeError: it is not a str.
        ValueError: it is empty, too long, or holds a control character or lone surrogate.
    """
    if not isinstance(key, str):
        raise TypeError(f"a key is a str, not {type(key).__name__}")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise ValueError(f"key {key!r} has a lone surrogate; use valid Unicode") from None
    if not 1 <= size <= MAX_KEY_BYTES:
        raise ValueError(f"a key has 1 to {MAX_KEY_BYTES} bytes of UTF-8, this one has {size}")
    for char in "" if key.isprintable() else key:
        if unicodedata.category(char) == "Cc":
            raise ValueError(f"key {key!r} has a control character ({char!r}); leave it out")
    return key


def store_name(key: str) -> str:
    """A file name for a key: readable, at most 140 characters, different for different keys.

    Only lower-case ASCII letters, digits, `-`, `_` and inner `.` stand for themselves, so that
    file systems which fold case or normalise Unicode keep keys apart; all else is `%xx`. Names
    that would be too long end in `%~` and a digest of the key.
    """
    parts = []
    for byte in key.encode():
        char = chr(byte)
        parts.append(char if char in _PLAIN else f"%{byte:02x}")
    if parts[0] == ".":
        parts[0] = "%2e"
    if parts[-1] == ".":
        parts[-1] = "%2e"
    name = "".join(parts)
    if len(name) > _MAX_NAME:
        digest = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        name = f"{name[: _MAX_NAME - 34].rstrip('.')}%~{digest}"
    return name


def key_of(name: str) -> str | None:
    """The key that `store_name` made this name of; None if the name holds only a digest."""
    if "%~" in name:
        return None
    out = bytearray()
    rest = name
    while rest:
        if rest[0] == "%":
            out.append(int(rest[1:3], 16))
            rest = rest[3:]
        else:
            out += rest[0].encode()
            rest = rest[1:]
    return out.decode()


class Template:
    """Makes the keys of a function's calls: `{name}` in it is the argument of that name.

    `fn`'s first parameter, the checkpointer, is not among the arguments. Fields are names of
    parameters and nothing else (no attributes, no indexes), since arguments may come from outside.

    Raises:
        TypeError: `fn` is no function.
        ValueError: it names no parameter.
    """

    def __init__(self, template: str, fn: Callable[..., object]) -> None:
        self._signature = inspect.signature(fn)
        parameters = list(self._signature.parameters)[1:]
        try:
            parsed = list(string.Formatter().parse(template))
        except ValueError as exc:
            raise ValueError(f"key template {template!r}: {exc}; write {{{{ for a brace") from exc
        self._parts: list[tuple[str, str | None]] = []
        for literal, field, spec, conversion in parsed:
            if field is not None and (field not in parameters or spec or conversion):
                raise ValueError(
                    f"key template {template!r}: {{{field}}} is not a plain parameter name"
                    f" (parameters: {', '.join(parameters) or 'none'})"
                )
            self._parts.append((literal, field))

    @property
    def constant(self) -> bool:
        """True if all calls have the same key."""
        return all(field is None for _, field in self._parts)

    def check(self, *args: object) -> inspect.BoundArguments:
        """Raises TypeError if `fn` takes other arguments than these."""
        return self._signature.bind(None, *args)

    def fill(self, args: tuple[object, ...]) -> str:
        """The key of a call.

        Raises:
            TypeError: the arguments do not fit `fn`.
            ValueError: the outcome is not a key.
        """
        bound = self.check(*args)
        bound.apply_defaults()
        parts = []
        for literal, field in self._parts:
            parts.append(literal)
            if field is not None:
                parts.append(str(bound.arguments[field]))
        return check_key("".join(parts))
