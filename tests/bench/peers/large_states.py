"""States of 100 MB: every way in every round, in an order that changes."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._measure import progress
from .side_by_side import result_of


def large_states(names: Sequence[str], place: Path, rounds: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    found = []
    for number in range(rounds):
        for name in rng.sample(names, len(names)):
            progress(f"  round {number + 1} of {rounds}: {name}, 100 MB")
            with tempfile.TemporaryDirectory(dir=place) as directory:
                command = [sys.executable, "-m", "tests.bench.peers._large_child", name, directory]
                child = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
                found.append({"name": name, "round": number, **result_of(child)})
    return found
