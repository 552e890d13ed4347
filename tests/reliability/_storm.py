"""The kill storm: writers that are killed at random moments, and what their successors find."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from ._processes import processes
from ._progress import Progress
from ._torture import Budget, Case, Counts
from ._victim import Orders, live

STORES = [(scheme, spool) for scheme in ("file", "sqlite") for spool in (True, False)]
KILLS = 5
"""Of one key, one after the other."""
_LATE = 40.0


class Lost(AssertionError):
    """A successor has found what it must not find."""


class Losses:
    """What kills without a spool have cost, in ms of writing, and by how much that is more than
    promised: the longer of `min_interval` and the last commit, plus the commit under way."""

    def __init__(self) -> None:
        self.lost: list[float] = []
        self.beyond: list[float] = []

    def add(self, before: Progress, found: int, min_interval: float) -> None:
        """What the successor of `before` has found."""
        newest = before.staged_at(before.staged)
        first = max(found + 1, before.first)
        lost = newest - before.staged_at(first) if first <= before.staged else 0
        began = before.commit_began
        promised = max(min_interval * 1e9, before.commit_took) + (newest - began if began else 0)
        self.lost.append(lost / 1e6)
        self.beyond.append((lost - promised) / 1e6)

    def __str__(self) -> str:
        if len(self.lost) < 2:
            return "too few kills to measure what is lost"
        return "; ".join(
            f"{what}: median {statistics.median(ms):,.1f} ms,"
            f" p99 {statistics.quantiles(ms, n=100)[-1]:,.1f} ms, most {max(ms):,.1f} ms"
            for what, ms in (
                ("lost without a spool", self.lost),
                ("more than promised", self.beyond),
            )
        )


def storm(budget: Budget) -> Counts:
    """Kill writers over each local store, with a spool and without."""
    losses = Losses()
    counts = budget.each(lambda case: one_round(case, losses))
    if budget.part:
        print(f"{budget.part}: {losses}", flush=True)
    return counts


def one_round(case: Case, losses: Losses) -> Counts:
    """A key in each store, killed over and over."""
    counts = Counts()
    for scheme, spool in STORES:
        seed = f"{case.seed}:{case.number}:{scheme}:{spool}"
        counts.update(chain(scheme, losses, seed, spool=spool))
    return counts


def chain(scheme: str, losses: Losses, seed: str, *, spool: bool, flaw: str = "") -> Counts:
    """Kill the writers of one key one after the other; let the last one end.

    Raises:
        Lost: one has found something older than it must, or that nobody wrote.
    """
    rng = random.Random(seed)
    counts = Counts(kills=0, opened=0, staged=0, lost=0, torn=0, backwards=0)
    safe = begun = 0  # what the next one may find
    before: Progress | None = None
    keep, min_interval = rng.choice((1, 1, 2)), rng.choice((0.0, 0.02, 0.1))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for kill in range(KILLS + 1):
            last = kill == KILLS
            writes = 1 if last else rng.choice((10, 1_000, 1_000_000))
            progress = directory / f"progress-{kill}"
            orders = Orders(
                *(directory, progress, scheme, spool, f"{seed}:{kill}"),
                *(begun + 1, writes, keep, min_interval, flaw),
            )
            victim = _meet(orders, None if last else rng.uniform(0, 0.4) ** 2)
            counts["kills"] += not last and not victim.ended
            counts["staged"] += max(0, victim.staged - begun)
            if victim.opened:
                counts["opened"] += 1
                if not safe <= victim.found <= begun:
                    raise Lost(
                        f"{scheme}: state {victim.found} was found where {safe} to {begun} were"
                        f" promised (seed {seed}, kill {kill})"
                    )
                if before is not None and not spool:
                    losses.add(before, victim.found, min_interval)
                safe = max(safe, victim.found)
                before = victim if victim.staged else None
            safe = max(safe, victim.safe)
            begun = max(begun, victim.begun)
        _left_tidy(directory / "store")
    return counts


def _meet(orders: Orders, delay: float | None) -> Progress:
    """Start a victim and kill it so many seconds later; None: let it end."""
    progress = Progress.at(orders.progress)
    process = processes().Process(target=live, args=(orders,))
    process.start()
    try:
        _wait_for_start(progress, process)
        if delay is None:
            process.join(_LATE)
            assert not process.is_alive(), "the last writer hangs"
        else:
            time.sleep(delay)  # the random moment
    finally:
        process.kill()
        process.join()
    failure = orders.directory / "failure"
    if failure.exists():
        raise Lost(failure.read_text())
    assert process.exitcode in ((0,) if delay is None else (0, -9)), process.exitcode
    process.close()
    return progress


def _wait_for_start(progress: Progress, process: ForkServerProcess) -> None:
    until = time.monotonic() + _LATE
    while not progress.started:
        assert process.is_alive(), "a writer did not start"
        assert time.monotonic() < until, "a writer starts too slowly"
        time.sleep(0.0005)


def _left_tidy(store: Path) -> None:
    """After the last has left well: no region and no tree of the spool, but what was set aside."""
    for spool in (store / ".spool", store.with_name(store.name + "-spool")):
        left = [path for path in spool.glob("*/*") if path.suffix != ".aside"]
        if left:
            raise Lost(f"left in the spool: {left}")
