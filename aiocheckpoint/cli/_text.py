"""Texts for people: sizes, ages, and what must not reach a terminal as it is."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


def printable(text: str) -> str:
    """The text with all escaped that a terminal could take for more than a letter: control
    characters, and those that turn the direction of a line or are not seen."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char)
    return short or (
        f"\\x{code:02x}" if code < 256 else f"\\U{code:08x}" if code > 0xFFFF else f"\\u{code:04x}"
    )


def size_text(size: int) -> str:
    """`512 B`, `1.5 KiB`, `100 MiB`."""
    number = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return (
                f"{size} B"
                if unit == "B"
                else f"{number:.3g} {unit}"
                if number < 100
                else f"{number:.0f} {unit}"
            )
        number /= 1024
    return f"{number:.3g} TiB" if number < 100 else f"{number:.0f} TiB"


def age_text(created: float) -> str:
    """How long ago that was, in its largest unit: `3 h`."""
    seconds = max(0.0, time.time() - created)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def when(created: float) -> str:
    """ISO 8601, in UTC."""
    try:
        return datetime.fromtimestamp(created, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return "?"


def duration(text: str) -> float:
    """Seconds of `30d`, `12h`, `90m`, `45s`, `2w`, or of several together, as in `1d12h`.

    Raises:
        ValueError: it is none.
    """
    parts = _DURATION.findall(text)
    if not parts or "".join(map("".join, parts)) != text:
        raise ValueError(f"{text!r} is no duration: write 30d, 12h, 90m or 1d12h")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def table(rows: Sequence[Sequence[str]], right: str) -> list[str]:
    """Lines with columns under each other; `right` has `>` for each that is set to the right.
    The last column may be as long as it likes."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if side == ">" else cell.ljust(width)
            for cell, width, side in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def counted(number: int, what: str) -> str:
    """`1 key`, `2 keys`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
