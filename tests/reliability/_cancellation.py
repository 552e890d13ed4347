"""Cancellation: at every point of every program, and at random.

`python -m tests.reliability._cancellation` interrupts at every point in every way, and prints the
table of docs/reliability.md.
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
from ._ways import ONCE, TWICE, WAYS, any_way

SCHEMES = ("memory", "file", "sqlite")


def points_of(program: Program, scheme: str, backend: str, base: Path) -> list[Point]:
    """Where a program waits, each place once, in the order of its run."""
    return list(dict.fromkeys(interrupt(program, scheme, backend, base).points))


def every_point(
    program: Program, scheme: str, backend: str, base: Path, *, step: int = 1
) -> Counts:
    """Interrupt a program at each of its points (or each `step`-th), once and twice; where the I/O
    thread waits, once or twice. The ways take turns, and so do early and late."""
    turn = list(BACKENDS).index(backend)
    counts = Counts(interruptions=0, over=0)
    for n, point in enumerate(points_of(program, scheme, backend, base)[turn % step :: step], turn):
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
    user, behind, ends = Counter[str](), Counter[str](), Counter[str]()
    order: dict[str, None] = {}
    with TemporaryDirectory() as directory:
        base = Path(directory)
        for backend in BACKENDS:
            for program in PROGRAMS:
                for point in points_of(program, "memory", backend, base):
                    name = point.doing or "write, between other steps"
                    order[name] = None
                    (user if point.side == "user" else behind)[f"{name}|{backend}"] += 1
                    for way in WAYS.values():
                        for late in (False, True) if point.side == "user" else (False,):
                            if way.fits(backend, point):
                                interrupt(program, "memory", backend, base, way, point, late=late)
                                ends[name] += 1
    print("| what is under way | " + " | ".join(BACKENDS) + " | interruptions |")
    print("|---" * (2 + len(BACKENDS)) + "|")
    for name in order:
        points = [f"{user[f'{name}|{one}']} + {behind[f'{name}|{one}']}" for one in BACKENDS]
        print(f"| {name} | {' | '.join(points)} | {ends[name]:,} |")
    print(f"{sum(ends.values()):,} interruptions")


if __name__ == "__main__":
    main()
