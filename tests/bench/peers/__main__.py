"""`make bench-peers`: the same work by aiocheckpoint and by others, side by side."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from .._measure import progress
from .._page import DOCS, write_data
from . import side_by_side
from ._contestants import ALL, BY_NAME
from ._page import machine, plot, table, write_page


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-peers", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {'; '.join(BY_NAME)}; default all")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each loop (default 5)")
    parser.add_argument("--seconds", type=float, default=5, help="of a loop (default 5)")
    parser.add_argument("--ends", type=int, default=20, help="kills, and cancels (default 20)")
    parser.add_argument("--directory", type=Path, help="where to write; default: the temporary one")
    parser.add_argument("--doc", action="store_true", help="write docs/benchmarks.md, plots, data")
    options = parser.parse_args()
    unknown = set(options.names) - set(BY_NAME)
    if unknown:
        parser.error(f"no such contestant: {', '.join(sorted(unknown))}")
    names = options.names or [one.name for one in ALL]
    seed = random.SystemRandom().randrange(1 << 32)
    with tempfile.TemporaryDirectory(prefix="aiocheckpoint-peers-", dir=options.directory) as name:
        place = Path(name)
        progress(f"{len(names)} contestants, {options.rounds} rounds of {options.seconds:g} s")
        loops = side_by_side.loops(names, place, options.rounds, options.seconds, seed)
        ends = side_by_side.ends(names, place, options.ends, seed)
    data = {"machine": machine(), "seed": seed, "loops": loops, "ends": ends}
    data["orders"] = {"rounds": options.rounds, "seconds": options.seconds, "ends": options.ends}
    print(table(data))
    if options.doc:
        write_data(DOCS / "peers.json", data)
        plot(data, DOCS / "peers.svg")
        write_page(data)
        progress("wrote docs/benchmarks.md, peers.svg, peers.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
