"""States of 100 MB: every way in every round, in an order that changes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._measure import progress
from .side_by_side import result_of

KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2000000000"}
"""What has glibc keep large memory that is freed, instead of asking for new pages each time: see
mallopt(3)."""


def large_states(names: Sequence[str], place: Path, rounds: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    found = []
    for number in range(rounds):
        runs = [(name, kept) for name in names for kept in (False, True)]
        for name, kept in rng.sample(runs, len(runs)):
            how = ", memory kept" if kept else ""
            progress(f"  round {number + 1} of {rounds}: {name}, 100 MB{how}")
            with tempfile.TemporaryDirectory(dir=place) as directory:
                command = [sys.executable, "-m", "tests.bench.peers._large_child", name, directory]
                child = subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env={**os.environ, **(KEPT if kept else {})},
                )
                result = result_of(child)
                found.append({"name": name, "kept": kept, "round": number, **result})
    return found
