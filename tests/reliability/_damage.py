"""Damage and lies: what is stored, mutated, its checksums left as they are or made right again."""

from __future__ import annotations

import asyncio
import random
import tempfile
import tracemalloc
from pathlib import Path

from ._damage_targets import Target, targets
from ._torture import Budget, Case, Counts

_MEMORY = 1 << 20
"""Bytes that reading may take besides 64 times what it reads."""


def mutated(rng: random.Random, sample: bytes) -> bytearray:
    """A sample with a few bytes changed, cut, repeated, put in or exchanged."""
    data = bytearray(sample)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64)))
        elif kind == 2:
            del data[at : at + rng.choice((1, 2, 8, 64))]
        elif kind == 3:
            data[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\xdd\xff\xff\xff", b"../x"))
        elif kind == 4 and data:
            data[at:at] = data[: rng.randrange(len(data))]
        elif at < len(data):
            data[at] ^= 1 << rng.randrange(8) if kind == 5 else rng.randrange(1, 256)
    return data


def attack(rng: random.Random, target: Target) -> str:
    """Read one mutant; what came of it. Half of what has checksums gets them made right again."""
    data = mutated(rng, rng.choice(target.samples))
    return target.judge(data, lies=target.mend is not None and rng.random() < 0.5)


def part(budget: Budget, *only: str) -> Counts:
    """Mutate and read; one case is up to 500 mutants of one kind. `only` of these kinds."""
    with tempfile.TemporaryDirectory() as name, asyncio.Runner() as runner:
        everything = targets(Path(name), runner.run)

        def one(case: Case) -> Counts:
            rng = case.random()
            kinds = only or list(everything)
            kind = kinds[case.number % len(kinds)]
            target = everything[kind]
            counts = Counts(mutants=target.burst, wrong=0)
            tracemalloc.start()
            try:
                for _ in range(target.burst):
                    counts[attack(rng, target)] += 1
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            largest = max(map(len, target.samples))
            assert peak < _MEMORY + 64 * largest, f"{kind}: {peak:,} bytes of memory"
            return counts

        return budget.each(one)
