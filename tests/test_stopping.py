"""Stopping: ask, flush at once, end at a consistent point, and never later than grace."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from aiocheckpoint import Checkpointer, RecoverableError, RetryPolicy, Runtime, StoppedError
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import FaultyStore, SlowStore

from .children import read_back
from .support import ROOT, Script, poll, stored, stored_state, true

pytestmark = pytest.mark.anyio

Bytes = Checkpointer[bytes]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(autouse=True)
def no_handler_is_left() -> Iterator[None]:
    """Whatever a test does to signals, it leaves them as they were."""
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in watched}
    yield
    after = {number: signal.getsignal(number) for number in watched}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


def send(number: int) -> None:
    os.kill(os.getpid(), number)


# stop()


async def stop_from_task(rt: Runtime) -> None:
    rt.stop()


async def stop_from_thread(rt: Runtime) -> None:
    await anyio.to_thread.run_sync(rt.stop)


async def stop_from_handler(rt: Runtime) -> None:
    def handler(number: int, frame: FrameType | None) -> None:
        rt.stop()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        send(signal.SIGUSR1)
        await anyio.lowlevel.checkpoint()
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("stop", [stop_from_task, stop_from_thread, stop_from_handler])
async def test_attempt_ends_at_its_next_write(
    store: MemoryStore, stop: Callable[[Runtime], Any]
) -> None:
    """After stop(), from wherever, the next write stages its state and ends the attempt."""
    async with Runtime(store) as rt:
        written = 0

        async def job(cp: Bytes) -> None:
            nonlocal written
            await cp.write(b"before")
            assert not cp.stopping
            await stop(rt)
            await true(lambda: cp.stopping)
            assert cp.due
            try:
                await cp.write(b"last")
            finally:
                written += 1
            raise AssertionError("the write returned")

        with pytest.raises(StoppedError, match="'k' resumes at seq 2"):
            await rt.run(job, key="k")
        assert written == 1
        assert stored(store) == (2, b"last")


async def test_busy_loop_that_writes_is_stopped(store: MemoryStore) -> None:
    """An attempt that does nothing but write ends by itself, with its last state stored."""
    async with Runtime(store) as rt:
        last = 0

        async def job(cp: Bytes) -> None:
            nonlocal last
            threading.Timer(0.02, rt.stop).start()
            while True:
                last += 1
                await cp.write(b"%d" % last)

        with pytest.raises(StoppedError):
            await rt.run(job, key="k")
        assert stored(store) == (last, b"%d" % last)


async def test_every_run_is_stopped(store: MemoryStore) -> None:
    """One stop() ends all runs of the runtime, each at its own next write."""
    stopped = 0
    async with Runtime(store) as rt:

        async def job(cp: Bytes) -> None:
            while True:
                await cp.write(cp.key.encode())
                await anyio.sleep(0.001)

        async def one(n: int) -> None:
            nonlocal stopped
            with pytest.raises(StoppedError):
                await rt.run(job, key=f"k{n}")
            stopped += 1

        async with anyio.create_task_group() as group:
            for n in range(20):
                group.start_soon(one, n)
            await true(lambda: rt.statistics().stored >= 20)
            rt.stop()
            rt.stop()
    assert stopped == 20
    assert all(stored_state(store, f"k{n}") == b"k%d" % n for n in range(20))


async def test_stop_starts_a_flush_at_once(store: MemoryStore) -> None:
    """What is staged is stored right after stop(), though its interval is far from over and
    nobody writes; a handle outside any run just sees `cp.stopping`."""
    async with Runtime(store, min_interval=1000) as rt, rt.open("k") as cp:
        await cp.write(b"first")
        await cp.flush()
        await cp.write(b"second")
        await cp.write(b"third")
        rt.stop()
        await true(lambda: stored_state(store) == b"third")
        assert cp.stopping
        await cp.write(b"fourth")
        await cp.write(b"fifth")
        assert cp.write_nowait(b"sixth") == 6
    assert stored_state(store) == b"sixth"


async def test_write_nowait_does_not_stop(store: MemoryStore) -> None:
    """`write_nowait` of a stopping attempt stages and returns."""
    async with Runtime(store) as rt:

        async def job(cp: Bytes) -> str:
            rt.stop()
            await true(lambda: cp.stopping)
            cp.write_nowait(b"a")
            return "done"

        assert await rt.run(job, key="k") == "done"
    assert stored_state(store) == b"a"


async def test_task_that_finishes_in_time_is_done(store: MemoryStore) -> None:
    """An attempt that returns after stop() has its result: nothing of it is thrown away."""
    async with Runtime(store) as rt:

        async def job(cp: Bytes) -> str:
            await cp.write(b"x")
            rt.stop()
            return "finished"

        assert await rt.run(job, key="k") == "finished"
    async with Runtime(store) as rt:
        assert await rt.run(job, key="k") == "finished"


async def test_attempt_that_never_writes_is_cancelled(store: MemoryStore) -> None:
    """An attempt that comes to no write is cancelled before grace is over; its state is stored."""
    async with Runtime(store, grace=0.5) as rt:

        async def job(cp: Bytes) -> None:
            await cp.write(b"x")
            rt.stop()
            await anyio.sleep_forever()

        began = time.monotonic()
        with pytest.raises(StoppedError, match="cancelled"):
            await rt.run(job, key="k", retry=3)
        assert 0.3 < time.monotonic() - began < 1.5
    assert stored_state(store) == b"x"


async def test_state_written_while_cancelled_by_stop_is_stored(store: MemoryStore) -> None:
    """What an attempt stages in its clean-up, cancelled at the end of grace, is stored too."""
    async with Runtime(store, grace=0.2) as rt:

        async def job(cp: Bytes) -> None:
            rt.stop()
            try:
                await anyio.sleep_forever()
            finally:
                cp.write_nowait(b"clean-up")

        with pytest.raises(StoppedError):
            await rt.run(job, key="k")
    assert stored_state(store) == b"clean-up"


@pytest.mark.parametrize("writes", [True, False])
async def test_grace_bounds_stop_and_flush(store: MemoryStore, writes: bool) -> None:
    """With the store down all has ended when grace is over, however patient flush_timeout is."""
    faulty = FaultyStore(store)

    async def job(cp: Bytes, rt: Runtime) -> None:
        await cp.write(b"x")
        await cp.flush()
        faulty.down = True
        rt.stop()
        while writes:
            await cp.write(b"y")
        await anyio.sleep_forever()

    async def whole() -> None:
        async with Runtime(faulty, grace=1.0, flush_timeout=60) as rt:
            await rt.run(job, rt, key="k")

    began = time.monotonic()
    with pytest.raises(StoppedError) as caught:
        await whole()
    spent = time.monotonic() - began
    assert spent < 2.5
    if writes:
        assert any("not stored in time" in note for note in caught.value.__notes__)
    assert stored_state(store) == b"x"


async def test_slow_store_is_waited_for_within_grace(store: MemoryStore) -> None:
    """The share of grace that is kept for the flush is enough for a slow store."""
    slow = SlowStore(store, 0)
    async with Runtime(slow, grace=5.0) as rt:

        async def job(cp: Bytes) -> None:
            await cp.write(b"x")
            slow.seconds = 0.3
            rt.stop()
            while True:
                await cp.write(b"last")

        with pytest.raises(StoppedError) as caught:
            await rt.run(job, key="k")
        assert not hasattr(caught.value, "__notes__")
    assert stored_state(store) == b"last"


async def test_stop_ends_backoff_at_once(store: MemoryStore) -> None:
    """A run that waits for its retry is stopped without waiting; the burnt retry is kept."""
    patient = RetryPolicy(on=Exception, wait_initial=1000, wait_max=1000, retries=5)
    async with Runtime(store, grace=60) as rt:
        failed = anyio.Event()

        async def job(cp: Bytes) -> None:
            await cp.write(b"x")
            failed.set()
            raise RecoverableError

        async def stopping() -> None:
            await failed.wait()
            await true(lambda: not rt._running.writer.holding)
            rt.stop()

        async with anyio.create_task_group() as group:
            group.start_soon(stopping)
            with anyio.fail_after(5), pytest.raises(StoppedError):
                await rt.run(job, key="k", retry=patient)
        found = await rt.latest("k")
        assert found is not None
        assert (found.status, found.burnt) == ("running", 1)


async def test_stop_before_run(store: MemoryStore) -> None:
    """A runtime that stops begins no run and claims nothing; handles may still be opened."""
    async with Runtime(store) as rt:
        rt.stop()

        async def job(cp: Bytes) -> None:
            raise AssertionError

        with pytest.raises(StoppedError, match="'k' was not started"):
            await rt.run(job, key="k")
        assert stored_state(store) is None
        assert await rt.latest("k") is None
        async with rt.open("other") as cp:
            await true(lambda: cp.stopping)
            await cp.write(b"x")
    assert stored_state(store, "other") == b"x"


async def test_stop_before_entering(store: MemoryStore) -> None:
    """A stop that comes before the runtime is entered counts."""
    rt = Runtime(store)
    rt.stop()

    async def job(cp: Bytes) -> None:
        raise AssertionError

    async with rt:
        with pytest.raises(StoppedError):
            await rt.run(job, key="k")
    rt.stop()


async def test_stop_while_claiming(store: MemoryStore) -> None:
    """A run that cannot claim its key, the store being down, is stopped within grace as well."""
    faulty = FaultyStore(store)
    faulty.down = True
    async with Runtime(faulty, grace=1.0) as rt:

        async def job(cp: Bytes) -> None:
            raise AssertionError

        async def stopping() -> None:
            await true(lambda: faulty.calls["load"] > 0)
            rt.stop()

        began = time.monotonic()
        async with anyio.create_task_group() as group:
            group.start_soon(stopping)
            with pytest.raises(StoppedError):
                await rt.run(job, key="k")
    assert time.monotonic() - began < 2.5


# stop_signals


async def test_signal_stops_and_is_chained(store: MemoryStore) -> None:
    """A stop signal stops, then calls the handler that was there; leaving puts that one back."""
    seen: list[int] = []

    def own(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGUSR1, own)
    try:
        async with Runtime(store, stop_signals=(signal.SIGUSR1, signal.SIGUSR2)) as rt:
            assert signal.getsignal(signal.SIGUSR1) is not own

            async def job(cp: Bytes) -> None:
                send(signal.SIGUSR1)
                await true(lambda: cp.stopping)
                await cp.write(b"x")

            with pytest.raises(StoppedError):
                await rt.run(job, key="k")
        assert seen == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGUSR1) is own
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR1, before)


async def test_signal_given_twice_is_one(store: MemoryStore) -> None:
    """Naming a signal twice changes nothing."""
    twice = [signal.SIGUSR1, signal.SIGUSR1]
    async with Runtime(store, stop_signals=twice) as rt, rt.open("k") as cp:
        send(signal.SIGUSR1)
        await true(lambda: cp.stopping)


@pytest.mark.parametrize("number", [signal.SIGKILL, 4711])
async def test_signal_that_cannot_be_handled(store: MemoryStore, number: int) -> None:
    """A signal that nobody can handle is an error, and no other handler is left behind."""
    with pytest.raises((OSError, ValueError)):
        async with Runtime(store, stop_signals=(signal.SIGUSR1, number)):
            pass
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


async def test_later_handler_is_left_in_place(store: MemoryStore) -> None:
    """A handler that somebody installed after ours stays when we leave."""

    def own(number: int, frame: FrameType | None) -> None:
        pass

    try:
        async with Runtime(store, stop_signals=(signal.SIGUSR1,)):
            signal.signal(signal.SIGUSR1, own)
        assert signal.getsignal(signal.SIGUSR1) is own
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


async def test_two_runtimes_stop_together(store: MemoryStore) -> None:
    """A signal stops every runtime that named it."""
    async with (
        Runtime(store, stop_signals=(signal.SIGUSR1,)) as one,
        Runtime(store, stop_signals=(signal.SIGUSR1,)) as two,
        one.open("a") as a,
        two.open("b") as b,
    ):
        send(signal.SIGUSR1)
        await true(lambda: a.stopping and b.stopping)


async def test_runtimes_left_in_the_order_they_were_entered(store: MemoryStore) -> None:
    """Handlers are gone when the last runtime is left, in whatever order they were."""
    one = Runtime(store, stop_signals=(signal.SIGUSR1,))
    two = Runtime(store, stop_signals=(signal.SIGUSR1,))
    await one.__aenter__()
    await two.__aenter__()
    await one.__aexit__(None, None, None)
    async with two.open("k") as cp:
        send(signal.SIGUSR1)
        await true(lambda: cp.stopping)
    await two.__aexit__(None, None, None)
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


async def test_second_signal_cancels_at_once(store: MemoryStore) -> None:
    """A second signal does not wait for a write, nor for grace; what is staged is stored."""
    async with Runtime(store, stop_signals=(signal.SIGUSR1,), grace=1000) as rt:

        async def job(cp: Bytes) -> None:
            await cp.write(b"x")
            send(signal.SIGUSR1)
            await true(lambda: cp.stopping)
            send(signal.SIGUSR1)
            await anyio.sleep_forever()

        with anyio.fail_after(10), pytest.raises(StoppedError):
            await rt.run(job, key="k", retry=3)
    assert stored_state(store) == b"x"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_signals_outside_the_main_thread(store: MemoryStore) -> None:
    """Where Python allows no handlers, `stop_signals` says so; without them all works."""

    async def enter(**options: Any) -> None:
        async with Runtime(store, **options):
            pass

    def elsewhere(**options: Any) -> None:
        anyio.run(functools.partial(enter, **options))

    with pytest.raises(RuntimeError, match=r"main thread.*Runtime\.stop\(\)"):
        await anyio.to_thread.run_sync(functools.partial(elsewhere, stop_signals=(signal.SIGTERM,)))
    await anyio.to_thread.run_sync(elsewhere)


@pytest.mark.parametrize("grace", [-1, float("nan"), float("inf")])
async def test_grace_is_a_time(store: MemoryStore, grace: float) -> None:
    """Grace is a number of seconds that ends."""
    with pytest.raises(ValueError, match="grace"):
        Runtime(store, grace=grace)


# aiocheckpoint.run

SCRIPT = """
import asyncio, signal, sys, time
import anyio
import aiocheckpoint

url, backend, how = sys.argv[1:]

async def counts(cp):
    n = int(await cp.read(b"0"))
    while True:
        n += 1
        await cp.write(b"%d" % n)
        print(n, flush=True)
        await anyio.sleep(0.001)

async def ignores(cp):
    await cp.write(b"1")
    print(1, flush=True)
    while not cp.stopping:
        await anyio.sleep(0.001)
    print("stopping", flush=True)
    try:
        await anyio.sleep_forever()
    finally:
        cp.write_nowait(b"2")

async def swallows(cp):
    n = 0
    while True:
        n += 1
        try:
            await cp.write(b"%d" % n)
            print(n, flush=True)
        except Exception:
            print("swallowed", flush=True)
        await anyio.sleep(0.01)

async def returns(cp):
    return "result"

async def raises(cp):
    await cp.write(b"1")
    raise LookupError("the task's")

async def leaves(cp):
    await cp.write(b"1")
    sys.exit(7)

before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
try:
    job = globals()[how]
    print(aiocheckpoint.run(job, store=url, key="k", backend=backend, grace=20))
finally:
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
"""

backends = pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path}/jobs.db"


def last_number(script: Script) -> bytes:
    return [line for line in script.stdout.split() if line.isdigit()][-1].encode()


@backends
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_script_stops_on_a_signal(url: str, backend: str, number: int, code: int) -> None:
    """SIGTERM and SIGINT end a script with 128 + signal, without a traceback, and lose nothing;
    the next one goes on."""
    script = Script(SCRIPT, url, backend, "counts")
    while script.line() != "20":
        pass
    script.signal(number)
    assert script.end() == code, script.stderr
    assert script.stderr == ""
    staged = read_back(url)
    assert staged is not None
    # the state of the write that ended the attempt is staged and stored, but not told
    assert int(staged) == int(last_number(script)) + 1
    again = Script(SCRIPT, url, backend, "counts")
    assert again.line() == str(int(staged) + 1)
    again.signal(signal.SIGTERM)
    assert again.end() == 143, again.stderr


@backends
def test_script_is_cancelled_by_the_second_signal(url: str, backend: str) -> None:
    """A task that ignores the first signal is cancelled by the second; its clean-up's state is
    stored, and the first signal gives the exit status."""
    script = Script(SCRIPT, url, backend, "ignores")
    assert script.line() == "1"
    script.signal(signal.SIGTERM)
    assert script.line() == "stopping"
    script.signal(signal.SIGINT)
    assert script.end() == 143, script.stderr
    assert read_back(url) == b"2"


def test_script_that_swallows_the_stop_is_cancelled_by_the_second(url: str) -> None:
    """A task that swallows StoppedError goes on until the second signal."""
    script = Script(SCRIPT, url, "asyncio", "swallows")
    assert script.line() == "1"
    script.signal(signal.SIGTERM)
    while script.line() != "swallowed":
        pass
    script.signal(signal.SIGTERM)
    assert script.end() == 143, script.stderr
    staged = read_back(url)
    assert staged is not None
    assert int(staged) >= int(last_number(script))


@backends
def test_script_returns_and_raises(url: str, backend: str) -> None:
    """Without a signal a script's run returns the result, or raises what the task raised."""
    good = Script(SCRIPT, url, backend, "returns")
    assert good.end() == 0, good.stderr
    assert good.stdout == "result\n"
    bad = Script(SCRIPT, f"{url}2", backend, "raises")
    assert bad.end() == 1
    assert "LookupError: the task's" in bad.stderr
    assert "ended the run" in bad.stderr
    assert read_back(f"{url}2") == b"1"
    left = Script(SCRIPT, f"{url}3", backend, "leaves")
    assert left.end() == 7
    assert read_back(f"{url}3") == b"1"


def test_run_in_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    """Outside the main thread `run` works, without handlers."""
    script = Script(
        """
import signal, sys, threading, aiocheckpoint

async def job(cp):
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    return "ran"

def main():
    print(aiocheckpoint.run(job, store=sys.argv[1], key="k"))

thread = threading.Thread(target=main)
thread.start()
thread.join()
""",
        f"file:{tmp_path}",
    )
    assert script.end() == 0, script.stderr
    assert script.stdout == "ran\n"


# As PID 1.


def first_child(pid: int) -> int | None:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_script_as_pid_1(url: str, tmp_path: Path, number: int) -> None:
    """As the first process of a container, where signals have no default, stopping works."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root can make a PID namespace, with unshare")
    namespace = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no PID namespace can be made here")
    source = tmp_path / "script.py"
    source.write_text("import os; assert os.getpid() == 1\n" + SCRIPT)
    process = subprocess.Popen(
        [*namespace, sys.executable, str(source), url, "asyncio", "counts"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        told = [process.stdout.readline().strip()]
        poll(lambda: first_child(process.pid) is not None)
        inner = first_child(process.pid)
        assert inner is not None
        os.kill(inner, number)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 128 + number, err
    staged = read_back(url)
    assert staged is not None
    assert int(staged) == int([*told, *out.split()][-1]) + 1


# Inside uvicorn.

SERVER = """
import asyncio, contextlib, signal, sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
import aiocheckpoint

url, port, loop = sys.argv[1], int(sys.argv[2]), sys.argv[3]

async def job(cp):
    n = int(await cp.read(b"0"))
    print("resumed", n, flush=True)
    while True:
        n += 1
        await cp.write(b"%d" % n)
        await asyncio.sleep(0.001)

@contextlib.asynccontextmanager
async def lifespan(app):
    stop_signals = (signal.SIGTERM, signal.SIGINT)
    async with aiocheckpoint.Runtime(url, stop_signals=stop_signals) as rt:
        app.state.rt = rt
        running = asyncio.create_task(rt.run(job, key="k"))
        print("up", flush=True)
        yield
        try:
            await running
        except aiocheckpoint.StoppedError as exc:
            print("stopped", flush=True)
    print("down", flush=True)

async def slow(request):
    print("request", flush=True)
    await asyncio.sleep(0.5)
    print("answered", flush=True)
    return PlainTextResponse("whole")

app = Starlette(routes=[Route("/", slow)], lifespan=lifespan)
uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", loop=loop)
"""


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def get(port: int) -> str:
    """One request, tried until the server listens."""
    import httpx

    until = time.monotonic() + 10
    while True:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/", timeout=10).text
        except httpx.ConnectError:
            assert time.monotonic() < until
            time.sleep(0.02)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_inside_uvicorn(url: str, loop: str) -> None:
    """In a server's lifespan a stop signal ends the run and the server as each should: the
    request in flight is answered, the lifespan ends, the state is stored and resumes."""
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    port = free_port()
    server = Script(SERVER, url, port, loop)
    assert {server.line(), server.line()} == {"up", "resumed 0"}
    answers: list[str] = []
    request = threading.Thread(target=lambda: answers.append(get(port)))
    request.start()
    assert server.line() == "request"
    server.signal(signal.SIGTERM)
    code = server.end()
    request.join(10)
    assert answers == ["whole"]
    assert server.stdout.split()[-3:] == ["answered", "stopped", "down"]
    assert code == -signal.SIGTERM, server.stderr  # uvicorn raises the signal anew at its end
    staged = read_back(url)
    assert staged is not None
    assert int(staged) > 0
    again = Script(SERVER, url, free_port(), loop)
    assert {again.line(), again.line()} == {"up", f"resumed {staged.decode()}"}
    again.signal(signal.SIGTERM)
    assert again.end() == -signal.SIGTERM, again.stderr
    assert again.stdout.split()[-1] == "down"
