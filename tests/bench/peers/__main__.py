"""`make bench-peers`: the same work by aiocheckpoint and by others, side by side."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from .._measure import progress
from .._page import DOCS, write_data
from . import _large_page, _page, side_by_side
from ._contestants import ALL
from ._large_contestants import ALL as LARGE
from .large_states import large_states

PARTS = ("loops", "large")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-peers", description=__doc__)
    parser.add_argument("names", nargs="*", help="contestants (--list shows them); default all")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"default {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default 5)")
    parser.add_argument("--seconds", type=float, default=5, help="of a loop (default 5)")
    parser.add_argument("--ends", type=int, default=20, help="kills, and cancels (default 20)")
    parser.add_argument("--directory", type=Path, help="where to write; default: the temporary one")
    parser.add_argument("--doc", action="store_true", help="write docs/benchmarks.md, plots, data")
    parser.add_argument("--list", action="store_true", help="name the contestants, and end")
    options = parser.parse_args()
    known = {"loops": [one.name for one in ALL], "large": [one.name for one in LARGE]}
    if options.list:
        print("\n".join(f"{part}: {name}" for part in PARTS for name in known[part]))
        return 0
    if unknown := set(options.names) - {name for names in known.values() for name in names}:
        parser.error(f"no such contestant: {', '.join(sorted(unknown))}")
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="aiocheckpoint-peers-", dir=options.directory) as name:
        for part in parts:
            names = [one for one in known[part] if one in options.names or not options.names]
            if names:
                (_loops if part == "loops" else _large)(options, names, Path(name))
    return 0


def _loops(options: argparse.Namespace, names: list[str], place: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    progress(f"{len(names)} loops, {options.rounds} rounds of {options.seconds:g} s")
    loops = side_by_side.loops(names, place, options.rounds, options.seconds, seed)
    ends = side_by_side.ends(names, place, options.ends, seed)
    orders = {"rounds": options.rounds, "seconds": options.seconds, "ends": options.ends}
    machine = _page.machine(*_page.LOOPS)
    data = {"machine": machine, "seed": seed, "orders": orders, "loops": loops, "ends": ends}
    _tell(_page, data, "peers" if options.doc else None)


def _large(options: argparse.Namespace, names: list[str], place: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    large = large_states(names, place, options.rounds, seed)
    machine = _page.machine(*_page.LARGE)
    data = {"machine": machine, "seed": seed, "rounds": options.rounds, "large": large}
    _tell(_large_page, data, "large" if options.doc else None)


def _tell(page: ModuleType, data: dict[str, Any], name: str | None) -> None:
    """Print the table; with a name, write the data, the plot and the page's part as well."""
    print(page.table(data))
    if name is not None:
        write_data(DOCS / f"{name}.json", data)
        page.plot(data, DOCS / f"{name}.svg")
        page.write_page(data)
        progress(f"wrote docs/benchmarks.md, {name}.svg, {name}.json")


if __name__ == "__main__":
    sys.exit(main())
