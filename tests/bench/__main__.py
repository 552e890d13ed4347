"""`make bench`: measure the rows of DESIGN 7 and say which hold."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import anyio

from . import _rows, core, large, map, objects, postgres, redis
from ._measure import Row, progress

SUITES = (core, large, map, objects, redis, postgres)
ROWS = {name: row for suite in SUITES for name, row in suite.ROWS.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"which of {', '.join(ROWS)}; default all")
    parser.add_argument("--rounds", type=int, default=7, help="rounds a row (default 7)")
    parser.add_argument("--directory", type=Path, help="where to write; default: the temporary one")
    parser.add_argument("--doc", action="store_true", help="write docs/benchmarks.md, plot, data")
    options = parser.parse_args()
    unknown = set(options.rows) - set(ROWS)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    measured: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory(prefix="aiocheckpoint-bench-", dir=options.directory) as name:
        for row in options.rows or ROWS:
            progress(f"measuring {row} ...")
            measured[row] = anyio.run(ROWS[row], Path(name), options.rounds)
    rows = [row for several in measured.values() for row in several]
    print(_rows.table(rows))
    if options.doc:
        _rows.write(measured, list(ROWS))
        progress("wrote docs/benchmarks.md, bench.svg, bench.json")
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
