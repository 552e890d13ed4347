"""One job in a process of its own, for strace to see: `_program JOB URL BASE MARKS TOLD`."""

from __future__ import annotations

import asyncio
import os
import pickle
import sqlite3
import sys
from pathlib import Path
from typing import Any

from aiocheckpoint import _mapped
from tests.reliability._jobs import Witness
from tests.reliability._random_jobs import named
from tests.reliability._recorder import Recorder
from tests.reliability._torn import Op


def lax(mode: str) -> type[sqlite3.Connection]:
    """A connection that syncs less than the store asks for."""

    class Lax(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            return super().execute(sql.replace("synchronous=EXTRA", f"synchronous={mode}"), *args)

    return Lax


def main(name: str, url: str, base: str, marks: str, told: str, synchronous: str = "") -> None:
    """Run the job; what it staged, and what a recorder saw of a store in files, go to `told`."""
    out = os.open(marks, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    recorder = Recorder(Path(base))

    def mark(kind: str, number: int) -> None:
        recorder.mark(kind, number)
        os.write(out, f"{kind} {number}\n".encode())

    if synchronous:
        connect = sqlite3.connect
        sqlite3.connect = lambda *args, **options: connect(  # type: ignore[assignment]
            *args, **options, factory=lax(synchronous)
        )
    witness = Witness(Path(base), url, mark)
    _mapped._SHARED = _mapped.LARGEST_SEAT  # takes less time to look at
    with recorder:
        asyncio.run(named(name).run(witness))
    ops = [op for op in recorder.ops if op.kind != "mapped"]
    Path(told).write_bytes(pickle.dumps((list[Op](ops), witness.versions)))


if __name__ == "__main__":
    main(*sys.argv[1:])
