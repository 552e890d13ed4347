"""What users test their tasks with: interruptions, retries at once, whether a task resumes."""

from __future__ import annotations

import itertools
import shutil
import signal
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

import aiocheckpoint
from aiocheckpoint import (
    Checkpointer,
    CodecError,
    NonRecoverableError,
    RecoverableError,
    RetryPolicy,
    Runtime,
    StoppedError,
    blocking,
    task,
)
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import Interrupted, check_resumes, interrupt_at, no_waiting

from .support import Script, run_script, stored, stored_state

pytestmark = pytest.mark.anyio

Ints = Checkpointer[list[int]]
PLAIN = (Checkpointer.write, Checkpointer.write_nowait, aiocheckpoint._runner.Run._nap)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(autouse=True)
def nothing_is_left_replaced() -> Any:
    """After a block all is as before: the hot path is the plain one."""
    yield
    now = (Checkpointer.write, Checkpointer.write_nowait, aiocheckpoint._runner.Run._nap)
    assert all(one is other for one, other in zip(now, PLAIN, strict=True))


@task(key="sum", type=list[int])
async def add_up(cp: Ints, numbers: int, steps: list[int]) -> int:
    """Adds up, notes each step when it has been done, and writes after each."""
    done, total = await cp.read(default=[0, 0])
    for n in range(done, numbers):
        total += n
        steps.append(n)
        await cp.write([n + 1, total])
    return total


async def run(store: MemoryStore, numbers: int, steps: list[int]) -> int:
    """As a process of its own would."""
    async with Runtime(store, min_interval=3600) as rt:
        return await rt.run(add_up, numbers, steps)


# interrupt_at


@pytest.mark.parametrize("at", [1, 3, 5])
async def test_interrupted_after_its_nth_write(store: MemoryStore, at: int) -> None:
    """The state of the n-th write is kept, and the next run goes on after it."""
    steps: list[int] = []
    with interrupt_at(write=at):
        await run(store, 5, steps)
    assert steps == list(range(at))
    found = stored(store, "sum")
    assert found is not None
    assert found[0] == at
    assert await run(store, 5, steps) == 10
    assert steps == list(range(5))


async def test_a_lost_write_is_not_staged(store: MemoryStore) -> None:
    """With lost=True the step has been done and its write has not been made."""
    steps: list[int] = []
    with interrupt_at(write=3, lost=True):
        await run(store, 5, steps)
    found = stored(store, "sum")
    assert found is not None
    assert found[0] == 2
    assert await run(store, 5, steps) == 10
    assert steps == [0, 1, 2, 2, 3, 4]


async def test_it_interrupts_once(store: MemoryStore) -> None:
    """After the n-th write nothing is interrupted any more, in the same block either."""
    steps: list[int] = []
    with interrupt_at(write=2, by=RecoverableError("once")), no_waiting():
        async with Runtime(store) as rt:
            assert await rt.run(add_up.using(retry=1), 5, steps) == 10
    assert steps == list(range(5))


async def test_any_exception_goes_its_own_way(store: MemoryStore) -> None:
    """An exception of the user's choice, as a type or an object, leaves the block."""
    with pytest.raises(LookupError), interrupt_at(write=1, by=LookupError):
        await run(store, 5, [])
    error = NonRecoverableError("this one")
    with pytest.raises(NonRecoverableError) as caught, interrupt_at(write=1, by=error):
        await run(store, 5, [])
    assert caught.value is error


async def test_nothing_retries_an_interruption(store: MemoryStore) -> None:
    """However many retries there are, an Interrupted ends the run."""
    steps: list[int] = []
    with interrupt_at(write=1):
        async with Runtime(store) as rt:
            await rt.run(add_up.using(retry=5), 5, steps)
    assert steps == [0]


async def test_too_few_writes_fail_the_test(store: MemoryStore) -> None:
    """A block in which the n-th write never came is an error: it has tested nothing."""
    with (
        pytest.raises(AssertionError, match=r"interrupt_at\(write=6\): only 5 writes came"),
        interrupt_at(write=6),
    ):
        await run(store, 5, [])
    with (
        pytest.raises(AssertionError, match="only 0 writes of 'other' came"),
        interrupt_at(write=1, key="other"),
    ):
        await run(store, 1, [])


async def test_an_error_of_the_block_is_not_masked(store: MemoryStore) -> None:
    """An exception that comes before the n-th write is told, not the write that never came."""
    with pytest.raises(LookupError), interrupt_at(write=6):
        raise LookupError


async def test_only_the_writes_of_a_key_count(store: MemoryStore) -> None:
    """With key= the writes of others are neither counted nor interrupted."""
    async with Runtime(store) as rt, rt.open("a") as a, rt.open("b") as b:
        with interrupt_at(write=2, key="b"):
            for n in itertools.count():
                await a.write(b"%d" % n)
                await b.write(b"%d" % n)
    assert stored_state(store, "a") == b"1"
    assert stored_state(store, "b") == b"1"


async def test_every_way_to_write_counts(store: MemoryStore) -> None:
    """write(), write_nowait() and the blocking face's write() are counted alike."""
    async with Runtime(store) as rt, rt.open("k") as cp:
        face = blocking.Checkpointer(cp)
        with interrupt_at(write=3):
            await cp.write(b"1")
            cp.write_nowait(b"2")
            face.write(b"3")
            raise AssertionError("it was not interrupted")
        with interrupt_at(write=1):
            cp.write_nowait(b"4")
            raise AssertionError("it was not interrupted")
    assert stored_state(store) == b"4"


async def test_many_threads_are_interrupted_once(store: MemoryStore) -> None:
    """Whichever threads write, one write of them all is interrupted."""
    interrupted: list[int] = []
    gate = threading.Barrier(4)

    def work(face: blocking.Checkpointer[bytes]) -> None:
        gate.wait()
        for _ in range(100):
            try:
                face.write(b"x")
            except LookupError:
                interrupted.append(1)

    async with Runtime(store) as rt, rt.open("k") as cp:
        with interrupt_at(write=200, by=LookupError):
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(anyio.to_thread.run_sync, work, blocking.Checkpointer(cp))
    assert interrupted == [1]


async def test_an_interruption_in_a_task_group(store: MemoryStore) -> None:
    """In a group the interruption cancels the siblings, and ends with the block all the same."""
    with interrupt_at(write=2, key="sum"):
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            group.start_soon(run, store, 5, [])
    found = stored(store, "sum")
    assert found is not None
    assert found[0] == 2


async def test_other_errors_of_the_group_are_left(store: MemoryStore) -> None:
    """What else a group raises leaves the block without the interruption."""

    async def fail_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError

    with pytest.raises(BaseExceptionGroup) as caught, interrupt_at(write=2):
        async with anyio.create_task_group() as group:
            group.start_soon(fail_when_cancelled)
            await anyio.lowlevel.checkpoint()
            group.start_soon(run, store, 5, [])
    assert caught.group_contains(LookupError)
    assert not caught.group_contains(Interrupted)


async def test_blocks_overlap(store: MemoryStore) -> None:
    """Blocks may be left in another order than they were entered; each counts for itself."""
    first, second = interrupt_at(write=3, by=LookupError), interrupt_at(write=3, by=ValueError)
    async with Runtime(store) as rt, rt.open("k") as cp:
        first.__enter__()
        await cp.write(b"1")
        second.__enter__()
        await cp.write(b"2")
        with pytest.raises(LookupError):
            await cp.write(b"3")
        first.__exit__(None, None, None)
        with pytest.raises(ValueError, match=r"^$"):
            await cp.write(b"4")
        second.__exit__(None, None, None)
        await cp.write(b"5")


async def test_a_write_that_fails_by_itself_says_so(store: MemoryStore) -> None:
    """A write that stages nothing raises its own error, also where it would be interrupted."""
    async with Runtime(store) as rt, rt.open("k") as cp:
        with pytest.raises(CodecError), interrupt_at(write=1):
            await cp.write(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"write": 0}, ValueError),
        ({"write": True}, ValueError),
        ({"write": 1, "by": int}, TypeError),
        ({"write": 1, "by": 15}, TypeError),
        ({"write": 1, "by": signal.SIGTERM, "lost": True}, ValueError),
    ],
)
async def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    """What cannot be meant is refused when the block is entered."""
    with pytest.raises(error), interrupt_at(**options):
        pass


SCRIPT = """
import signal, sys
import aiocheckpoint
from aiocheckpoint.testing import interrupt_at

@aiocheckpoint.task(key="k")
async def job(cp, numbers):
    start = int(await cp.read(b"0"))
    print("from", start, flush=True)
    for n in range(start, numbers):
        await cp.write(b"%d" % (n + 1))
    return "done"

store = "sqlite:" + sys.argv[1]
"""


def test_a_script_interrupted_and_run_again(tmp_path: Path) -> None:
    """The block may hold a whole aiocheckpoint.run, in a synchronous test."""
    source = """
with interrupt_at(write=3):
    aiocheckpoint.run(job, 5, store=store)
print(aiocheckpoint.run(job, 5, store=store))
"""
    script = run_script(SCRIPT + source, tmp_path / "jobs.db")
    assert script.stdout.split() == ["from", "0", "from", "3", "done"]


def test_sigkill_at_the_nth_write(tmp_path: Path) -> None:
    """The process is really killed, and the next one goes on with the n-th write's state."""
    source = """
with interrupt_at(write=3, by=signal.SIGKILL):
    aiocheckpoint.run(job, 5, store=store)
"""
    script = Script(SCRIPT + source, tmp_path / "jobs.db")
    assert script.end() == -signal.SIGKILL
    again = run_script(SCRIPT + "aiocheckpoint.run(job, 5, store=store)", tmp_path / "jobs.db")
    assert again.stdout.split() == ["from", "3"]


def test_sigterm_at_the_nth_write(tmp_path: Path) -> None:
    """A run that is sent SIGTERM at its n-th write stops at one of the next."""
    source = """
with interrupt_at(write=3, by=signal.SIGTERM):
    aiocheckpoint.run(job, 10**9, store=store)
"""
    script = Script(SCRIPT + source, tmp_path / "jobs.db")
    assert script.end() == 143
    again = run_script(SCRIPT + "aiocheckpoint.run(job, 0, store=store)", tmp_path / "jobs.db")
    assert int(again.stdout.split()[1]) >= 3


# no_waiting


async def test_retries_do_not_wait(store: MemoryStore) -> None:
    """Policies and retry_after that ask for hours are retried at once, as often as they say."""
    attempts: list[int] = []

    async def fail(cp: Checkpointer[bytes], failures: int, error: Exception) -> str:
        attempts.append(cp.attempt)
        if len(attempts) <= failures:
            raise error
        return "done"

    policy = RetryPolicy(on=OSError, retries=3, wait_initial=3600, wait_max=7200)
    with no_waiting(), anyio.fail_after(20):
        async with Runtime(store) as rt:
            assert await rt.run(fail, 3, OSError(), key="a", retry=policy) == "done"
            assert attempts == [1, 2, 3, 4]
            attempts.clear()
            error = RecoverableError("later", retry_after=3600)
            assert await rt.run(fail, 2, error, key="b", retry=policy) == "done"
            attempts.clear()
            with pytest.raises(OSError, match="no more"):
                await rt.run(fail, 9, OSError("no more"), key="c", retry=policy)
            assert attempts == [1, 2, 3, 4]


async def test_retries_at_once_still_yield(store: MemoryStore) -> None:
    """Between two attempts the loop goes round, and a stop ends the run there."""
    async with Runtime(store) as rt:

        async def fail(cp: Checkpointer[bytes]) -> None:
            raise OSError

        async def stop() -> None:
            rt.stop()

        with no_waiting(), anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(stop)
                with pytest.raises(StoppedError):
                    await rt.run(fail, key="k", retry=1_000_000)


async def test_waits_are_back_after_the_block(store: MemoryStore) -> None:
    """Blocks overlap, and after the last of them retries wait again."""
    first, second = no_waiting(), no_waiting()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    failed = anyio.Event()

    async def fail(cp: Checkpointer[bytes]) -> None:
        failed.set()
        assert cp.attempt == 1, "it did not wait"
        raise OSError

    policy = RetryPolicy(on=OSError, wait_initial=3600, wait_max=3600)
    async with Runtime(store) as rt, anyio.create_task_group() as group:
        group.start_soon(partial(rt.run, fail, key="k", retry=policy))
        await failed.wait()
        for _ in range(50):
            await anyio.sleep(0.002)
        group.cancel_scope.cancel()


# check_resumes


async def test_a_task_that_resumes_passes() -> None:
    """It is run undisturbed, then interrupted at each of its writes and resumed."""
    steps: list[int] = []
    assert await check_resumes(add_up, 4, steps) == 6
    assert steps == list(range(4)) * 5
    steps.clear()
    assert await check_resumes(add_up, 4, steps, lost=True) == 6
    rounds = [[*range(n), *range(n - 1, 4)] for n in range(1, 5)]
    assert steps == [*range(4), *itertools.chain.from_iterable(rounds)]
    steps.clear()
    assert await check_resumes(add_up, 4, steps, at=[2]) == 6
    assert steps == list(range(4)) * 2


async def forgetful(cp: Checkpointer[int]) -> int:
    """Never reads its state."""
    for n in range(5):
        await cp.write(n)
    return 5


async def double_counting(cp: Ints) -> int:
    """Adds to its total before the step that it writes the total with."""
    done, total = await cp.read(default=[0, 0])
    for n in range(done, 5):
        await cp.write([n, total + 1])
        total += 1
    return total


async def random(cp: Checkpointer[bytes], numbers: Any) -> int:
    """Never the same twice."""
    await cp.write(b"x")
    return int(next(numbers))


async def silent(cp: Checkpointer[bytes]) -> int:
    """Never writes."""
    return 1


@pytest.mark.parametrize(
    ("job", "match"),
    [
        (forgetful, "interrupted at write 2, it began anew: it wrote 5 times"),
        (double_counting, "interrupted at write 1 and resumed, it gave 6 instead of 5"),
        (partial(random, numbers=itertools.count()), r"gave \d+ instead of \d+"),
        (silent, "never wrote"),
    ],
)
async def test_a_task_that_does_not_resume_fails(
    job: Callable[[Checkpointer[Any]], Awaitable[int]], match: str
) -> None:
    """A task that forgets, counts twice, differs each time or never writes is told apart."""
    with pytest.raises(AssertionError, match=match):
        await check_resumes(job, key="k")


async def test_a_task_that_writes_first_of_all_passes() -> None:
    """A write at the start of each attempt is no beginning anew."""

    @task(key="k", type=int)
    async def job(cp: Checkpointer[int]) -> int:
        start = await cp.read(default=0)
        await cp.write(start)
        for n in range(start, 4):
            await cp.write(n + 1)
        return 4

    assert await check_resumes(job) == 4
    assert await check_resumes(job, lost=True) == 4


async def test_retries_of_a_checked_task_do_not_wait() -> None:
    """A task under check may fail and be retried, at once."""
    failures = iter([OSError()] * 2)

    async def job(cp: Checkpointer[bytes]) -> str:
        await cp.write(b"x")
        for failure in failures:
            raise failure
        return "done"

    policy = RetryPolicy(on=OSError, retries=2, wait_initial=3600, wait_max=3600)
    with anyio.fail_after(20):
        assert await check_resumes(job, key="k", retry=policy, at=[1]) == "done"


async def test_a_save_counts_as_a_write(tmp_path: Path) -> None:
    """A task that saves files is interrupted after a save and resumes from its files."""
    (tmp_path / "work").mkdir()

    async def job(cp: Checkpointer[bytes]) -> str:
        work = tmp_path / f"work{cp.attempt}"
        shutil.rmtree(work, ignore_errors=True)
        if await cp.restore(work) is None:
            work.mkdir()
        for n in range(int(await cp.read(b"0")), 4):
            (work / f"{n}").write_text(f"{n}")
            await cp.save(work, state=b"%d" % (n + 1))
        return "".join(sorted(path.read_text() for path in work.iterdir()))

    assert await check_resumes(job, key="k") == "0123"
    with interrupt_at(write=1), blocking.open("memory:", "k") as cp:
        cp.save(tmp_path / "work")
        raise AssertionError("it was not interrupted")
