"""The comparison of 100 MB states: a table, a plot, its part of docs/benchmarks.md."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from .._page import GREY, figure, put, seconds
from ._large_contestants import ALL

_RAW = ALL[0].name
_COLUMNS = (
    *("", "keeps the caller", "until complete", "of raw write and fsync", "worst loop lag"),
    *("with memory kept: keeps the caller", "until complete"),
    *("back to back: a call keeps", "five complete after", "torn by a change after the call"),
)


def _runs(data: dict[str, Any], name: str, *, kept: bool = False) -> list[dict[str, Any]]:
    return [run for run in data["large"] if run["name"] == name and run["kept"] == kept]


def _of(data: dict[str, Any], name: str, what: str, *, kept: bool = False) -> list[float]:
    return [run[what] for run in _runs(data, name, kept=kept)]


def _ranged(values: list[float]) -> str:
    middle = seconds(statistics.median(values))
    return f"{middle} ({seconds(min(values))} to {seconds(max(values))})"


def table(data: dict[str, Any]) -> str:
    raw = _of(data, _RAW, "total")
    rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
    for one in ALL:
        runs = _runs(data, one.name)
        if not runs:
            continue
        back = [run["back_to_back"] for run in runs]
        calls = [call for each in back for call in each["calls"]]
        ratio = statistics.median(_of(data, one.name, "total")) / statistics.median(raw)
        runs += _runs(data, one.name, kept=True)
        torn = sum(run["torn"] for run in runs)
        rows.append(
            (
                one.name,
                _ranged(_of(data, one.name, "blocking")),
                _ranged(_of(data, one.name, "total")),
                f"{ratio:.2f} ×",
                seconds(statistics.median(_of(data, one.name, "lag"))),
                seconds(statistics.median(_of(data, one.name, "blocking", kept=True))),
                seconds(statistics.median(_of(data, one.name, "total", kept=True))),
                f"{seconds(statistics.median(calls))}, {seconds(max(calls))} at most",
                seconds(statistics.median(each["complete"] for each in back)),
                f"{torn} of {len(runs)}",
            )
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def write_page(data: dict[str, Any]) -> None:
    where = data["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in where["packages"].items())
    durable = "\n".join(f"- {one.name}: {one.durable}." for one in ALL)
    put(
        "large",
        f"""Twenty-five arrays of a million 32-bit floats, changed before each save, from an async
loop. Each way runs in a process of its own, in {data["rounds"]} rounds whose order changes; of six
saves after two to warm up the median counts, and of the rounds again. Loop lag is by how much a
timer of 1 ms in the same loop comes late. Back to back are five saves, each begun 20 ms after the
call of the one before has returned. In the end all arrays are changed right after the call: what is
then read back says whether the save had a copy.

Most of what a copy of 100 MB costs is that glibc takes new pages from the system for it, and gives
them back when it is freed. With `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2000000000` in the
environment of the process (see mallopt(3)) it keeps them: the columns *with memory kept*.

{table(data)}

![100 MB](large.svg)

What is safe once a save is complete:

{durable}

Measured on {where["date"]}: {where["cores"]} cores, {where["system"]}, Python {where["python"]};
{packages}.""",
    )


def plot(data: dict[str, Any], path: Path) -> None:
    """How long a call keeps the caller, within how long it takes until all is complete."""
    names = [one.name for one in ALL if _runs(data, one.name)]
    with figure(path, width=9, height=0.42 * len(names) + 1) as drawn:
        axes = drawn.subplots()
        total = [statistics.median(_of(data, name, "total")) * 1e3 for name in names]
        blocking = [statistics.median(_of(data, name, "blocking")) * 1e3 for name in names]
        axes.barh(range(len(names)), total, height=0.6, color="#93b7f5", label="until complete")
        axes.barh(
            range(len(names)), blocking, height=0.6, color="#e07b39", label="keeps the caller"
        )
        for place, name in enumerate(names):
            values = [value * 1e3 for value in _of(data, name, "total")]
            axes.plot([min(values), max(values)], [place, place], color=GREY, linewidth=1)
        axes.set_yticks(range(len(names)), [name.replace("`", "") for name in names])
        axes.invert_yaxis()
        axes.set_xlabel("ms for a state of 100 MB; line: the range of the rounds")
        axes.legend(frameon=False)
