"""The runner: attempts, retries, results, and whose the key is."""

from __future__ import annotations

import contextvars
import functools
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
import pytest

import aiocheckpoint
from aiocheckpoint import (
    Checkpoint,
    Checkpointer,
    CodecError,
    FencedError,
    FlushTimeoutError,
    KeyInUseError,
    NonRecoverableError,
    PickleCodec,
    RecoverableError,
    RetryPolicy,
    Runtime,
    StoppedError,
    current,
    task,
)
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import FaultyStore

from .support import Script, run_script, true

pytestmark = pytest.mark.anyio

Bytes = Checkpointer[bytes]


def quick(retries: int = 3, on: Any = Exception, **options: Any) -> RetryPolicy:
    """Retries at once."""
    return RetryPolicy(on=on, retries=retries, wait_initial=0, wait_jitter=0, **options)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def rt(store: MemoryStore) -> AsyncIterator[Runtime]:
    async with Runtime(store, min_interval=0) as runtime:
        yield runtime


async def stored(store: MemoryStore, key: str = "k") -> Checkpoint:
    """What is stored under the key, read by a runtime that claims nothing."""
    async with Runtime(store) as runtime:
        found = await runtime.latest(key)
    assert found is not None
    return found


class Attempts:
    """A task that fails with each of these in turn, then returns how often it was tried.

    Each attempt first writes its number after those of the attempts before it.
    """

    def __init__(self, *failures: BaseException, write: bool = True) -> None:
        self.failures = list(failures)
        self.write = write
        self.seen: list[tuple[int, bytes]] = []

    async def __call__(self, cp: Bytes) -> int:
        state = await cp.read(b"")
        self.seen.append((cp.attempt, state))
        if self.write:
            await cp.write(state + b"%d" % cp.attempt)
        if self.failures:
            raise self.failures.pop(0)
        return len(self.seen)


# To a result.


async def test_run_gives_the_result(rt: Runtime) -> None:
    """A task is run with its arguments, to what it returns."""

    async def add(cp: Bytes, a: int, b: int) -> int:
        return a + b

    assert await rt.run(add, 2, 3, key="k") == 5


async def test_attempts_go_on_from_the_state(rt: Runtime, store: MemoryStore) -> None:
    """Each attempt reads what the one before it wrote last, and knows its number."""
    job = Attempts(ValueError(), ValueError())
    assert await rt.run(job, key="k", retry=quick()) == 3
    assert job.seen == [(1, b""), (2, b"1"), (3, b"12")]
    found = await stored(store)
    assert (found.status, found.attempt, found.burnt, found.payload) == ("done", 3, 2, b"123")


async def test_first_attempt_is_not_resumed_and_later_ones_are(rt: Runtime) -> None:
    """`cp.resumed` says whether there was a state, not whether there was an attempt."""
    seen = []

    async def job(cp: Bytes) -> None:
        seen.append(cp.resumed)
        if len(seen) == 2:
            await cp.write(b"x")
        if len(seen) < 4:
            raise RecoverableError

    await rt.run(job, key="k", retry=quick())
    assert seen == [False, False, True, True]


async def test_task_that_writes_nothing_is_done(rt: Runtime, store: MemoryStore) -> None:
    """A task that returns without a write is done all the same, without a state."""
    job = Attempts(write=False)
    assert await rt.run(job, key="k") == 1
    assert await rt.run(job, key="k") == 1
    found = await stored(store)
    assert (found.status, found.seq) == ("done", 0)
    assert len(job.seen) == 1


async def test_several_keys_run_at_once(rt: Runtime) -> None:
    """Runs of different keys in one runtime do not touch each other."""
    jobs = [Attempts(*[ValueError()] * n) for n in range(4)]
    results: dict[int, int] = {}

    async def one(n: int) -> None:
        results[n] = await rt.run(jobs[n], key=f"k{n}", retry=quick())

    async with anyio.create_task_group() as group:
        for n in range(4):
            group.start_soon(one, n)
    assert results == {0: 1, 1: 2, 2: 3, 3: 4}


# Failing for good.


async def test_last_exception_itself_is_raised(rt: Runtime, store: MemoryStore) -> None:
    """When no retry is left the last exception is raised, the very object, with a note."""
    failures = [ValueError("first"), ValueError("second"), ValueError("third")]
    job = Attempts(*failures)
    with pytest.raises(ValueError, match="third") as caught:
        await rt.run(job, key="k", retry=quick(2))
    assert caught.value is failures[2]
    (note,) = caught.value.__notes__
    assert "attempt 3 of 'k'" in note
    assert "2 of 2 retries used" in note
    assert not hasattr(failures[0], "__notes__")
    found = await stored(store)
    assert (found.status, found.payload) == ("failed", b"123")


async def test_failed_run_starts_anew_with_its_state(rt: Runtime, store: MemoryStore) -> None:
    """The run after a failed one keeps the state and has all its retries again."""
    job = Attempts(*[ValueError() for _ in range(5)])
    with pytest.raises(ValueError, match="ended the run"):
        await rt.run(job, key="k", retry=quick(2))
    assert await rt.run(job, key="k", retry=quick(2)) == 6
    assert [attempt for attempt, _ in job.seen] == [1, 2, 3, 1, 2, 3]
    assert (await stored(store)).payload == b"123123"


@pytest.mark.parametrize(
    "error",
    [
        NonRecoverableError("no"),
        ExceptionGroup("g", [ValueError(), NonRecoverableError("no")]),
        CodecError("no"),
        KeyError("not in on="),
    ],
    ids=repr,
)
async def test_some_errors_end_the_run_at_once(
    rt: Runtime, store: MemoryStore, error: Exception
) -> None:
    """An error that is not to be retried ends the run as failed though retries are left."""
    job = Attempts(error)
    with pytest.raises(type(error)) as caught:
        await rt.run(job, key="k", retry=quick(on=ValueError))
    assert caught.value is error
    assert "0 of 3 retries used" in error.__notes__[-1]
    assert len(job.seen) == 1
    assert (await stored(store)).status == "failed"


async def test_without_retry_the_first_failure_is_the_last(rt: Runtime) -> None:
    """Retries are asked for: by default there are none, not even for RecoverableError."""
    job = Attempts(RecoverableError())
    with pytest.raises(RecoverableError):
        await rt.run(job, key="k")
    assert len(job.seen) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_what_is_no_exception_passes_through(
    store: MemoryStore, error: type[BaseException]
) -> None:
    """KeyboardInterrupt and SystemExit leave the run as interrupted: no retry is burnt."""
    failure = error()
    job = Attempts(failure)
    caught: BaseException | None = None
    async with Runtime(store) as rt:
        try:
            await rt.run(job, key="k", retry=quick())
        except BaseException as exc:
            caught = exc
    assert caught is failure
    found = await stored(store)
    assert (found.status, found.burnt, found.payload) == ("running", 0, b"1")


async def test_exception_group_of_a_task_group_is_retried(rt: Runtime) -> None:
    """What a task group raises is retried when each of its errors would be."""
    failed = 0

    async def fail(error: Exception) -> None:
        nonlocal failed
        failed += 1
        raise error

    async def job(cp: Bytes, other: type[Exception]) -> int:
        if cp.attempt < 3:
            async with anyio.create_task_group() as group:
                group.start_soon(fail, OSError())
                group.start_soon(fail, other())
        return cp.attempt

    assert await rt.run(job, ConnectionError, key="a", retry=quick(on=OSError)) == 3
    with pytest.raises(ExceptionGroup) as caught:
        await rt.run(job, KeyError, key="b", retry=quick(on=OSError))
    assert caught.group_contains(KeyError)
    assert "attempt 1 of 'b'" in caught.value.__notes__[-1]


async def test_on_that_fails_ends_the_run(rt: Runtime) -> None:
    """An error in the callable `on` is raised, with the task's own as its context."""
    failure = ValueError("the task's")

    def on(exc: Exception) -> bool:
        raise LookupError("on's")

    with pytest.raises(LookupError, match="on's") as caught:
        await rt.run(Attempts(failure), key="k", retry=quick(on=on))
    assert caught.value.__context__ is failure


# What burns a retry, and what does not.

COUNTING = """
import os, signal, sys
import aiocheckpoint
from aiocheckpoint import Checkpointer, RetryPolicy

@aiocheckpoint.task(
    key="k", retry=RetryPolicy(on=ValueError, retries=2, wait_initial=0, wait_jitter=0)
)
async def job(cp: Checkpointer[bytes], fates: str) -> str:
    state = await cp.read(b"")
    print(cp.attempt, state.decode(), flush=True)
    await cp.write(state + b"%d" % cp.attempt)
    fate = fates[cp.attempt - 1]
    if fate == "k":
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == "f":
        raise ValueError(cp.attempt)
    return fates

print(aiocheckpoint.run(job, sys.argv[2], store=sys.argv[1]))
"""


def lines(fates: str, url: str) -> tuple[int, list[str]]:
    script = Script(COUNTING, url, fates)
    return script.end(), script.stdout.splitlines()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("scheme", ["sqlite:{}/jobs.db", "file:{}/jobs"])
async def test_attempts_and_retries_survive_the_process(tmp_path: Path, scheme: str) -> None:
    """Across processes attempts are counted on and burnt retries stay burnt; a kill burns none."""
    url = scheme.format(tmp_path)
    assert lines("fkkfx", url) == (-9, ["1 ", "2 1"])
    assert lines("fkkfx", url) == (-9, ["3 12"])
    assert lines("fkkfx", url) == (0, ["4 123", "5 1234", "fkkfx"])
    assert lines("fkkfx", url) == (0, ["fkkfx"])


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_budget_runs_out_over_processes(tmp_path: Path) -> None:
    """A budget that one process has begun ends in another; after that it is fresh."""
    url = f"sqlite:{tmp_path}/jobs.db"
    assert lines("fkff", url) == (-9, ["1 ", "2 1"])
    assert lines("fkff", url) == (1, ["3 12", "4 123"])
    assert lines("x", url) == (0, ["1 1234", "x"])


async def test_cancel_burns_no_retry(store: MemoryStore) -> None:
    """A cancelled run is interrupted: its state is stored and its budget is whole."""
    for n in (1, 2, 3):
        async with Runtime(store) as rt, anyio.create_task_group() as group:

            async def job(
                cp: Bytes, scope: anyio.CancelScope = group.cancel_scope, n: int = n
            ) -> None:
                assert cp.attempt == n
                await cp.write(b"%d" % n)
                scope.cancel()
                await anyio.sleep_forever()

            await rt.run(job, key="k", retry=quick(1))
        found = await stored(store)
        assert (found.status, found.attempt, found.burnt) == ("running", n, 0)
        assert found.payload == b"%d" % n


async def test_stop_burns_no_retry(store: MemoryStore) -> None:
    """A stopped run raises StoppedError, though its policy retries on anything."""
    for n in (1, 2, 3):
        async with Runtime(store) as rt:

            async def job(cp: Bytes, rt: Runtime = rt) -> None:
                rt.stop()
                while True:
                    await cp.write(b"%d" % cp.attempt)

            with pytest.raises(StoppedError):
                await rt.run(job, key="k", retry=quick(1))
        found = await stored(store)
        assert (found.status, found.attempt, found.burnt) == ("running", n, 0)
        assert found.payload == b"%d" % n


async def test_stop_inside_a_task_group_burns_no_retry(store: MemoryStore) -> None:
    """A stop that ends a child task of the attempt is a stop, not a failure."""
    async with Runtime(store) as rt:

        async def work(cp: Bytes) -> None:
            while True:
                await cp.write(b"x")

        async def job(cp: Bytes) -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(work, cp)
                rt.stop()

        with pytest.raises(StoppedError):
            await rt.run(job, key="k", retry=quick(1))
    found = await stored(store)
    assert (found.status, found.burnt) == ("running", 0)


async def test_stop_that_the_task_wraps_burns_no_retry(store: MemoryStore) -> None:
    """A stop that comes out of the task as the cause of its own error is a stop all the same."""
    async with Runtime(store) as rt:

        async def job(cp: Bytes) -> None:
            rt.stop()
            try:
                while True:
                    await cp.write(b"x")
            except Exception as exc:
                raise LookupError("step failed") from exc

        with pytest.raises(StoppedError) as caught:
            await rt.run(job, key="k")
    assert isinstance(caught.value.__cause__, LookupError)
    found = await stored(store)
    assert (found.status, found.burnt) == ("running", 0)


async def test_failure_while_stopping_is_recorded(store: MemoryStore) -> None:
    """A failure of the task's own while the runtime stops burns a retry, and no other follows."""
    async with Runtime(store) as rt:
        tried = 0

        async def job(cp: Bytes) -> None:
            nonlocal tried
            tried += 1
            rt.stop()
            raise ValueError("own")

        with pytest.raises(StoppedError):
            await rt.run(job, key="k", retry=quick(1))
        assert tried == 1
    found = await stored(store)
    assert (found.status, found.burnt) == ("running", 1)


async def test_reset_on_progress_counts_failures_in_a_row(rt: Runtime) -> None:
    """With reset_on_progress an attempt that wrote a newer state has its retries again."""
    job = Attempts(*[ValueError() for _ in range(9)])
    assert await rt.run(job, key="k", retry=quick(1, reset_on_progress=True)) == 10


async def test_reset_on_progress_ends_without_progress(rt: Runtime, store: MemoryStore) -> None:
    """Without a newer state failures add up, also with reset_on_progress."""
    job = Attempts(*[ValueError() for _ in range(9)], write=False)
    with pytest.raises(ValueError, match="ended the run") as caught:
        await rt.run(job, key="k", retry=quick(2, reset_on_progress=True))
    assert len(job.seen) == 3
    assert "2 of 2 retries used" in caught.value.__notes__[0]


# Time.


async def test_attempt_timeout_is_retried(rt: Runtime) -> None:
    """An attempt that runs longer than attempt_timeout is cancelled, and counts as a failure."""

    async def job(cp: Bytes) -> int:
        await cp.write(b"%d" % cp.attempt)
        if cp.attempt < 3:
            await anyio.sleep_forever()
        return cp.attempt

    retry = quick(2, on=KeyError, attempt_timeout=0.05)
    assert await rt.run(job, key="k", retry=retry) == 3
    with pytest.raises(TimeoutError, match=r"attempt 2 of 'late' ran longer") as caught:
        await rt.run(job, key="late", retry=quick(1, on=KeyError, attempt_timeout=0.05))
    assert "1 of 1 retries used" in caught.value.__notes__[0]


async def test_timeout_of_the_tasks_own_is_another(rt: Runtime) -> None:
    """A TimeoutError that the task raises is retried only if `on` says so."""

    async def job(cp: Bytes) -> None:
        with anyio.fail_after(0):
            await anyio.sleep_forever()

    with pytest.raises(TimeoutError) as caught:
        await rt.run(job, key="k", retry=quick(on=KeyError, attempt_timeout=60))
    assert "attempt 1" in caught.value.__notes__[0]


async def test_deadline_begins_no_retry_past_it(rt: Runtime) -> None:
    """A retry that would begin past the deadline does not; nobody waits for it."""
    job = Attempts(ValueError(), ValueError())
    slow = RetryPolicy(on=Exception, wait_initial=100, wait_jitter=0, deadline=50)
    with pytest.raises(ValueError, match="ended the run") as caught, anyio.fail_after(10):
        await rt.run(job, key="k", retry=slow)
    assert len(job.seen) == 1
    assert "0 of 3 retries used" in caught.value.__notes__[0]


async def test_deadline_cuts_no_attempt_short(rt: Runtime) -> None:
    """An attempt under way when the deadline passes may succeed."""

    async def job(cp: Bytes) -> str:
        await anyio.sleep(0.02)
        return "late"

    assert await rt.run(job, key="k", retry=quick(deadline=0.001)) == "late"


async def test_retry_after_replaces_the_wait(rt: Runtime) -> None:
    """`retry_after` is waited for, instead of the policy's own wait."""
    patient = RetryPolicy(on=KeyError, wait_initial=1000)
    began = time.monotonic()
    with anyio.fail_after(10):
        await rt.run(Attempts(RecoverableError(retry_after=0.1)), key="k", retry=patient)
    assert time.monotonic() - began >= 0.1


async def test_backoff_is_waited_for(rt: Runtime) -> None:
    """Between attempts the policy's wait passes, and not much more."""
    policy = RetryPolicy(on=Exception, wait_initial=0.05, wait_max=0.06, wait_jitter=0)
    began = time.monotonic()
    await rt.run(Attempts(*[ValueError() for _ in range(3)]), key="k", retry=policy)
    spent = time.monotonic() - began
    assert 0.05 + 0.06 + 0.06 <= spent < 2


async def test_key_is_free_during_backoff(store: MemoryStore) -> None:
    """While a run waits for its retry, its state is stored and the key is not open."""
    slow = RetryPolicy(on=Exception, wait_initial=1000, wait_jitter=0, wait_max=1000)
    async with Runtime(store) as rt, anyio.create_task_group() as group:
        job = Attempts(ValueError())
        group.start_soon(functools.partial(rt.run, job, key="k", retry=slow))
        await true(lambda: bool(job.seen) and not rt._running.writer.holding)
        found = await rt.latest("k")
        assert found is not None
        assert (found.status, found.burnt, found.payload) == ("running", 1, b"1")
        group.cancel_scope.cancel()


# Done runs.


@dataclass
class Report:
    name: str
    scores: dict[str, float]


async def test_done_run_returns_its_result(rt: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    """A run that is done gives its stored result without running, and says so in the log."""
    caplog.set_level(logging.INFO, "aiocheckpoint")
    calls = 0

    async def job(cp: Bytes) -> Report:
        nonlocal calls
        calls += 1
        return Report("r", {"a": 0.5})

    first = await rt.run(job, key="k")
    claims = caplog.text.count("claimed 'k'")
    second = await rt.run(job, key="k")
    assert first == second == Report("r", {"a": 0.5})
    assert isinstance(second, Report)
    assert calls == 1
    assert "'k' is done since attempt 1: returning its result" in caplog.text
    assert caplog.text.count("claimed 'k'") == claims, "a look at a done run claims nothing"


@pytest.mark.parametrize("value", [None, True, 0, "", "text", b"\x00", [1, [2]], {"a": None}, 1.5])
async def test_results_come_back_as_they_were(store: MemoryStore, value: object) -> None:
    """Without a return annotation a result comes back as plain data; None is one."""

    async def job(cp):  # type: ignore[no-untyped-def]
        return value

    for _ in range(2):
        async with Runtime(store) as rt:
            assert await rt.run(job, key="k") == value


async def as_set(cp: Bytes) -> set[int]:
    return {1, 2}


async def as_tuple(cp: Bytes) -> tuple[int, Report]:
    return 1, Report("x", {})


async def as_optional(cp: Bytes) -> Report | None:
    return None


async def as_object(cp: Bytes) -> object:
    return [1]


async def as_keys(cp: Bytes) -> dict[int, str]:
    return {1: "a"}


@pytest.mark.parametrize("job", [as_set, as_tuple, as_optional, as_object, as_keys])
async def test_return_annotation_gives_the_type(rt: Runtime, job: Callable[[Bytes], Any]) -> None:
    """A stored result is decoded into the type that the function says it returns."""
    first = await rt.run(job, key="k")
    assert await rt.run(job, key="k") == first


async def test_result_of_another_type_is_a_clear_error(rt: Runtime) -> None:
    """A stored result that does not fit the annotation any more is an error that says what to
    do."""

    async def old(cp: Bytes) -> str:
        return "text"

    async def new(cp: Bytes) -> int:
        return 1

    await rt.run(old, key="k")
    with pytest.raises(CodecError, match="fresh=True"):
        await rt.run(new, key="k")
    assert await rt.run(new, key="k", fresh=True) == 1


async def test_fresh_starts_over(rt: Runtime, store: MemoryStore) -> None:
    """`fresh=True` leaves state, attempts and budget of a run behind, done or not."""
    done = Attempts(ValueError())
    await rt.run(done, key="k", retry=quick())
    again = Attempts(ValueError())
    assert await rt.run(again, key="k", retry=quick(), fresh=True) == 2
    assert again.seen == [(1, b""), (2, b"1")], "only the first attempt is fresh"
    with pytest.raises(KeyError):
        await rt.run(Attempts(KeyError()), key="k", fresh=True)
    assert await rt.run(job := Attempts(), key="k", fresh=True) == 1
    assert job.seen == [(1, b"")]
    assert (await stored(store)).payload == b"1"


class Opaque:
    """Nothing that msgspec encodes."""

    def __init__(self, value: int) -> None:
        self.value = value


@pytest.mark.parametrize("result", [Opaque(1), object(), {"x": Opaque(2)}, lambda: None])
async def test_result_that_cannot_be_stored(
    rt: Runtime, store: MemoryStore, result: object
) -> None:
    """A result that cannot be encoded is a CodecError, not retried, and the run is not done."""
    calls = 0

    async def job(cp: Bytes) -> object:
        nonlocal calls
        calls += 1
        await cp.write(b"last")
        return result

    with pytest.raises(CodecError, match=r"job returned a .* that cannot be stored"):
        await rt.run(job, key="k", retry=quick())
    assert calls == 1
    found = await stored(store)
    assert (found.status, found.payload) == ("failed", b"last")


async def test_result_that_is_too_large(rt: Runtime, store: MemoryStore) -> None:
    """A result of more than a MiB is an error that says where large results go."""

    async def job(cp: Bytes, size: int) -> bytes:
        return b"x" * size

    with pytest.raises(CodecError, match=r"write\(\) large results as the last state"):
        await rt.run(job, (1 << 20) + 1, key="k")
    assert (await stored(store)).status == "failed"
    assert len(await rt.run(job, (1 << 20) - 10, key="k")) == (1 << 20) - 10


async def test_codec_of_the_task_takes_other_results(rt: Runtime) -> None:
    """What MessagePack does not take the task's own codec does; results come back by it."""

    @task(key="k", codec=PickleCodec())
    async def job(cp: Checkpointer[object]) -> Opaque:
        await cp.write(Opaque(1))
        return Opaque(2)

    assert (await rt.run(job)).value == 2
    assert (await rt.run(job)).value == 2
    with pytest.raises(CodecError, match="'pickle'"):
        await rt.run(job.fn, key="k")


# Whose key it is.


async def test_key_in_use(rt: Runtime) -> None:
    """In one runtime a key runs once at a time; the second is told and disturbs nothing."""
    second: list[BaseException] = []

    async def job(cp: Bytes) -> str:
        for attempt in (rt.run(Attempts(), key="k"), enter(rt.open("k"))):
            try:
                await attempt
            except KeyInUseError as exc:
                second.append(exc)
        await cp.write(b"mine")
        await cp.flush()
        return "ok"

    async def enter(opening: Any) -> None:
        async with opening:
            raise AssertionError

    assert await rt.run(job, key="k", retry=quick()) == "ok"
    assert len(second) == 2
    assert "'k' is open in this runtime" in str(second[0])


async def test_newer_run_fences_the_older(store: MemoryStore) -> None:
    """A run of the same key elsewhere takes it over: the older one's write raises FencedError."""
    async with Runtime(store) as old, Runtime(store) as new:
        tried: list[str] = []

        async def newer(cp: Bytes) -> str:
            tried.append("new")
            await cp.write(b"new")
            return "new"

        async def older(cp: Bytes) -> str:
            tried.append("old")
            await cp.write(b"old")
            await cp.flush()
            assert await new.run(newer, key="k") == "new"
            await cp.write(b"zombie")
            await cp.flush()
            return "old"

        with pytest.raises(FencedError, match="newer attempt"):
            await old.run(older, key="k", retry=quick())
        assert tried == ["old", "new"]
        assert await new.run(newer, key="k") == "new"
    found = await stored(store)
    assert (found.status, found.payload) == ("done", b"new")


@pytest.mark.parametrize("error", [ValueError("x"), RecoverableError("x")])
async def test_retry_does_not_steal_the_key_back(store: MemoryStore, error: Exception) -> None:
    """A failed attempt whose key was claimed meanwhile is followed by FencedError, no retry."""
    async with Runtime(store) as old, Runtime(store) as new:
        tried: list[int] = []

        async def older(cp: Bytes) -> None:
            tried.append(cp.attempt)
            async with new.open("k") as other:
                await other.write(b"new")
            raise error

        with pytest.raises(FencedError):
            await old.run(older, key="k", retry=quick())
        assert tried == [1]
    assert (await stored(store)).payload == b"new"


@pytest.mark.parametrize("taking", ["claim", "delete"])
async def test_claim_during_backoff_fences(store: MemoryStore, taking: str) -> None:
    """A key that was claimed, or deleted, while a run waits for its retry is not its any more."""
    async with Runtime(store) as old, Runtime(store) as new:
        job = Attempts(RecoverableError(retry_after=0.3))
        caught: list[BaseException] = []

        async def older() -> None:
            try:
                await old.run(job, key="k", retry=quick())
            except FencedError as exc:
                caught.append(exc)

        async with anyio.create_task_group() as group:
            group.start_soon(older)
            await true(lambda: bool(job.seen) and not old._running.writer.holding)
            if taking == "claim":
                async with new.open("k"):
                    pass
            else:
                await new.delete("k")
        assert len(caught) == 1
        assert len(job.seen) == 1


async def test_swallowed_fence_shows_at_the_end(store: MemoryStore) -> None:
    """A task that swallows FencedError and returns is not done: its run raises it."""
    async with Runtime(store, min_interval=0) as old, Runtime(store) as new:

        async def job(cp: Bytes) -> str:
            async with new.open("k") as other:
                await other.write(b"new")
            for n in range(3):
                try:
                    await cp.write(b"%d" % n)
                    await cp.flush()
                except FencedError:
                    pass
            return "done?"

        with pytest.raises(FencedError):
            await old.run(job, key="k", retry=quick())
    found = await stored(store)
    assert (found.status, found.payload) == ("running", b"new")


async def test_run_that_deletes_its_key(rt: Runtime) -> None:
    """A task may delete its checkpoint: its result is returned and nothing is stored."""

    async def job(cp: Bytes) -> str:
        await cp.write(b"x")
        await cp.delete()
        return "gone"

    assert await rt.run(job, key="k") == "gone"
    assert await rt.latest("k") is None


# A store that fails.


async def test_failure_is_not_lost_when_the_store_is_down(store: MemoryStore) -> None:
    """If a failed attempt cannot be stored in time, the error that the run raises leads to what
    the task raised."""
    faulty = FaultyStore(store)
    failure = ValueError("the task's")

    async def job(cp: Bytes) -> None:
        await cp.write(b"x")
        faulty.down = True
        raise failure

    async with Runtime(faulty, flush_timeout=0.2) as rt:
        with pytest.raises(FlushTimeoutError) as caught:
            await rt.run(job, key="k", retry=quick())
        assert failure in (caught.value.__cause__, caught.value.__context__)
        faulty.down = False
        await true(lambda: not rt._running.writer.holding)
    assert (await stored(store)).payload == b"x"


async def test_last_failure_is_raised_when_the_store_is_down(
    store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The last exception is raised though the store is down; that is a note and a log line."""
    faulty = FaultyStore(store)
    failure = ValueError("the task's")

    async def job(cp: Bytes) -> None:
        await cp.write(b"x")
        faulty.down = True
        raise failure

    async with Runtime(faulty, flush_timeout=0.1) as rt:
        with pytest.raises(ValueError, match="the task's") as caught:
            await rt.run(job, key="k")
        assert caught.value is failure
        assert any("not stored in time" in note for note in failure.__notes__)
        faulty.down = False
        await true(lambda: not rt._running.writer.holding)
    assert [r for r in caplog.records if r.levelno >= logging.ERROR and "'k'" in r.getMessage()]


async def test_result_that_is_not_stored_in_time(store: MemoryStore) -> None:
    """A run whose result cannot be stored raises FlushTimeoutError: it is not known to be done."""
    faulty = FaultyStore(store)

    async def job(cp: Bytes) -> str:
        faulty.down = True
        return "result"

    async with Runtime(faulty, flush_timeout=0.1) as rt:
        with pytest.raises(FlushTimeoutError, match="'k'"):
            await rt.run(job, key="k", retry=quick())
        faulty.down = False


# current()


async def test_current_is_the_running_checkpointer(rt: Runtime) -> None:
    """`current()` gives the task's checkpointer in the task and in its child tasks, also of
    several runs at once and of runs in runs."""
    seen: dict[str, list[bool]] = {}

    async def child(cp: Bytes, here: list[bool]) -> None:
        await anyio.lowlevel.checkpoint()
        here.append(current() is cp)

    async def job(cp: Bytes, depth: int) -> None:
        here = seen.setdefault(cp.key, [])
        here.append(current() is cp)
        if depth:
            await rt.run(job, depth - 1, key=f"{cp.key}/{depth}")
        here.append(current() is cp)
        async with anyio.create_task_group() as group:
            group.start_soon(child, cp, here)
        here.append(await anyio.to_thread.run_sync(current) is cp)

    async with anyio.create_task_group() as group:
        for n in range(3):
            group.start_soon(functools.partial(rt.run, job, 1, key=f"k{n}"))
    assert len(seen) == 6
    assert all(here == [True] * 4 for here in seen.values())


async def test_current_outside_is_a_clear_error(rt: Runtime) -> None:
    """Where no task runs, `current()` says where it works; also after a run, failed or not."""
    with pytest.raises(RuntimeError, match=r"Runtime\.run"):
        current()
    await rt.run(Attempts(ValueError()), key="k", retry=quick())
    with pytest.raises(RuntimeError, match=r"Runtime\.run"):
        current()
    async with rt.open("other"):
        with pytest.raises(RuntimeError, match=r"Runtime\.run"):
            current()


async def test_context_variables_reach_the_task(rt: Runtime) -> None:
    """A task sees its caller's context, and what it sets is there for the next attempt's caller
    as with any awaited function."""
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")
    var.set("caller")

    async def job(cp: Bytes) -> str:
        seen = var.get()
        var.set("task")
        return seen

    assert await rt.run(job, key="k") == "caller"
    assert var.get() == "task"


# Tasks.


@task(key="train/{name}/{steps}", retry=quick(1, on=ValueError))
async def train(cp: Bytes, name: str, steps: int = 3) -> str:
    """Trains."""
    if cp.attempt == 1:
        raise ValueError
    return f"{cp.key} {name} {steps}"


loose: Any = train
"""To type checkers a task's arguments have no defaults."""


async def test_template_makes_the_key(rt: Runtime) -> None:
    """A task's key is made of the call's arguments, defaults included."""
    assert await rt.run(loose, "a") == "train/a/3 a 3"
    assert await rt.run(train, "a", 4) == "train/a/4 a 4"
    assert [key async for key in rt.keys("train/")] == ["train/a/3", "train/a/4"]


async def test_calling_a_task_names_run() -> None:
    """A task is no function: calling it says how to run it."""
    with pytest.raises(TypeError, match=r"await rt\.run\(train, \.\.\.\).*train\.fn"):
        train("a")  # type: ignore[operator]


async def test_task_keeps_what_its_function_is_called(rt: Runtime) -> None:
    """A task has its function's name and docstring; `.fn` is the function itself."""
    assert train.__doc__ == "Trains."
    assert train.__name__ == "train"  # type: ignore[attr-defined]
    assert "train" in repr(train)
    async with rt.open("other") as cp, rt.open("other2") as cp2:
        del cp2
        with pytest.raises(ValueError, match=r"^$"):
            await train.fn(cp, "a", 1)


async def test_attributes_of_the_function_stay_its_own(rt: Runtime) -> None:
    """A function that carries attributes, as decorators leave them, makes a task like any."""

    async def job(cp: Bytes) -> int:
        if cp.attempt == 1:
            raise ValueError
        return cp.attempt

    job.retry = job.key = job.fn = job.coder = object()  # type: ignore[attr-defined]
    assert await rt.run(task(key="k", retry=quick(1))(job)) == 2


async def test_using_changes_a_copy(rt: Runtime) -> None:
    """`.using` gives the task with another template or other retries; the task stays as it was."""
    other = loose.using(key="other/{name}")
    assert await rt.run(other, "a") == "other/a a 3"
    with pytest.raises(ValueError, match="ended the run"):
        await rt.run(loose.using(retry=0), "b")
    assert await rt.run(loose, "b") == "train/b/3 b 3"


async def test_run_overrides_key_and_retry(rt: Runtime) -> None:
    """`key=` of a call is the key as it stands, braces and all; `retry=` replaces the task's."""
    assert await rt.run(loose, "a", key="plain{name}") == "plain{name} a 3"
    with pytest.raises(ValueError, match="ended the run"):
        await rt.run(loose, "a", key="x", retry=0)


async def test_keywords_go_by_partial(rt: Runtime) -> None:
    """Keyword arguments are bound by functools.partial, of a task and of a function."""
    bound: Any = functools.partial(cast(Any, train), steps=9)
    assert await rt.run(bound, "a") == "train/a/9 a 9"
    again: Any = functools.partial(bound, name="b")
    assert await rt.run(again) == "train/b/9 b 9"

    async def plain(cp: Bytes, *, word: str) -> str:
        return word

    assert await rt.run(functools.partial(plain, word="w"), key="k") == "w"
    assert await rt.run(functools.partial(plain, word="w"), key="k") == "w"


async def test_partial_keeps_the_return_type(rt: Runtime) -> None:
    """The stored result of a partial is decoded as its function says."""
    for _ in range(2):
        assert isinstance(await rt.run(functools.partial(as_report, name="n"), key="k"), Report)


async def as_report(cp: Bytes, name: str) -> Report:
    return Report(name, {})


async def test_methods_and_callables_are_functions_too(rt: Runtime) -> None:
    """Whatever is called with the checkpointer and gives an awaitable may be run."""

    class Job:
        async def method(self, cp: Bytes, n: int) -> int:
            return n

        async def __call__(self, cp: Bytes) -> str:
            return cp.key

    assert await rt.run(Job().method, 7, key="a") == 7
    assert await rt.run(Job(), key="b") == "b"
    assert await rt.run(lambda cp: Job().method(cp, 8), key="c") == 8


async def test_plain_function_needs_a_key(rt: Runtime) -> None:
    """Without a key there is nothing to run: the error names the function and `key=`."""

    async def job(cp: Bytes) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match=r"run\(job, \.\.\.\) needs a key="):
        await rt.run(job)
    assert [key async for key in rt.keys("")] == []


@pytest.mark.parametrize("args", [(), (1, 2, 3)])
async def test_arguments_that_do_not_fit(rt: Runtime, args: tuple[Any, ...]) -> None:
    """Arguments that do not fit are an error before anything is claimed."""
    with pytest.raises(TypeError, match="train"):
        await rt.run(train, *args)
    assert [key async for key in rt.keys("")] == []


async def test_template_that_names_no_parameter(rt: Runtime) -> None:
    """A template that names what the function does not take says what it takes."""
    with pytest.raises(ValueError, match=r"\{epoch\}.*name, steps"):
        await rt.run(loose.using(key="{epoch}"), "a")


async def test_argument_that_makes_no_key(rt: Runtime) -> None:
    """An argument that makes the key too long, or gives it a newline, is refused."""
    for name in ("x" * 200, "a\nb"):
        with pytest.raises(ValueError, match="key"):
            await rt.run(loose, name)


async def test_function_that_is_not_async(rt: Runtime) -> None:
    """A function that is not async is an error that says so."""

    def job(cp: Bytes) -> int:
        return 1

    with pytest.raises(TypeError, match=r"task job .* make its function async"):
        await rt.run(job, key="k")  # type: ignore[arg-type]


@dataclass
class Progress:
    step: int


async def test_type_of_a_task(rt: Runtime) -> None:
    """`type=` decodes the states of a task."""

    @task(key="k", type=Progress, retry=quick())
    async def job(cp: Checkpointer[Progress]) -> int:
        progress = await cp.read(Progress(0))
        await cp.write(Progress(progress.step + 1))
        if progress.step < 3:
            raise RecoverableError
        return progress.step

    assert await rt.run(job) == 3
    assert await rt.run(job.using(key="k2")) == 3


async def test_codec_of_a_task(rt: Runtime) -> None:
    """`codec=` encodes and decodes the states of a task."""

    class Hex:
        name = "hex"

        def encode(self, state: int, /) -> bytes:
            return b"%x" % state

        def decode(self, data: bytes, /) -> int:
            return int(data, 16)

    @task(key="k", codec=Hex(), retry=1)
    async def job(cp: Checkpointer[int]) -> int:
        if cp.resumed:
            return await cp.read(0)
        await cp.write(255)
        raise RecoverableError(retry_after=0)

    assert await rt.run(job) == 255
    found = await rt.latest("k")
    assert found is not None
    assert (found.codec, found.payload) == ("hex", b"ff")


async def test_state_of_another_codec_is_not_retried(rt: Runtime) -> None:
    """A state that the task's type does not take ends the run: retrying would not mend it."""
    await rt.run(Attempts(), key="k")

    @task(key="k", type=Progress, retry=quick())
    async def job(cp: Checkpointer[Progress]) -> None:
        await cp.read()

    async with rt.open("k2") as cp:
        await cp.write(b"plain")
    with pytest.raises(CodecError, match="latest"):
        await rt.run(job, key="k2")


async def test_swallowed_errors_do_not_hold_the_loop(store: MemoryStore) -> None:
    """A task that swallows every exception in a tight loop is cancelled when grace is over, and
    others run meanwhile."""
    async with Runtime(store, grace=0.5) as rt:
        swallowed = beats = 0

        async def job(cp: Bytes) -> None:
            nonlocal swallowed
            while True:
                try:
                    await cp.write(b"%d" % swallowed)
                except Exception:
                    swallowed += 1

        async def sibling() -> None:
            nonlocal beats
            while True:
                await anyio.sleep(0.01)
                beats += 1

        async with anyio.create_task_group() as group:
            group.start_soon(sibling)

            async def stop() -> None:
                await true(lambda: beats > 5)
                rt.stop()

            group.start_soon(stop)
            with pytest.raises(StoppedError):
                await rt.run(job, key="k", retry=quick())
            group.cancel_scope.cancel()
        assert swallowed > 0
        assert beats > 5
    found = await stored(store)
    assert (found.status, found.burnt) == ("running", 0)


async def test_run_before_entering_is_an_error(store: MemoryStore) -> None:
    """A runtime that was not entered, or is over, says so."""
    rt = Runtime(store)
    with pytest.raises(aiocheckpoint.ClosedError, match="enter the runtime"):
        await rt.run(Attempts(), key="k")
    async with rt:
        pass
    with pytest.raises(aiocheckpoint.ClosedError, match="closed"):
        await rt.run(Attempts(), key="k")


@asynccontextmanager
async def ticking(group: anyio.abc.TaskGroup) -> AsyncIterator[list[float]]:
    """How long the loop kept others waiting."""
    lags: list[float] = []

    async def tick() -> None:
        while True:
            began = time.monotonic()
            await anyio.sleep(0.005)
            lags.append(time.monotonic() - began)

    group.start_soon(tick)
    yield lags
    group.cancel_scope.cancel()


async def test_run_keeps_the_loop_free(rt: Runtime) -> None:
    """While attempts begin, fail and end, others on the loop go on."""
    async with anyio.create_task_group() as group, ticking(group) as lags:
        await rt.run(Attempts(*[ValueError() for _ in range(20)]), key="k", retry=quick(20))
        await anyio.sleep(0.02)
    assert lags
    assert max(lags, default=math.inf) < 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_scripts_run_tasks(tmp_path: Path) -> None:
    """`aiocheckpoint.run` runs a task with retries on each backend, and again gives its result."""
    source = """
import sys, aiocheckpoint

@aiocheckpoint.task(key="k-{n}", retry=1)
async def job(cp: aiocheckpoint.Checkpointer[bytes], n: int) -> list[int]:
    if cp.attempt == 1:
        raise aiocheckpoint.RecoverableError(retry_after=0)
    print("ran")
    return [n, cp.attempt]

for backend in "asyncio", "uvloop", "trio", "asyncio":
    n = len(backend)
    print(aiocheckpoint.run(job, n, store=sys.argv[1], backend=backend))
"""
    script = run_script(source, f"file:{tmp_path}")
    assert script.stdout.split("\n") == [
        *("ran", "[7, 2]"),
        *("ran", "[6, 2]"),
        *("ran", "[4, 2]"),
        *("[7, 2]", ""),
    ]
