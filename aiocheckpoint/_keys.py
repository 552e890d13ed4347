"""Keys: what a key may be, templates over a call's arguments, names for stores."""

from __future__ import annotations

import hashlib
import inspect
import string
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

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
    for char in key:
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


def fill_template(template: str, fn: Callable[..., object], args: tuple[object, ...]) -> str:
    """Make the key of a call: `{name}` in the template is the argument of that name.

    `fn`'s first parameter, the checkpointer, is not among `args`. Fields are names of parameters
    and nothing else (no attributes, no indexes), since arguments may come from outside.

    Raises:
        TypeError: the arguments do not fit `fn`.
        ValueError: the template names no parameter, or the outcome is not a key.
    """
    bound = inspect.signature(fn).bind(None, *args)
    bound.apply_defaults()
    _, *parameters = bound.arguments
    values: Mapping[str, Any] = {name: bound.arguments[name] for name in parameters}
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as exc:
        raise ValueError(f"key template {template!r}: {exc}; write {{{{ for a brace") from exc
    parts = []
    for literal, field, spec, conversion in fields:
        parts.append(literal)
        if field is None:
            continue
        if field not in values or spec or conversion:
            names = ", ".join(values) or "none"
            raise ValueError(
                f"key template {template!r}: {{{field}}} is not a plain parameter name"
                f" (parameters: {names})"
            )
        parts.append(str(values[field]))
    return check_key("".join(parts))
