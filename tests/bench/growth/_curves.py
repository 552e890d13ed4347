"""What the points of a curve come to: a table, an exponent, a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._page import GREY, figure, number, seconds

TITLES = {
    "keys": ("open keys", "A loop over many open keys, `sqlite:`, with spool"),
    "size": ("bytes of a state", "Large states"),
    "history": ("earlier states, all kept", "A long history, `keep=` that many"),
    "files": ("files of 1 KB in the tree", "Trees of files, `file:`"),
    "processes": ("processes", "Processes on one SQLite file, each with a key of its own"),
    "latency": ("µs that the store takes", "A slow store, steps of 200 µs"),
}


def exponent(points: dict[int, list[float]]) -> float | None:
    """The slope of the least-squares line through the medians, both axes logarithmic."""
    pairs = [
        (math.log(x), math.log(middle))
        for x, values in points.items()
        if (middle := statistics.median(values)) > 0
    ]
    if len(pairs) < 2:
        return None
    return statistics.linear_regression(*zip(*pairs, strict=True)).slope


def curves(data: dict[str, Any], curve: str) -> dict[str, dict[int, list[float]]]:
    """Each figure's values, by the x of its points."""
    found: dict[str, dict[int, list[float]]] = {}
    for point in data["points"]:
        if point["curve"] == curve:
            for name, value in point["figures"].items():
                found.setdefault(name, {}).setdefault(point["x"], []).append(value)
    return {name: dict(sorted(points.items())) for name, points in found.items()}


def table(data: dict[str, Any], curve: str) -> str:
    """One curve, in Markdown: a line for each figure, a column for each x, and the exponent."""
    label, title = TITLES[curve]
    found = curves(data, curve)
    xs = sorted({x for points in found.values() for x in points})
    rows: list[Sequence[str]] = [(label, *(f"{x:,}" for x in xs), "exponent")]
    rows.append(["---"] * len(rows[0]))
    for name, points in found.items():
        shown = [_shown(name, points.get(x, [])) for x in xs]
        slope = exponent(points)
        rows.append((name, *shown, "" if slope is None else f"{slope:+.2f}"))
    return f"**{title}**\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _shown(name: str, values: list[float]) -> str:
    if not values:
        return ""
    middle = statistics.median(values)
    if name.startswith("steps, of"):
        return f"{middle:.1%}"
    if name.startswith("bytes"):
        return f"{middle:,.0f}"
    if "a second" in name:
        return number(middle)
    return seconds(middle)


def plot(data: dict[str, Any], path: Path) -> None:
    """A panel for each curve, both axes logarithmic."""
    names = [name for name in TITLES if curves(data, name)]
    rows = math.ceil(len(names) / 2)
    with figure(path, width=10, height=3.6 * rows) as drawn:
        for place, name in enumerate(names):
            axes = drawn.add_subplot(rows, 2, place + 1)
            for line, points in curves(data, name).items():
                middle = [statistics.median(values) for values in points.values()]
                slope = exponent(points)
                plain = line.replace("`", "")
                label = plain if slope is None else f"{plain} ({slope:+.2f})"
                axes.plot(list(points), middle, marker="o", markersize=3, label=label)
                low, high = zip(*((min(v), max(v)) for v in points.values()), strict=True)
                axes.fill_between(list(points), low, high, alpha=0.2)
            label, title = (text.replace("`", "") for text in TITLES[name])
            axes.set(xscale="log", yscale="log", xlabel=label)
            axes.set_title(title, fontsize="small", color=GREY)
            axes.grid(color=GREY, alpha=0.2)
            axes.legend(frameon=False, fontsize="x-small")
