"""A loop that keeps its state at each step, by each contestant in turn."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._measure import progress
from ._child import PROGRESS
from ._contestants import BY_NAME, Contestant

SIZES = (100, 10_000)


def child(**orders: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"{__package__}._child", json.dumps(orders)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str]) -> Any:
    """What it printed.

    Raises:
        RuntimeError: it failed.
    """
    out, err = process.communicate(timeout=300)
    for line in out.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise RuntimeError(err[-3000:])


def loops(
    names: Sequence[str], place: Path, rounds: int, seconds: float, seed: int
) -> list[dict[str, Any]]:
    """Every contestant in every round, in an order that changes."""
    rng = random.Random(seed)
    found = []
    for number in range(rounds):
        runs = [(name, size) for name in names for size in SIZES]
        rng.shuffle(runs)
        for name, size in runs:
            progress(f"  round {number + 1} of {rounds}: {name}, {size:,} bytes")
            with tempfile.TemporaryDirectory(dir=place) as directory:
                orders = {"size": size, "seconds": seconds, "place": directory}
                measured = result_of(child(job="measure", name=name, **orders))
            found.append({"name": name, "size": size, "round": number, **measured})
    return found


def ends(names: Sequence[str], place: Path, times: int, seed: int) -> list[dict[str, Any]]:
    """End the loop at random moments, by SIGKILL and by cancellation: how many of the steps that
    had kept their state must be done again."""
    rng = random.Random(seed)
    found = []
    for name in names:
        one = BY_NAME[name]
        if one.last is None:
            continue
        for how in ("kill", "cancel"):
            progress(f"  {how}: {name}, {times} times")
            for _ in range(times):
                with tempfile.TemporaryDirectory(dir=place) as directory:
                    found.append({"name": name, "how": how, **_ended(one, how, directory, rng)})
    return found


def _ended(one: Contestant, how: str, directory: str, rng: random.Random) -> dict[str, Any]:
    told = Path(directory, "progress")
    told.write_bytes(bytes(PROGRESS.size))
    orders = {"name": one.name, "place": directory, "size": 100}
    if how == "cancel":
        result_of(child(job="cancel", seed=rng.randrange(1 << 30), **orders))
    else:
        process = child(job="endless", **orders)
        try:
            while not PROGRESS.unpack(told.read_bytes())[0] and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.1, 0.6))
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    done = PROGRESS.unpack(told.read_bytes())[1]
    try:
        last = result_of(child(job="last", **orders))
    except RuntimeError as broken:
        return {"done": done, "redone": done, "unreadable": str(broken)[-300:]}
    return {"done": done, "redone": max(0, done - last)}
