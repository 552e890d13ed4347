"""The table of DESIGN 7's rows: in Markdown, as data, and as a plot of each against its target."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ._measure import Row
from ._page import DOCS, GREY, figure, machine, put, write_data

_HEADER = ("what", "target", "measured (median)", "rounds, from to", "verdict", "note")
_FILE, _PLOT = DOCS / "bench.json", DOCS / "bench.svg"


def table(rows: Sequence[Row]) -> str:
    lines = [_HEADER, ("---",) * len(_HEADER), *(row.cells for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def write(measured: Mapping[str, Sequence[Row]], order: Sequence[str]) -> None:
    """Into the page, the data and the plot; rows that were not measured stay as they were."""
    before = json.loads(_FILE.read_text())["rows"] if _FILE.exists() else []
    found = {entry["name"]: entry for entry in before}
    for name, rows in measured.items():
        where = machine()
        found[name] = {"name": name, "machine": where, "rows": [_data(row) for row in rows]}
    entries = [found[name] for name in order if name in found]
    write_data(_FILE, {"rows": entries})
    rows = [Row(**row) for entry in entries for row in entry["rows"]]
    _plot(rows)
    put("rows", f"{_by_date(entries)}\n\n![Each row against its target](bench.svg)")


def _data(row: Row) -> dict[str, Any]:
    return {**dataclasses.asdict(row), "rounds": list(row.rounds)}


def _by_date(entries: Sequence[dict[str, Any]]) -> str:
    """A table for each machine and day on which rows were measured."""
    places: dict[str, list[Row]] = {}
    for entry in entries:
        where = entry["machine"]
        place = (
            f"{where['date']}: {where['cores']} cores, {where['system']}, Python"
            f" {where['python']}, SQLite {where['sqlite']}"
        )
        places.setdefault(place, []).extend(Row(**row) for row in entry["rows"])
    return "\n\n".join(f"Measured on {place}:\n\n{table(rows)}" for place, rows in places.items())


def _plot(rows: Sequence[Row]) -> None:
    """How many times better than its target each row is; left of the line it falls short."""
    with figure(_PLOT, width=10, height=0.34 * len(rows) + 1) as drawn:
        axes = drawn.subplots()
        for place, row in enumerate(rows):
            better = [_better(row, value) for value in row.rounds]
            middle = _better(row, row.measured)
            colour = "#2f9e63" if row.passed else "#e07b39"
            axes.plot([min(better), max(better)], [place, place], color=colour, linewidth=1)
            axes.plot(middle, place, "o", color=colour, markersize=5)
        axes.axvline(1, color=GREY, linewidth=1)
        axes.set(
            xscale="log", xlabel="times better than the target (line: the range of the rounds)"
        )
        names = [row.what.replace("`", "") for row in rows]
        axes.set_yticks(
            range(len(rows)), [f"{name[:77]}…" if len(name) > 78 else name for name in names]
        )
        axes.tick_params(axis="y", labelsize="x-small")
        axes.invert_yaxis()


def _better(row: Row, value: float) -> float:
    value = max(value, 1e-9)
    better = row.target / value if row.sense == "at most" else value / row.target
    return min(max(better, 0.01), 100)
