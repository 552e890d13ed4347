"""`make bench-growth`: how cost grows with keys, sizes, history, files, processes and latency."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio

from .._measure import progress
from .._page import DOCS, machine, put, write_data
from ._curves import TITLES, plot, table
from ._points import POINTS, flushing, measured

_FILE = "growth.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-growth", description=__doc__)
    parser.add_argument("curves", nargs="*", help=f"of {', '.join(POINTS)}; default all")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each point (default 3)")
    parser.add_argument("--most", type=int, help="leave out points beyond this x")
    parser.add_argument("--directory", type=Path, help="where to write; default: the temporary one")
    parser.add_argument("--doc", action="store_true", help="write docs/benchmarks.md, plots, data")
    parser.add_argument("--point", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--flushing", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        curve, x, place = options.point
        print("RESULT", json.dumps(measured(curve, int(x), Path(place))))
        return 0
    if options.flushing:
        url, key, start = options.flushing
        anyio.run(flushing, url, key, float(start))
        return 0
    if unknown := set(options.curves) - set(POINTS):
        parser.error(f"no such curve: {', '.join(sorted(unknown))}")
    names = options.curves or list(POINTS)
    points = _points(names, options.rounds, options.most, options.directory)
    data: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "points": points}
    print("\n\n".join(table(data, name) for name in names))
    if options.doc:
        _write(data, names)
    return 0


def _points(
    names: list[str], rounds: int, most: int | None, directory: Path | None
) -> list[dict[str, Any]]:
    """Every point in every round, each in a process and directory of its own."""
    found = []
    for number in range(rounds):
        todo = [(name, x) for name in names for x in POINTS[name][1] if most is None or x <= most]
        random.shuffle(todo)
        for name, x in todo:
            progress(f"  round {number + 1} of {rounds}: {name}, {x:,}")
            with tempfile.TemporaryDirectory(prefix="growth-", dir=directory) as place:
                command = [sys.executable, "-m", "tests.bench.growth", "--point", name, str(x)]
                done = subprocess.run(
                    [*command, place], capture_output=True, text=True, timeout=1200, check=False
                )
            if done.returncode:
                raise RuntimeError(f"{name}, {x}: {done.stderr[-3000:]}")
            result = done.stdout.rpartition("RESULT ")[2]
            found.append({"curve": name, "x": x, "round": number, "figures": json.loads(result)})
    return found


def _write(data: dict[str, Any], names: list[str]) -> None:
    """Into the page, the data and the plot; curves that were not measured stay as they were."""
    file = DOCS / _FILE
    before = json.loads(file.read_text())["points"] if file.exists() else []
    data["points"] = [p for p in before if p["curve"] not in names] + data["points"]
    write_data(file, data)
    plot(data, DOCS / "growth.svg")
    most = 1 + max(point["round"] for point in data["points"])
    tables = "\n\n".join(table(data, name) for name in TITLES)
    put(
        "growth",
        f"""{tables}

![How cost grows](growth.svg)

Medians of {most} rounds or fewer; the plot shows the range of the rounds as well. The exponent is
the slope of a least-squares line where both axes are logarithmic: 0 says that the cost stays, 1
that it grows in proportion. Measured on {data["machine"]["date"]}.""",
    )
    progress("wrote docs/benchmarks.md, growth.svg, growth.json")


if __name__ == "__main__":
    sys.exit(main())
