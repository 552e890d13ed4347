"""Other processes for tests: started from a few lines of source, killed, and read back after."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aiocheckpoint

ROOT = Path(__file__).parent.parent
LATE = 40.0
"""Seconds after which a child hangs."""

_PRELUDE = """
import asyncio, ctypes, json, os, resource, signal, sys, threading, time
import aiocheckpoint
from aiocheckpoint import FencedError, Runtime
from tests.children import state, number_of

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
url = sys.argv[1]
args = sys.argv[2:]

def say(number):
    os.write(1, b"%d\\n" % number)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
"""


def state(number: int, size: int = 100) -> bytes:
    """A state that says which it is, of bytes that no other state of its size has."""
    head = b"%d:" % number
    return head + (b"%d." % number) * (max(0, size - len(head)) // (len(head)))


def number_of(found: bytes | None) -> int:
    """Which state this is; 0 for none. Fails unless every byte is of that state."""
    if found is None:
        return 0
    number = int(found.partition(b":")[0])
    assert found == state(number, len(found)), f"a state that nobody wrote: {found[:40]!r}"
    return number


def start(body: str, url: str, *args: object) -> subprocess.Popen[bytes]:
    """Start a process that runs `body` in a coroutine; it has `url`, `args`, `say`, `die`."""
    source = _PRELUDE + textwrap.indent(textwrap.dedent(body), "    ") + "\n\nasyncio.run(main())\n"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-c", source, url, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=tempfile.gettempdir(),
    )


def run(body: str, url: str, *args: object, within: float = LATE) -> list[str]:
    """Run such a process to its end, however it comes; the lines that it printed."""
    with start(body, url, *args) as process:
        try:
            out, _ = process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode <= 0, f"the child failed with exit code {process.returncode}"
    return out.decode().splitlines()


def numbers(process: subprocess.Popen[bytes], seconds: float) -> list[int]:
    """What a process says from its first number on, for so many seconds or until it ends."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    text, until = b"", time.monotonic() + LATE
    while (left := until - time.monotonic()) > 0 and select.select([fd], [], [], left)[0]:
        if not text:
            until = time.monotonic() + seconds
        if not (more := os.read(fd, 1 << 16)):
            break
        text += more
    return [int(line) for line in text.split(b"\n")[:-1]]


def kill(process: subprocess.Popen[bytes]) -> list[int]:
    """SIGKILL; what the process had said and was not read yet."""
    process.kill()
    out, _ = process.communicate(timeout=LATE)
    return [int(line) for line in out.split(b"\n")[:-1] if line]


def read_back(url: str, key: str = "k", **options: Any) -> bytes | None:
    """What the next `open` reads."""

    async def main() -> bytes | None:
        async with aiocheckpoint.open(url, key, **options) as cp:
            found: bytes | None = await cp.read()
            return found

    return asyncio.run(main())


def store_state(url: str, data: bytes, key: str = "k", **options: Any) -> None:
    """Open, write one state, leave."""

    async def main() -> None:
        async with aiocheckpoint.open(url, key, **options) as cp:
            await cp.write(data)

    asyncio.run(main())


@contextlib.contextmanager
def small_disk(path: Path, size: str, *, options: str = "") -> Iterator[Path]:
    """A file system of its own on `path`; needs root."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a tmpfs")
    path.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "tmpfs", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
