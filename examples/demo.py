"""The demo: a real job, interrupted seven times, that loses nothing.

    python examples/demo.py [--seed N] [--dir DIRECTORY]

The job (stdlib_index.py) runs twice at once, each in a process of its own: once undisturbed, and
once while this supervisor kills it three times, stops it once, lets it fail twice and locks its
database for a second, at moments drawn from the seed. Both results must be equal to the byte.

The table is made of what the job said while it ran (demo_worker.py): `staged` is the last seq that
a `write()` returned before the interruption, `resumed` the seq of the state that the job read after
it, and `redone` how many finished steps had to be done again.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from stdlib_index import find_sources

KILL, STOP, FAIL, OUTAGE = "SIGKILL", "SIGTERM", "RecoverableError", "store locked, 1 s"
KINDS = [KILL, KILL, KILL, STOP, FAIL, FAIL, OUTAGE]
EXIT_STATUS = {KILL: -signal.SIGKILL, STOP: 128 + signal.SIGTERM}  # a stopped job exits by itself


@dataclass
class Interruption:
    """What befalls the job when `at` files are done, and what came of it: a row of the table."""

    kind: str
    at: int
    staged: int | None = None
    resumed: int | None = None
    redone: int | None = None
    note: str = ""


def draw_plan(dice: random.Random, files: int) -> list[Interruption]:
    """One interruption in each seventh of the job; order and places are left to chance."""
    kinds = dice.sample(KINDS, len(KINDS))
    while kinds.index(OUTAGE) > 2:  # early, so that the others still find the job at work
        dice.shuffle(kinds)
    share = 0.92 * files / len(kinds)
    return [
        Interruption(kind, at=round((place + dice.uniform(0.1, 1.0)) * share))
        for place, kind in enumerate(kinds)
    ]


class Supervisor:
    """Brings the job to its end, through every interruption of the plan."""

    def __init__(
        self, plan: list[Interruption], dice: random.Random, folder: Path, progress: Progress
    ) -> None:
        self.plan = plan
        self.dice = dice
        self.folder = folder
        self.progress = progress
        self.seq = self.files = 0  # of the newest staged state
        self.steps = 0
        self.interrupted: list[Interruption] = []  # those after which the job has not read yet
        self.outage = threading.Thread()

    def run(self, total: int) -> None:
        bar = self.progress.add_task("indexing", total=total)
        while True:
            blow = ""
            with start_worker(self.folder, "interrupted", self.failures_to_come()) as worker:
                for event, seq, files in words_of(worker):
                    self.take_down(event, seq, files)
                    self.progress.update(bar, completed=files)
                    if event == "staged" and not blow:
                        blow = self.strike(worker)
                status = worker.wait()
            if status == 0:
                break
            if status != EXIT_STATUS.get(blow):
                log = (self.folder / "interrupted.log").read_text()
                raise SystemExit(f"the job ended with status {status}. Its log:\n{log}")

    def take_down(self, event: str, seq: int, files: int) -> None:
        """Keep what the job said."""
        if event == "staged":
            self.seq, self.files = seq, files
            self.steps += 1
        elif event == "failing":
            row = next(row for row in self.plan if row.kind == FAIL and row.at == files)
            self.interrupt(row)
        elif event == "resumed":
            for row in self.interrupted:
                row.staged, row.resumed, row.redone = self.seq, seq, max(0, self.files - files)
            self.interrupted.clear()

    def strike(self, worker: subprocess.Popen[bytes]) -> str:
        """Do what the plan has for now; return its kind if that ends the process."""
        ahead = [row for row in self.plan if row.kind != FAIL and row.staged is None]
        if not ahead or ahead[0].at > self.files or self.outage.is_alive():
            return ""
        row = ahead[0]
        time.sleep(self.dice.uniform(0, 0.02))  # anywhere within a step
        if row.kind == OUTAGE:
            self.outage = threading.Thread(target=self.lock_store, args=[row], daemon=True)
            self.outage.start()
            return ""
        worker.send_signal(signal.SIGKILL if row.kind == KILL else signal.SIGTERM)
        self.interrupt(row)
        return row.kind

    def interrupt(self, row: Interruption) -> None:
        row.staged = self.seq
        self.interrupted.append(row)
        self.tell(row)

    def lock_store(self, row: Interruption) -> None:
        """Hold the write lock of the job's database, so that nothing can be stored."""
        database = sqlite3.connect(self.folder / "interrupted.db", timeout=10, isolation_level=None)
        with contextlib.closing(database):
            database.execute("BEGIN IMMEDIATE")
            row.staged = self.seq
            self.tell(row)
            time.sleep(1)
            row.note = f"went on: {self.seq - row.staged} steps"
            row.redone = 0

    def failures_to_come(self) -> list[int]:
        return [row.at for row in self.plan if row.kind == FAIL and row.staged is None]

    def tell(self, row: Interruption) -> None:
        if not self.progress.disable:
            self.progress.console.print(f"file {self.files:>5}: {row.kind}")


@contextlib.contextmanager
def start_worker(
    folder: Path, name: str, fail_at: Sequence[int] = (), stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """The job in a process of its own, which does not outlive the block."""
    command = [sys.executable, str(Path(__file__).with_name("demo_worker.py"))]
    command += [str(folder / f"{name}.db"), str(folder / f"{name}.json")]
    command += ["--fail-at", *map(str, fail_at)]
    with (folder / f"{name}.log").open("ab") as log:
        worker = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=log,
            process_group=0,  # Ctrl-C is for the supervisor, who ends the workers
        )
    with worker:
        try:
            yield worker
        finally:
            worker.kill()


def words_of(worker: subprocess.Popen[bytes]) -> Iterator[tuple[str, int, int]]:
    assert worker.stdout is not None
    for line in worker.stdout:
        event, seq, files = line.split()
        yield event.decode(), int(seq), int(files)


def print_table(console: Console, plan: list[Interruption]) -> None:
    table = Table("interruption")
    for column in ("staged seq", "resumed seq", "steps redone"):
        table.add_column(column, justify="right")
    for row in sorted(plan, key=lambda row: (row.staged is None, row.staged)):
        cells = [row.staged, row.note or row.resumed, row.redone]
        table.add_row(row.kind, *("never came" if cell is None else str(cell) for cell in cells))
    if any(row.staged and row.resumed and row.resumed > row.staged for row in plan):
        table.caption = "resumed beyond staged: it staged one more, and died before it could say so"
    console.print(table)


def demonstrate(console: Console, folder: Path, seed: int) -> bool:
    """Run it all; return whether nothing was lost."""
    began = time.monotonic()
    dice = random.Random(seed)
    total = len(find_sources(Path(sysconfig.get_path("stdlib"))))
    plan = draw_plan(dice, total)
    console.print(f"{total} files to index, seven interruptions, --seed {seed}")
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with start_worker(folder, "undisturbed", stdout=subprocess.DEVNULL) as undisturbed, bar:
        supervisor = Supervisor(plan, dice, folder, bar)
        supervisor.run(total)
        if undisturbed.wait():
            raise SystemExit((folder / "undisturbed.log").read_text())

    result = (folder / "interrupted.json").read_bytes()
    same = result == (folder / "undisturbed.json").read_bytes()
    redone = sum(row.redone or 0 for row in plan)
    print_table(console, plan)
    console.print(f"{supervisor.steps} steps reported for {total} files, {redone} redone.")
    relation = "equals" if same else "DIFFERS from"
    console.print(f"The result ({len(result)} bytes) {relation} that of the undisturbed run.")
    ok = same and all(row.redone == 0 for row in plan)
    verdict = "[green]Nothing was lost[/]" if ok else "[red]The demo failed[/]"
    console.print(f"{verdict}, after {time.monotonic() - began:.1f} s.")
    return ok


def main() -> None:
    parser = argparse.ArgumentParser(description="Interrupt a real job; show what was lost.")
    parser.add_argument("--seed", type=int, help="repeat the interruptions of an earlier run")
    parser.add_argument("--dir", type=Path, help="an empty directory to keep everything in")
    options = parser.parse_args()
    if options.dir and options.dir.exists() and any(options.dir.iterdir()):
        parser.error(f"{options.dir} is not empty")
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with contextlib.ExitStack() as stack:
        if options.dir:
            options.dir.mkdir(parents=True, exist_ok=True)
            folder = options.dir
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aiocheckpoint-")))
        ok = demonstrate(Console(), folder, seed)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
