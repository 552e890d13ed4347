"""The comparison as a table, a plot, and a part of docs/benchmarks.md: all from the same data."""

from __future__ import annotations

import statistics
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .._page import GREY, figure, put, seconds
from .._page import machine as this_machine
from ._child import STEP
from ._contestants import ALL, BY_NAME
from .side_by_side import SIZES

LOOPS = (
    *("aiocheckpoint", "flytekit", "flyte", "temporalio", "langgraph-checkpoint-sqlite", "dbos"),
    *("aiosqlite", "aiofiles"),
)
LARGE = ("aiocheckpoint", "torch", "safetensors", "orbax-checkpoint", "numpy")
"""The packages that are compared, of whose versions the numbers are."""
_COLUMNS = (
    *("", "steps/s", "of no checkpoint", "a call, median", "a call, p99"),
    *("worst loop lag", "states stored/s", "redone after SIGKILL", "after a cancel"),
)


def machine(*packages: str) -> dict[str, Any]:
    """Where, when and with what it was measured."""
    return {**this_machine(), "packages": {name: _version(name) for name in packages}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def table(data: dict[str, Any]) -> str:
    """One table for each size, in Markdown."""
    return "\n\n".join(f"{size:,} bytes:\n\n{_one_table(data, size)}" for size in SIZES)


def _one_table(data: dict[str, Any], size: int) -> str:
    rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
    bare = _rates(data, "no checkpoint", size)
    for one in ALL:
        runs = _runs(data, one.name, size)
        if not runs:
            continue
        rates = [run["steps"] / run["seconds"] for run in runs]
        rows.append(
            (
                one.name,
                f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
                f"{statistics.median(rates) / statistics.median(bare):.1%}" if bare else "",
                seconds(statistics.median(run["median_ns"] for run in runs) / 1e9),
                seconds(statistics.median(run["p99_ns"] for run in runs) / 1e9),
                seconds(statistics.median(run["lag_worst"] for run in runs)),
                f"{statistics.median(run['stored'] / run['seconds'] for run in runs):,.0f}",
                _redone(data, one.name, "kill"),
                _redone(data, one.name, "cancel"),
            )
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _runs(data: dict[str, Any], name: str, size: int) -> list[dict[str, Any]]:
    return [run for run in data["loops"] if (run["name"], run["size"]) == (name, size)]


def _rates(data: dict[str, Any], name: str, size: int) -> list[float]:
    return [run["steps"] / run["seconds"] for run in _runs(data, name, size)]


def _redone(data: dict[str, Any], name: str, how: str) -> str:
    ends = [end for end in data["ends"] if (end["name"], end["how"]) == (name, how)]
    if not ends:
        return "all" if BY_NAME[name].power == "nothing" else "needs a server"
    redone = [end["redone"] for end in ends]
    broken = sum("unreadable" in end for end in ends)
    torn = sum(end["redone"] == end["done"] and end["done"] > 0 for end in ends)
    text = f"{statistics.median(redone):,.0f}, {max(redone):,} at most"
    if max(redone) == 0:
        text = "0"
    if torn or broken:
        text += f"; everything, {torn} times of {len(ends)}"
    return text


def write_page(data: dict[str, Any]) -> None:
    """Put the comparison into the page."""
    where, orders = data["machine"], data["orders"]
    packages = ", ".join(f"{name} {number}" for name, number in where["packages"].items())
    powers = "\n".join(f"- {one.name}: {one.power}." for one in ALL if one.power != "nothing")
    put(
        "loops",
        f"""An async loop works for {STEP * 1e6:.0f} µs a step, yields, and keeps a state that is a
new one each time. Each loop runs in a process of its own for {orders["seconds"]:g} seconds, in
{orders["rounds"]} rounds whose order changes; the medians count, with the lowest and highest round
behind the steps. Loop lag is by how much a timer of 1 ms in the same loop comes late. The last
columns end the loop at {orders["ends"]} random moments, and count the steps that had kept their
state and are not found by the next process.

{table(data)}

![Steps a second](peers.svg)

What of a call that has returned is safe, by what each documents or does:

{powers}

Measured on {where["date"]}: {where["cores"]} cores, {where["system"]}, Python {where["python"]},
SQLite {where["sqlite"]}; {packages}.""",
    )


def plot(data: dict[str, Any], path: Path) -> None:
    """Steps a second of each contestant."""
    names = [one.name for one in ALL if _runs(data, one.name, SIZES[0])]
    with figure(path, width=8, height=0.42 * len(names) + 1) as drawn:
        axes = drawn.subplots()
        for number, size in enumerate(SIZES):
            rates = [_rates(data, name, size) for name in names]
            middle = [statistics.median(each) for each in rates]
            low = [m - min(each) for m, each in zip(middle, rates, strict=True)]
            high = [max(each) - m for m, each in zip(middle, rates, strict=True)]
            axes.barh(
                [place + 0.4 * number - 0.2 for place in range(len(names))],
                middle,
                height=0.38,
                xerr=[low, high],
                ecolor=GREY,
                color=("#3b82f6", "#f59e0b")[number],
                label=f"{size:,} bytes",
            )
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel(f"steps a second, {STEP * 1e6:.0f} µs of work each")
        axes.legend(frameon=False)
