"""The command line as a process: entry points, signals, pipes, terminals."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path

import pytest

import aiocheckpoint
from aiocheckpoint.abc import Put
from aiocheckpoint.stores import open_store

from ..support import ROOT, poll, run_script
from .filled import LARGE

LATE = 30.0
EAGER = """
import sys
from aiocheckpoint.cli import _progress
_progress._EVERY = 0.0
from aiocheckpoint.__main__ import main
sys.argv[0] = "aiocheckpoint"
main()
"""


def start(
    *args: str,
    source: str | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    **env: str,
) -> subprocess.Popen[bytes]:
    """Start the command line, where warnings are errors."""
    program = ["-m", "aiocheckpoint"] if source is None else ["-c", source]
    return subprocess.Popen(
        [sys.executable, "-W", "error", *program, *args],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
    )


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """Wait for its end: exit code, output, errors."""
    try:
        out, err = process.communicate(timeout=LATE)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return process.returncode, (out or b"").decode(), (err or b"").decode()


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store with a small and a large key."""
    monkeypatch.chdir(tmp_path)

    async def write() -> None:
        async with aiocheckpoint.Runtime("file:jobs") as rt:
            for key, data in (("small é", b"small"), ("large", b"x" * LARGE)):
                async with rt.open(key) as cp:
                    await cp.write(data)

    asyncio.run(write())
    return "file:jobs"


def test_the_entry_points_run(jobs: str) -> None:
    """The module runs as a script, and the script that is installed is the same function."""
    assert ended(start("ls", jobs)) == (0, "large\nsmall é\n", "")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["aiocheckpoint"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_without_click_it_says_how_to_get_it() -> None:
    """One line and exit code 2; the library itself needs no click."""
    hidden = (
        "import sys; sys.modules['click'] = None; from aiocheckpoint.__main__ import main; main()"
    )
    code, out, err = ended(start("ls", source=hidden))
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "pip install 'aiocheckpoint[cli]'" in err
    run_script("import sys, aiocheckpoint; assert 'click' not in sys.modules")


def test_ctrl_c_before_the_command_is_no_traceback() -> None:
    """While its packages are read, too, it ends with 130 and no word."""
    reading = """
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
from aiocheckpoint.__main__ import main
main()
"""
    assert ended(start("ls", source=reading)) == (130, "", "")


def test_a_locale_without_the_letters_is_no_error(jobs: str) -> None:
    """What it cannot print is escaped."""
    code, out, err = ended(start("ls", jobs, PYTHONIOENCODING="ascii"))
    assert (code, out, err) == (0, "large\nsmall \\xe9\n", "")


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store whose listing is larger than a pipe."""
    monkeypatch.chdir(tmp_path)

    async def write() -> None:
        store = open_store("sqlite:many.db")
        puts = [Put(f"{number:05d}" + "k" * 50, None, b"no record") for number in range(5_000)]
        await store.commit(puts)
        await store.aclose()

    asyncio.run(write())
    return "sqlite:many.db"


@pytest.mark.parametrize("options", [[], ["--json"], ["--long"]])
def test_who_stops_reading_is_no_error(many: str, options: list[str]) -> None:
    """As in `ls | head -1`: it ends at once, with the shell's code for SIGPIPE, and no word."""
    process = start("ls", many, *options, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(LATE) == 128 + signal.SIGPIPE
    process = start("ls", many)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait(LATE)) == (b"", 128 + signal.SIGPIPE)
    process.stderr.close()


def test_a_full_disk_is_told(many: str) -> None:
    """What could not be written makes it fail, in one line."""
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "wb") as full:
        code, _, err = ended(start("ls", many, stdout=full.fileno()))
    assert code == 1
    assert err == "aiocheckpoint: No space left on device\n"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """A database that nobody can write to."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS other (x)")
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")


def make_target(path: Path) -> None:
    """An empty store."""

    async def make() -> None:
        store = open_store(path)
        assert await store.load("k") is None
        await store.aclose()

    asyncio.run(make())


def test_ctrl_c_ends_a_copy_cleanly(jobs: str, tmp_path: Path) -> None:
    """In mid-work: no traceback, 130, no head without its blobs; the next copy goes on."""
    make_target(tmp_path / "copy.db")
    with locked(tmp_path / "copy.db"):
        process = start("copy", jobs, "copy.db")
        poll(lambda: any(p.is_file() for p in (tmp_path / "copy.db-blobs").rglob("state-*")))
        process.send_signal(signal.SIGINT)
        assert ended(process) == (130, "", "")
    assert ended(start("ls", "copy.db"))[1] == ""
    assert ended(start("copy", jobs, "copy.db"))[0] == 0
    assert ended(start("verify", "copy.db"))[0] == 0


def read_until(fd: int, text: str) -> str:
    """What a terminal shows, up to this text."""
    seen = b""
    until = time.monotonic() + LATE
    while text.encode() not in seen:
        assert select.select([fd], [], [], max(0.0, until - time.monotonic()))[0], seen
        seen += os.read(fd, 1 << 16)
    return seen.decode()


def rest_of(fd: int) -> str:
    """What a terminal shows until nobody has it open."""
    seen = b""
    while True:
        try:
            more = os.read(fd, 1 << 16)
        except OSError:
            return seen.decode()
        if not more:
            return seen.decode()
        seen += more


def asleep(pid: int) -> bool:
    """Whether its main thread waits for something; True where nobody can tell."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "S"


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Its own end, and the one for a process (closed once that has it)."""
    own, other = pty.openpty()
    try:
        yield own, other
    finally:
        os.close(own)


def test_raw_bytes_do_not_go_to_a_terminal(jobs: str) -> None:
    """They might be obeyed; a pipe gets them as they are."""
    with terminal() as (own, other):
        process = start("show", jobs, "large", "--raw", stdout=other)
        os.close(other)
        assert rest_of(own) == ""
        assert process.wait(LATE) == 2
        assert process.stderr is not None
        process.stderr.close()
    assert ended(start("show", jobs, "large", "--raw"))[:2] == (0, "x" * LARGE)


def test_progress_shows_on_a_terminal_only(jobs: str) -> None:
    """One line that makes way for the result; in a pipe, and with --quiet, there is none."""
    with terminal() as (own, other):
        process = start("copy", jobs, "file:one", source=EAGER, stderr=other)
        os.close(other)
        shown = rest_of(own)
        assert ended(process)[:2] == (0, "copied 2 keys (2 MiB of blobs)\n")
    assert "\rcopying: " in shown
    assert "2 keys, 2 MiB" in shown
    assert shown.endswith(" \r"), "the line is taken away"
    assert ended(start("copy", jobs, "file:two", source=EAGER))[2] == ""
    with terminal() as (own, other):
        process = start("verify", "-q", jobs, source=EAGER, stderr=other)
        os.close(other)
        assert rest_of(own) == ""
        assert ended(process)[:2] == (0, "")


@pytest.mark.parametrize(
    ("answer", "code", "left"), [(b"y\n", 0, "small é\n"), (b"n\n", 1, "large\nsmall é\n")]
)
def test_rm_asks_a_person(jobs: str, answer: bytes, code: int, left: str) -> None:
    """With what it is about to do; a running key is pointed out. Only `y` removes."""
    with terminal() as (own, other):
        process = start("rm", jobs, "large", stdin=other, stderr=other)
        os.close(other)
        shown = read_until(own, "[y/N]")
        assert "1 of 1 key may be at work" in shown
        assert "Remove 'large' from file:" in shown
        os.write(own, answer)
        rest_of(own)
        assert ended(process)[0] == code
    assert ended(start("ls", jobs))[1] == left


@pytest.mark.parametrize("command", [["rm", "large"], ["gc", "--older-than", "0s"]])
def test_ctrl_c_at_the_question_removes_nothing(jobs: str, command: list[str]) -> None:
    """One is enough, unless it comes in the instant before the reading: then a second is."""

    async def finish(cp: aiocheckpoint.Checkpointer[bytes]) -> None:
        await cp.write(b"x")

    async def main() -> None:
        async with aiocheckpoint.Runtime(jobs) as rt:
            await rt.run(finish, key="done")

    asyncio.run(main())
    with terminal() as (own, other):
        process = start(command[0], jobs, *command[1:], stdin=other, stderr=other)
        os.close(other)
        read_until(own, "[y/N]")
        poll(lambda: asleep(process.pid))  # Python misses a signal just before it begins to read
        process.send_signal(signal.SIGINT)
        if not select.select([own], [], [], 5.0)[0]:
            process.send_signal(signal.SIGINT)
        shown = rest_of(own)
        assert ended(process)[0] == 130
    assert "Traceback" not in shown
    assert ended(start("ls", jobs))[1] == "done\nlarge\nsmall é\n"
