"""What several test modules use: a look past the core, threads left over, scripts of their own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path

import anyio.to_thread
import pytest

from aiocheckpoint._records import decode_record
from aiocheckpoint.abc import Store

ROOT = Path(__file__).parents[1]
uvloop_missing = pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")

on_asyncio = pytest.mark.parametrize(
    "anyio_backend",
    [
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop", marks=uvloop_missing),
    ],
)


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


with_new_loop = pytest.mark.parametrize(
    "new_loop",
    [
        pytest.param(asyncio.new_event_loop, id="asyncio"),
        pytest.param(_uvloop, id="uvloop", marks=uvloop_missing),
    ],
)


def stored(store: Store, key: str = "k") -> tuple[int, bytes] | None:
    """Seq and state of a key in a store in memory, read without a runtime."""
    try:
        store.load(key).__await__().__next__()
    except StopIteration as stop:
        if stop.value is None:
            return None
        record, data = decode_record(key, stop.value.record)
        return record.seq, data
    raise AssertionError("a load from memory does not wait")


def stored_state(store: Store, key: str = "k") -> bytes | None:
    """The state alone."""
    found = stored(store, key)
    return None if found is None else found[1]


async def happened(event: threading.Event, within: float = 10) -> None:
    """Wait for another thread's event without blocking the loop."""
    assert await anyio.to_thread.run_sync(event.wait, within), "it never happened"


async def true(condition: Callable[[], bool], within: float = 10) -> None:
    """Wait for something that has no event."""
    with anyio.fail_after(within):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event)
            await anyio.sleep(0.002)


def poll(condition: Callable[[], bool], within: float = 10) -> None:
    """Wait for something that has no event, where there is no loop."""
    until = time.monotonic() + within
    while not condition():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.002)


_left_over: set[threading.Thread] = set()


def io_threads_end(within: float = 10, *, forgive: bool = True) -> bool:
    """Whether all I/O threads of this process end in time. One that does not is told once."""
    until = time.monotonic() + within
    while True:
        threads = {t for t in threading.enumerate() if t.name == "aiocheckpoint-io"} - _left_over
        if not threads:
            return True
        if time.monotonic() > until:
            if forgive:
                _left_over.update(threads)
            return False
        time.sleep(0.002)


async def listed(items: AsyncIterator[str]) -> list[str]:
    return [item async for item in items]


def files(directory: Path) -> list[Path]:
    """Every file below a directory."""
    return [path for path in directory.rglob("*") if path.is_file()]


class Script:
    """A Python program in a process of its own."""

    def __init__(self, source: str, *args: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", source, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.stdout = ""
        self.stderr = ""

    def line(self) -> str:
        """Wait for its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.stdout += line
        return line.strip()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self, within: float = 20) -> int:
        """Wait for its end; the exit code."""
        try:
            out, self.stderr = self._process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, self.stderr = self._process.communicate()
            raise AssertionError(f"the script hangs:\n{self.stdout}{out}\n{self.stderr}") from None
        self.stdout += out
        return self._process.returncode


def run_script(source: str, *args: object) -> Script:
    """Run a program to its end, which must be good."""
    script = Script(source, *args)
    code = script.end()
    assert code == 0, script.stderr
    return script
