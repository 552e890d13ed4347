"""docs/benchmarks.md: the parts of it that are written by the benchmarks, and how they look."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "benchmarks.md"
GREY = "#808080"  # reads on light and on dark


def put(part: str, text: str) -> None:
    """Put text between the two comments in the page that begin and end this part of it.

    Raises:
        ValueError: the page has no such part.
    """
    begin, end = f"<!-- {part}: written by the benchmarks -->", f"<!-- {part}: end -->"
    page = PAGE.read_text()
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"{PAGE.name} lacks the comments {begin} and {end}")
    PAGE.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")


def write_data(file: Path, data: dict[str, Any]) -> None:
    """As JSON, with a line for each measurement."""
    lines = []
    for name, value in data.items():
        if isinstance(value, list) and value:
            items = ",\n  ".join(json.dumps(item) for item in value)
            lines.append(f"{json.dumps(name)}: [\n  {items}\n ]")
        else:
            lines.append(f"{json.dumps(name)}: {json.dumps(value)}")
    file.write_text("{\n " + ",\n ".join(lines) + "\n}\n")


def machine() -> dict[str, Any]:
    """Where, when and with what it was measured."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    for unit, scale in (("ns", 1e9), ("µs", 1e6), ("ms", 1e3)):
        if value * scale < 999.5:
            return f"{value * scale:.3g} {unit}"
    return f"{value:.3g} s"


def number(value: float) -> str:
    """A count with three digits that say something."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


@contextmanager
def figure(path: Path, *, width: float, height: float) -> Iterator[Any]:
    """A figure that is saved in the end, readable on light and on dark, the same for the same
    data."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {
        "svg.hashsalt": path.name,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), GREY),
        **dict.fromkeys(("xtick.color", "ytick.color"), GREY),
    }
    with rc_context(style):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn
        drawn.savefig(path, transparent=True, metadata={"Date": None})
