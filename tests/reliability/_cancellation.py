"""Cancellation: at every point of every program, and at random.

`python -m tests.reliability._cancellation` prints the table of points of docs/reliability.md.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from ._cancelling import BACKENDS, Program, interrupt
from ._interrupting import Point
from ._programs import PROGRAMS
from ._torture import Budget, Case, Counts
from ._ways import ONCE, TWICE, any_way

SCHEMES = ("memory", "file", "sqlite")


def points_of(program: Program, scheme: str, backend: str, base: Path) -> list[Point]:
    """Where a program waits, each place once, in the order of its run."""
    return list(dict.fromkeys(interrupt(program, scheme, backend, base).points))


def every_point(
    program: Program, scheme: str, backend: str, base: Path, *, step: int = 1, behind: int = 1
) -> Counts:
    """Interrupt a program at each of its points (or each `step`-th), once and twice; where the I/O
    thread waits (or each `behind`-th time), once or twice. The ways take turns, and so do early and
    late."""
    turn = list(BACKENDS).index(backend)
    counts = Counts(interruptions=0, over=0)
    points = points_of(program, scheme, backend, base)
    left_out = [one for n, one in enumerate(p for p in points if p.side == "io") if n % behind]
    points = [point for point in points if point not in left_out][turn % step :: step]
    for n, point in enumerate(points, turn):
        kinds = [ONCE, TWICE] if point.side == "user" else [(ONCE, TWICE)[n % 2]]
        for m, kind in enumerate(kinds):
            ways = [way for way in kind if way.fits(backend, point)]
            way = ways[(n // 2 if len(kinds) == 1 else n) % len(ways)]
            late = point.side == "user" and (n + m) % 2 == 1
            ending = interrupt(program, scheme, backend, base, way, point, late=late)
            counts["interruptions" if ending.interrupted else "over"] += 1
    return counts


def cancellation(budget: Budget) -> Counts:
    """Any program on any store and loop, at any of its points, one to three times."""
    with TemporaryDirectory() as directory:
        base = Path(directory)
        known = functools.cache(functools.partial(points_of, base=base))

        def attempt(case: Case) -> Counts:
            rng = case.random()
            program, backend = rng.choice(PROGRAMS), rng.choice(list(BACKENDS))
            scheme = rng.choice(("memory", *SCHEMES))
            point = rng.choice(known(program, scheme, backend))
            way = any_way(rng)
            while not way.fits(backend, point):
                way = any_way(rng)
            late = rng.random() < 0.5
            try:
                ending = interrupt(program, scheme, backend, base, way, point, late=late)
            except BaseException as error:
                when = "late" if late else "early"
                what = f"{program.__name__}, {scheme}, {backend}: {way.name} {when} at {point}"
                error.add_note(what)
                raise
            return Counts(
                interruptions=ending.interrupted,
                again=ending.interrupted and len(way.again) > 0,
                over=not ending.interrupted,
                lost=0,
                left=0,
            )

        return budget.each(attempt)


def main() -> None:
    counts: dict[str, Counter[tuple[str, str]]] = {}
    with TemporaryDirectory() as directory:
        for backend in BACKENDS:
            for program in PROGRAMS:
                for point in points_of(program, "memory", backend, Path(directory)):
                    name = point.doing or "`write`, between other steps"
                    counts.setdefault(name, Counter())[backend, point.side] += 1
    print("| what is under way | " + " | ".join(BACKENDS) + " |")
    print("|---" * (1 + len(BACKENDS)) + "|")
    for name, by in counts.items():
        each = [f"{by[backend, 'user']} + {by[backend, 'io']}" for backend in BACKENDS]
        print(f"| {name} | {' | '.join(each)} |")
    sums = [
        sum(by[backend, side] for by in counts.values() for side in ("user", "io"))
        for backend in BACKENDS
    ]
    print(f"| all | {' | '.join(map(str, sums))} |")


if __name__ == "__main__":
    main()
