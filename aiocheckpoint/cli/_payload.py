"""States and results for the eye and for JSON. Nothing is decoded that could run code."""

from __future__ import annotations

import base64
import codecs
import json
import math
import re
from typing import Any

import msgspec

from .._codecs import BYTES, MSGPACK
from ._text import printable, size_text

_DEEPEST = 100
_LARGEST = 1 << 20  # of what is decoded for its beginning
_BINARY = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f]")  # what no text has


def decoded(data: bytes, codec: str) -> tuple[bool, Any]:
    """Whether this can be shown, and as what JSON. Text stands for bytes that are text."""
    if codec == BYTES:
        return True, _bytes(data)
    if codec == MSGPACK:
        try:
            return True, to_json(msgspec.msgpack.decode(data))
        except (msgspec.MsgspecError, RecursionError, ValueError, TypeError, OverflowError):
            return False, None
    return False, None


def to_json(value: Any, depth: int = 0) -> Any:
    """What MessagePack has and JSON has not becomes an object with one name: `$bytes` (base64),
    `$map` (pairs, where a name is no text), `$ext`, `$float`."""
    if depth > _DEEPEST:
        raise RecursionError("nested too deeply to be shown")
    if isinstance(value, dict):
        pairs = [(key, to_json(one, depth + 1)) for key, one in value.items()]
        if all(isinstance(key, str) for key, _ in pairs):
            return dict(pairs)
        return {"$map": [[to_json(key, depth + 1), one] for key, one in pairs]}
    if isinstance(value, (list, tuple)):
        return [to_json(one, depth + 1) for one in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, msgspec.msgpack.Ext):
        return {"$ext": value.code, "data": base64.b64encode(value.data).decode()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def shown(data: bytes, codec: str, limit: int | None = None) -> str | None:
    """One line for a terminal, of about `limit` characters, or None if it can only be had raw."""
    if codec == BYTES:
        part = data if limit is None else data[:limit]
        text = _text(part, cut=len(part) < len(data))
        line = part.hex() if text is None else printable(text)
        return _cut(line, limit, more=len(part) < len(data))
    if codec == MSGPACK and limit is not None and len(data) > _LARGEST:
        return _cut(f"{size_text(len(data))} of {MSGPACK}", 0, more=True)
    good, value = decoded(data, codec)
    return _cut(printable(json.dumps(value, ensure_ascii=False)), limit) if good else None


def _cut(line: str, limit: int | None, *, more: bool = False) -> str:
    if limit and len(line) > limit:
        line, more = line[:limit], True
    return line + "... (--payload shows all)" if more else line


def _bytes(data: bytes) -> Any:
    text = _text(data)
    return {"$bytes": base64.b64encode(data).decode()} if text is None else text


def _text(data: bytes, *, cut: bool = False) -> str | None:
    """The text that these bytes are, perhaps but for a last character that was cut through."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=not cut)
    except UnicodeDecodeError:
        return None
    return None if _BINARY.search(text) else text
