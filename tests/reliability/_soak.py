"""The soak: everything at full rate, with faults, and what the process holds meanwhile."""

from __future__ import annotations

import gc
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from aiocheckpoint import Checkpointer, Runtime
from aiocheckpoint.stores import open_store

from ._flaky import FlakyStore
from ._load import Load
from ._torture import Counts

_WARM_UP = 0.25
"""The part of a soak in which pools and caches may grow."""


class Sample(msgspec.Struct):
    """What the process held when all of its work paused."""

    seconds: float
    memory: float
    """MB, resident."""
    descriptors: int
    threads: int
    disk: float
    """MB, of the stores."""


class Soak(msgspec.Struct):
    """A run: what it did, and samples of what it held."""

    counts: dict[str, int]
    samples: list[Sample]

    def leaks(self) -> dict[str, float]:
        """What has grown, and by how much: from the first half of the samples to the second, by
        their medians, without the warm-up."""
        settled = [s for s in self.samples if s.seconds >= _WARM_UP * self.samples[-1].seconds]
        half = len(settled) // 2
        grown = {
            name: _median(settled[half:], name) - _median(settled[:half], name) for name in _NOISE
        }
        return {name: more for name, more in grown.items() if more > _NOISE[name]}


# by how much a median may differ that does not grow
_NOISE = {"memory": 40.0, "descriptors": 2.0, "threads": 2.0, "disk": 15.0}


def _median(samples: list[Sample], name: str) -> float:
    values: list[float] = [getattr(sample, name) for sample in samples]
    return statistics.median(values)


def soak(
    seconds: float, rounds: int, seed: int, told: Callable[[Sample], object] = lambda sample: None
) -> Soak:
    """So many rounds of load, with a sample after each."""
    return anyio.run(_soak, seconds, rounds, seed, told)


async def _soak(seconds: float, rounds: int, seed: int, told: Callable[[Sample], object]) -> Soak:
    rng = random.Random(seed)
    start = time.monotonic()
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        async with AsyncExitStack() as stack:
            loads: list[tuple[Load, Checkpointer[bytes]]] = []
            stores: list[FlakyStore] = []
            for url in (f"file:{directory / 'files'}", f"sqlite:{directory / 'states.db'}"):
                store = FlakyStore(open_store(url), rng)
                stack.push_async_callback(store.aclose)
                runtime = await stack.enter_async_context(Runtime(store, min_interval=0.02))
                rival = await stack.enter_async_context(Runtime(store, min_interval=0.02))
                standing = await stack.enter_async_context(runtime.open("standing", type=bytes))
                scratch = directory / f"scratch-{len(loads)}"
                scratch.mkdir()
                loads.append((Load(runtime, rival, scratch, rng), standing))
                stores.append(store)
            for _ in range(rounds):
                async with anyio.create_task_group() as group:
                    for load, standing in loads:
                        group.start_soon(load.go_on, seconds / rounds, standing)
                samples.append(await _sample(directory, start))
                told(samples[-1])
            counts = sum((load.counts for load, _ in loads), Counts())
            counts["faults"] = sum(store.faults for store in stores)
    return Soak(dict(counts), samples)


async def _sample(directory: Path, start: float) -> Sample:
    """What is held once all that is in the background has ended."""
    disk = -1.0
    for _ in range(100):
        before, disk = disk, await anyio.to_thread.run_sync(_used, directory)
        if disk == before:
            break
        await anyio.sleep(0.02)
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        seconds=round(time.monotonic() - start, 1),
        memory=round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1),
        descriptors=len(os.listdir("/proc/self/fd")),
        threads=threading.active_count(),
        disk=round(disk, 2),
    )


def _used(directory: Path) -> float:
    """MB that its files take up."""
    blocks = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                blocks += os.lstat(os.path.join(folder, name)).st_blocks
            except FileNotFoundError:
                continue  # collected just now
    return blocks * 512 / 1e6
