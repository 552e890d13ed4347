"""The rows for what is large: states of 100 MB, a file of 1 GB, ten thousand files."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

import aiocheckpoint
from aiocheckpoint import Checkpointer, Keyring

from ._measure import Row, progress

MB = 10**6
LARGE = 100 * MB
clock = time.perf_counter


class _Lag:
    """The longest time that a loop which always has something to do did not come round."""

    worst = 0.0


@asynccontextmanager
async def _watched() -> AsyncIterator[_Lag]:
    lag = _Lag()

    async def watch() -> None:
        last = clock()
        while True:
            await anyio.lowlevel.checkpoint()
            now = clock()
            lag.worst = max(lag.worst, now - last)
            last = now

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await anyio.lowlevel.checkpoint()
        yield lag
        group.cancel_scope.cancel()


async def _lag_of_others(command: list[str | Path]) -> float:
    """The lag that another process adds by doing the same: the machine's share in ours."""
    more, _ = await _added_lag(
        lambda: anyio.to_thread.run_sync(lambda: subprocess.run(command, check=True))
    )
    return more


def _machine(control: list[float]) -> str:
    return f"{statistics.median(control) * 1000:.1f} ms while another process does the same"


async def _added_lag(work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """How much longer the longest stall was with `work` than in as long a time without; and how
    long the work took."""
    began = clock()
    async with _watched() as busy:
        await work()
    took = clock() - began
    async with _watched() as idle:
        await anyio.sleep(took)
    return max(0.0, busy.worst - idle.worst), took


def _large_states() -> list[bytes]:
    """Three states of 100 MB, each unlike the others from its first byte to its last."""
    return [os.urandom(MB) * (LARGE // MB) for _ in range(3)]


async def lag(directory: Path, rounds: int) -> list[Row]:
    """How long the loop stands still while states of 100 MB are stored behind it."""
    states = _large_states()
    rows = []
    for scheme in ("file", "sqlite"):
        added = []
        took = []
        control = []
        (directory / "state").write_bytes(states[0])
        async with aiocheckpoint.open(f"{scheme}:{directory}/lag-{scheme}", "k") as cp:

            async def store(cp: Checkpointer[bytes] = cp) -> None:
                for state in states:
                    await cp.write(state)
                    await cp.flush()

            await store()
            for _ in range(rounds):
                more, seconds = await _added_lag(store)
                added.append(more)
                took.append(seconds / len(states))
                for name in ("dd1", "dd2", "dd3"):
                    command: list[str | Path] = ["dd", f"if={directory}/state"]
                    command += [f"of={directory}/{name}", "bs=100M", "conv=fsync", "status=none"]
                    control.append(await _lag_of_others(command))
        rows.append(
            Row(
                f"worst added loop lag while `bytes` states of 100 MB are stored, `{scheme}:`",
                0.005,
                "at most",
                added,
                "ms",
                f"{statistics.median(took) * 1000:.0f} ms a state; {_machine(control)}",
            )
        )
    return rows


async def large(directory: Path, rounds: int) -> list[Row]:
    """100 MB to `file:`, against writing and syncing them: plain, encrypted, compressed."""
    text = [os.urandom(MB // 2).hex().encode() * (LARGE // MB) for _ in range(3)]
    keyring = Keyring({"a": Keyring.generate_key()})
    return [
        await _large(directory, rounds, "", _large_states(), 0.8),
        await _large(directory, rounds, ", encrypted", _large_states(), 0.5, encryption=keyring),
        await _large(
            directory, rounds, " of hexadecimal text, zstd", text, 0.2, compression="zstd"
        ),
    ]


async def _large(
    directory: Path, rounds: int, how: str, states: list[bytes], target: float, **options: Any
) -> Row:
    ratios, ours = [], []

    def raw(state: bytes) -> float:
        path = directory / "raw"
        began = clock()
        with path.open("wb", buffering=0) as file:
            view = memoryview(state)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())
        took = clock() - began
        path.unlink()
        return took

    url = f"file:{directory}/large-{len(how)}"
    async with aiocheckpoint.open(url, "k", min_interval=0, **options) as cp:

        async def store(state: bytes) -> float:
            began = clock()
            await cp.write(state)
            await cp.flush()
            return clock() - began

        for state in states:
            await store(state)
        for _ in range(rounds):
            bases = [await anyio.to_thread.run_sync(raw, state) for state in states]
            took = []
            for state in states:
                took.append(await store(state))
                await anyio.sleep(0.5)  # the file before is deleted untimed, as the raw one is
            ratios.append(statistics.median(bases) / statistics.median(took))
            ours += took
    return Row(
        f"a state of 100 MB{how} to `file:`, against raw write and fsync",
        target,
        "at least",
        ratios,
        "%",
        f"{LARGE / MB / statistics.median(ours):.0f} MB/s",
    )


_MEMORY = """
import asyncio, json, os, resource, sys
import aiocheckpoint

size, url = int(sys.argv[1]), sys.argv[2]

async def steps(write):
    for n in range(12):
        await write(os.urandom(1_000_000) * (size // 1_000_000))  # one allocation, no copy
        await asyncio.sleep(0.05)

async def nothing(state):
    pass

async def main():
    if url == "none":
        await steps(nothing)
    else:
        async with aiocheckpoint.open(url, "k", min_interval=0) as cp:
            await steps(cp.write)

asyncio.run(main())
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
"""


async def memory(directory: Path, rounds: int) -> list[Row]:
    """Peak memory of a task that writes large states, over that of the task alone."""
    rows = []
    for size in (10 * MB, LARGE):

        def peak(url: str, size: int = size) -> float:
            args = [sys.executable, "-c", _MEMORY, str(size), url]
            done = subprocess.run(args, check=True, capture_output=True, text=True)
            return float(json.loads(done.stdout))

        over = []
        for number in range(rounds):
            bare = await anyio.to_thread.run_sync(peak, "none")
            ours = await anyio.to_thread.run_sync(peak, f"file:{directory}/memory-{size}-{number}")
            over.append((ours - bare) / MB)
        rows.append(
            Row(
                f"peak memory over the bare task, states of {size // MB} MB, `file:`",
                2 * size / MB + 30,
                "at most",
                over,
                "MB",
            )
        )
    return rows


async def _save_against_copy(
    directory: Path,
    rounds: int,
    what: str,
    source: Path,
    change: Callable[[], None],
    copy: Callable[[Path], None],
) -> list[Row]:
    ratios, ours, stalls, control = [], [], [], []

    def timed(target: Path) -> float:
        began = clock()
        copy(target)
        took = clock() - began
        _remove(target)
        return took

    async with aiocheckpoint.open(f"file:{directory}/{source.name}-store", "k") as cp:
        for number in range(rounds + 1):
            await anyio.to_thread.run_sync(change)
            base = took = 0.0
            for ours_now in (number % 2 == 0, number % 2 == 1):  # neither is always the first
                os.sync()
                await anyio.sleep(1)
                if ours_now:
                    began = clock()
                    await cp.save(source, state=b"%d" % number)
                    took = clock() - began
                else:
                    base = await anyio.to_thread.run_sync(timed, directory / "copy")
            os.sync()
            await anyio.to_thread.run_sync(change)
            os.sync()
            more, _ = await _added_lag(lambda: cp.save(source))
            os.sync()
            control.append(await _lag_of_others(["cp", "-r", source, directory / "other"]))
            await anyio.to_thread.run_sync(_remove, directory / "other")
            if number:  # the first is for warming up
                ratios.append(base / took)
                ours.append(took)
                stalls.append(more)
    return [
        Row(
            f"`save` of {what} to `file:`, against `cp` and fsync of the same",
            0.8,
            "at least",
            ratios,
            "%",
            f"{statistics.median(ours):.2f} s",
        ),
        Row(
            f"worst added loop lag meanwhile, {what}",
            0.005,
            "at most",
            stalls,
            "ms",
            _machine(control),
        ),
    ]


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


async def one_file(directory: Path, rounds: int) -> list[Row]:
    """A file of 1 GB, all of whose chunks have changed."""
    source = directory / "one"
    size = 1000 * MB
    progress("  writing 1 GB")
    with source.open("wb") as file:
        for _ in range(size // MB):
            file.write(os.urandom(MB))

    def change() -> None:
        with source.open("r+b") as file:
            for start in range(0, size, MB):
                file.seek(start)
                file.write(os.urandom(8))

    def copy(target: Path) -> None:
        subprocess.run(["cp", source, target], check=True)
        fd = os.open(target, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    return await _save_against_copy(directory, rounds, "one file of 1 GB", source, change, copy)


async def many_files(directory: Path, rounds: int) -> list[Row]:
    """Ten thousand files of 1 to 8 KB in a hundred directories, all changed."""
    source = directory / "many"

    def change() -> None:
        for number in range(10_000):
            path = source / f"{number // 100:02d}" / f"{number % 100:02d}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(1000 + number % 7000))

    def copy(target: Path) -> None:
        subprocess.run(["cp", "-r", source, target], check=True)
        subprocess.run(["sync", "-f", target], check=True)  # one call for all: the fastest way

    return await _save_against_copy(directory, rounds, "10,000 small files", source, change, copy)


ROWS = {
    "lag": lag,
    "large": large,
    "memory": memory,
    "one-file": one_file,
    "many-files": many_files,
}
