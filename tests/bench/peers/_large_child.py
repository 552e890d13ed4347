"""One way to keep 100 MB, measured in a process of its own."""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from ._contestants import ticking
from ._large_contestants import BY_NAME, BYTES, Begin, Large, State, dump, new_state, numbers, stamp

clock = time.perf_counter
_WARM, _SAVES = 2, 6
_STEP = 0.02  # seconds between two saves, back to back


def _change(one: Large, state: State, number: int) -> State:
    stamp(state, number)
    return {BYTES: dump(state)} if one.takes_bytes else state


def _tidy(place: Path, number: int) -> None:
    """Remove what was saved before this number, where each save has a directory of its own."""
    for path in place.iterdir():
        if path.name.isdigit() and path.is_dir() and int(path.name) < number:
            shutil.rmtree(path)


async def _singly(one: Large, begin: Begin, state: State, place: Path) -> dict[str, float]:
    """One save at a time: how long the caller is kept, how long it takes, how late a timer is."""
    blocking, total, worst = [], [], []
    for number in range(1, _WARM + _SAVES + 1):
        given = _change(one, state, number)
        lags: list[float] = []
        async with ticking(lags):
            await asyncio.sleep(0.05)
            lags.clear()
            began = clock()
            complete = await begin(given, number)
            blocking.append(clock() - began)
            await complete
            total.append(clock() - began)
            await asyncio.sleep(0.002)
        _tidy(place, number)
        worst.append(max(lags, default=0.0))
    return {
        "blocking": statistics.median(blocking[_WARM:]),
        "total": statistics.median(total[_WARM:]),
        "lag": statistics.median(worst[_WARM:]),
    }


async def _back_to_back(one: Large, begin: Begin, state: State, first: int) -> dict[str, Any]:
    """Five saves, each begun a step after the call of the one before has returned."""
    calls: list[float] = []
    completes: list[Awaitable[object]] = []
    began = clock()
    for number in range(first, first + 5):
        given = _change(one, state, number)
        start = clock()
        completes.append(await begin(given, number))
        calls.append(clock() - start)
        await asyncio.sleep(_STEP)
    returned = clock() - began
    await asyncio.gather(*completes)
    return {"calls": calls, "returned": returned, "complete": clock() - began}


async def _mutated(one: Large, begin: Begin, state: State, number: int) -> None:
    """Save, and change all of it as soon as the call has returned."""
    complete = await begin(_change(one, state, number), number)
    for array in state.values():
        array[:] = -1
    await complete


async def measured(one: Large, place: Path) -> dict[str, Any]:
    state = new_state()
    async with one.begin(place) as begin:
        singly = await _singly(one, begin, state, place)
        back = await _back_to_back(one, begin, state, 100)
        await _mutated(one, begin, state, 1000)
    found = await one.load(place)
    said = set() if found is None else numbers(found)
    return {**singly, "back_to_back": back, "torn": said != {1000.0}}


def main(name: str, place: str) -> None:
    print("RESULT", json.dumps(asyncio.run(measured(BY_NAME[name], Path(place)))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
