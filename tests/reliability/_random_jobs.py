"""Programs at random, for the long forms: what no list of programs has thought of."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

from aiocheckpoint import Keyring, Runtime
from tests.reliability._jobs import JOBS, LARGE, LONG, Job, Tree, Witness, going_on

_SIZES = (0, 60, 700, 5000, LARGE)
AFTER, _RANDOM = "after ", "random "


def named(name: str) -> Job:
    """One of the list, or the random one of that number: `random 7`; `after` one, what is done
    with its key after a power cut."""
    if name.startswith(AFTER):
        return going_on(named(name.removeprefix(AFTER)))
    if name.startswith(_RANDOM):
        return _job(random.Random(name))
    return JOBS[name]


def name(rng: random.Random) -> str:
    return f"{_RANDOM}{rng.randrange(1 << 32)}"


def _job(rng: random.Random) -> Job:
    sealed = rng.random() < 0.2
    steps = rng.choices(
        ["flushed", "staged", "saved", "moved", "opened", "deleted"],
        [5, 4, 2, 0 if sealed else 2, 2, 1],
        k=rng.randrange(3, 12),
    )
    sizes = [rng.choice(_SIZES) for _ in steps]
    trees = tuple((f"tree {i}", _tree(rng, i)) for i in range(len(steps)))
    key = rng.choice(["k", LONG])
    return Job(
        partial(_run, key=key, steps=steps, sizes=sizes, trees=trees),
        key,
        keep=rng.choice([1, 1, 2, 3]),
        trees=trees,
        spool="auto" if "moved" in steps or rng.random() < 0.5 else None,
        encryption=Keyring({"key": bytes(range(32))}) if sealed else None,
    )


def _tree(rng: random.Random, number: int) -> Tree:
    files = {"config": b"%d" % number}
    for name in ("a", "b/c", "b/d", "e/f/g"):
        if rng.random() < 0.5:
            files[name] = bytes([rng.randrange(256)]) * rng.choice([0, 10, 5000, 300_000])
    return files


async def _run(
    witness: Witness,
    rt: Runtime,
    *,
    key: str,
    steps: Sequence[str],
    sizes: Sequence[int],
    trees: Sequence[tuple[str, Tree]],
) -> None:
    todo = list(enumerate(zip(steps, sizes, trees, strict=True), start=1))
    while todo:
        async with rt.open(key) as cp:
            while todo:
                number, (step, size, (path, tree)) = todo.pop(0)
                if step in ("flushed", "staged"):
                    await witness.write(cp, number, size, flush=step == "flushed")
                elif step in ("saved", "moved"):
                    await witness.save(cp, number, tree, path, move=step == "moved")
                elif step == "deleted":
                    witness.stage(None, None)
                    await cp.delete()
                if step in ("opened", "deleted"):
                    break
        witness.acknowledge()
