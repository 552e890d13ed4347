"""`make bench`: measure the rows of DESIGN 7 and say which hold."""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import anyio

from . import core, large, map, objects, postgres, redis
from ._measure import Row, progress

HEADER = ["what", "target", "measured (median)", "rounds, from to", "verdict", "note"]
SUITES = (core, large, map, objects, redis, postgres)
ROWS = {name: row for suite in SUITES for name, row in suite.ROWS.items()}
DOC = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"which of {', '.join(ROWS)}; default all")
    parser.add_argument("--rounds", type=int, default=7, help="rounds a row (default 7)")
    parser.add_argument("--directory", type=Path, help="where to write; default: the temporary one")
    parser.add_argument("--doc", action="store_true", help="write docs/benchmarks.md as well")
    options = parser.parse_args()
    unknown = set(options.rows) - set(ROWS)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    table: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="aiocheckpoint-bench-", dir=options.directory) as name:
        for row in options.rows or ROWS:
            progress(f"measuring {row} ...")
            table += anyio.run(ROWS[row], Path(name), options.rounds)
    lines = [HEADER, ["---"] * len(HEADER), *(row.cells for row in table)]
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    print(text)
    if options.doc:
        DOC.write_text(_document(text, options.rounds))
        progress(f"wrote {DOC.name}")
    return 0 if all(row.passed for row in table) else 1


def _document(table: str, rounds: int) -> str:
    return f"""# Benchmarks

`make bench ARGS=--doc` measures these rows and writes this page. Each row is a ratio or a time
taken within one run, against what stands beside it, in {rounds} rounds; the median counts.
Payloads change on every call. The machine is a small, shared virtual one: trust ratios, not
absolutes.

{table}

Measured on {time.strftime("%Y-%m-%d")}: {os.cpu_count()} cores, {platform.system()}
{platform.release()}, {platform.machine()}, {platform.python_implementation()}
{platform.python_version()}, SQLite {sqlite3.sqlite_version}.

## What falls short, and what was tried

**`write()` with spool** is a few percent over its target, more or less by the Python version and
the noise. What it does is one hash, one packing into mapped memory, one number and three
attributes. A lock would cost 200 ns, two calls for payload and header 60 ns; both are gone.

**Steps.** The state is staged in a microsecond; the rest is the price of a second thread that wants
the interpreter lock: a call to yield every 8 ms, each a switch of threads and a turn of the loop,
and the commits. Taken one by one (`write()` 4 µs a step on average, the work itself 1 % slower)
they add up to 3 %, and Python 3.12 and 3.13 came out at 98 to 99 %; this row on 3.11 says more, and
why is not yet understood.

**The busy loop.** A commit to `file:` makes five system calls that matter, and takes two hops
between threads. After each of these it has to win the interpreter lock back from the computing
loop, which gives it up every 5 ms: some 36 ms a commit, and the age is one to two commits. Writing
and syncing in one call saved 5 ms. Asking for one file name instead of listing the directory would
save 5 ms more, but two paused processes can then make each other believe that they have won.

**Ten thousand keys.** SQLite's part alone came to 0.9 of the raw statement's speed (measured
once, by hand). The rest is Python: some 10 µs a key to take the state, frame it, and settle the
answer, where the raw statement takes 3 µs in all. A calendar instead of a tick over all keys, one
pass instead of one task a key,
and fewer objects for the garbage collector brought it from 2 % to where it is.

**Puts to object stores.** If the service answers at once, two cores are all there is. The bare
client spends some 50 µs of Python a put with obstore and about a millisecond with aiobotocore, a
runtime 200 µs more: half of it on the user's loop (a write, a flush, a wake-up each), half on the
I/O thread. And each result that passes from thread to thread costs the I/O thread a wait for the
interpreter lock. One task, one timer and one call less per put, and wake-ups in batches, gave
nothing that could be seen. Services that are not on the same machine take their time to answer, and
then the runtime keeps up: so there is a row for one that takes 10 ms. A small state that is flushed
each time is the worst case, but states that are written and not flushed came to the same share.

**Ten thousand keys to PostgreSQL, through a runtime,** are held up by the same things as those to
SQLite above: the store's own part is the row before. The target of that row is ours.

**Loop lag.** The loop that is watched never rests, on a machine with two cores; the writing, the
checksum and the kernel's own threads take what is left. Ten thousand files used to stop it for
75 ms at a time, in the garbage collector: they make few objects now, and long computations of ours
give the interpreter away every 256 entries. What remains is not understood in full; waits for the
interpreter lock of up to 5 ms, several in a row, are part of it. The note says what another process
adds that does the same.

**A file of 1 GB.** The machine's own speed changes by a factor of three from one run to the next (a
plain loop of reads and writes took 1.1 to 2.9 s, `cp` 1.6 to 3.7 s for the same gigabyte), and so
does this row.
"""


if __name__ == "__main__":
    sys.exit(main())
