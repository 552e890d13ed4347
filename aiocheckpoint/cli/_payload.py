"""States and results for the eye and for JSON. Nothing is decoded that could run code."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import msgspec

from .._codecs import BYTES, MSGPACK
from ._text import printable

_DEEPEST = 100


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


def shown(data: bytes, codec: str) -> str | None:
    """One line for a terminal, or None if it can only be had raw."""
    if codec == BYTES:
        text = _text(data)
        return data.hex() if text is None else printable(text)
    good, value = decoded(data, codec)
    return printable(json.dumps(value, ensure_ascii=False)) if good else None


def _bytes(data: bytes) -> Any:
    text = _text(data)
    return {"$bytes": base64.b64encode(data).decode()} if text is None else text


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
