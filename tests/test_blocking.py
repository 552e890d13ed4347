"""The synchronous face: the same handle, the same promises, blocking instead of awaiting."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

import aiocheckpoint
from aiocheckpoint import (
    ClosedError,
    CodecError,
    CorruptCheckpointError,
    FencedError,
    FlushTimeoutError,
    Runtime,
    StoppedError,
    blocking,
)
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import FaultyStore

from .support import Script, files, io_threads_end, poll, run_script, stored, stored_state, true
from .trees import make, seen

DEADLINE = 20


@dataclass
class Progress:
    step: int = 0


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store in memory; no thread is left when the test has ended."""
    yield MemoryStore()
    assert io_threads_end()


def read_back(url: Path | str | aiocheckpoint.Store, key: str = "k") -> bytes | None:
    """What the next program reads."""
    with blocking.open(url, key) as cp:
        return cp.read()


@contextlib.contextmanager
def down_in_the_end(faulty: FaultyStore, key: str = "k") -> Iterator[blocking.Checkpointer[bytes]]:
    """A handle whose store goes down once it is open."""
    with blocking.open(faulty, key, flush_timeout=0.2) as cp:
        faulty.down = True
        yield cp


# Reading and writing.


def test_what_is_written_is_read_here_and_after(store: MemoryStore) -> None:
    """read() gives the newest state, staged or stored, in this block and in the next."""
    with blocking.open(store, "k", type=Progress) as cp:
        assert cp.read() is None
        assert cp.read(default=Progress(7)) == Progress(7)
        assert (cp.key, cp.epoch, cp.attempt, cp.resumed) == ("k", 1, 1, False)
        assert cp.due
        assert not cp.stopping
        assert cp.write(Progress(1)) == 1
        assert cp.write(Progress(2)) == 2
        assert cp.read() == Progress(2)
    with blocking.open(store, "k", type=Progress) as cp:
        assert (cp.epoch, cp.attempt, cp.resumed) == (2, 2, True)
        assert cp.read() == Progress(2)


def test_flush_returns_when_all_is_stored(store: MemoryStore) -> None:
    """After flush() the store has the state, whatever min_interval is."""
    with blocking.open(store, "k", min_interval=3600) as cp:
        for n in range(3):
            cp.write(b"%d" % n)
            cp.flush()
            assert stored_state(store) == b"%d" % n
        found = cp.latest()
        assert found is not None
        assert (found.seq, found.payload) == (3, b"2")
        assert cp.statistics().stored == 3


def test_states_are_stored_behind(store: MemoryStore) -> None:
    """What is written is stored without anybody waiting for it."""
    with blocking.open(store, "k", min_interval=0) as cp:
        cp.write(b"behind")
        poll(lambda: stored_state(store) == b"behind")


def test_delete_closes_the_handle_and_leaves_nothing(store: MemoryStore) -> None:
    """After delete() the key is gone and the handle is closed."""
    with blocking.open(store, "k") as cp:
        cp.write(b"x")
        cp.delete()
        with pytest.raises(ClosedError, match="deleted"):
            cp.write(b"y")
    assert stored(store) is None


def test_open_forwards_its_options(tmp_path: Path) -> None:
    """The options mean what they mean in aiocheckpoint.open, and wrong ones are refused alike."""
    url, spool = f"file:{tmp_path}/jobs", tmp_path / "spool"

    def generations() -> set[bytes]:
        kept = [path.read_bytes() for path in files(tmp_path / "jobs")]
        return {b"%d" % n for n in range(6) if any(b"state-%d" % n in data for data in kept)}

    with blocking.open(url, "k", keep=3, min_interval=0, spool=spool) as cp:
        for n in range(6):
            cp.write(b"state-%d" % n)
            cp.flush()
        assert files(spool) != []
        assert {b"3", b"4", b"5"} <= generations()
    with pytest.raises(ValueError, match="keep=0"):
        blocking.open(url, "k", keep=0)
    with pytest.raises(ValueError, match="key"):
        blocking.open(url, "")


# Leaving.


class Failed(Exception):
    pass


@pytest.mark.parametrize("error", [Failed, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_stores_the_last_state(
    store: MemoryStore, error: type[BaseException]
) -> None:
    """An exception leaves the block as it is, with the last state stored."""
    with pytest.raises(error), blocking.open(store, "k", min_interval=3600) as cp:
        for n in range(5):
            cp.write(b"%d" % n)
        raise error
    assert stored(store) == (5, b"4")


def test_a_closed_generator_stores_the_last_state(store: MemoryStore) -> None:
    """Closing a generator that is inside a block leaves the block."""

    def steps() -> Iterator[int]:
        with blocking.open(store, "k", min_interval=3600) as cp:
            for n in range(10):
                cp.write(b"%d" % n)
                yield n

    generator = steps()
    assert [next(generator), next(generator)] == [0, 1]
    generator.close()  # type: ignore[attr-defined]
    assert stored(store) == (2, b"1")


def test_a_generator_closed_on_an_io_thread_does_not_wait_for_itself(store: MemoryStore) -> None:
    """Where the garbage collector closes a generator on an I/O thread, nobody waits there, and
    the last state is stored all the same."""

    def steps() -> Iterator[int]:
        with blocking.open(store, "k", min_interval=3600) as cp:
            cp.write(b"kept")
            held.append(cp)
            yield 1

    held: list[blocking.Checkpointer[bytes]] = []
    generator = steps()
    next(generator)
    closed = threading.Event()

    def close() -> None:
        generator.close()  # type: ignore[attr-defined]
        closed.set()

    held[0]._cp._io.post(close)
    assert closed.wait(DEADLINE)
    assert io_threads_end()
    assert stored_state(store) == b"kept"


def test_leaving_while_the_store_is_down(store: MemoryStore) -> None:
    """Past flush_timeout leaving raises FlushTimeoutError; an exception in flight gets a note."""
    faulty = FaultyStore(store)
    with pytest.raises(FlushTimeoutError) as caught, down_in_the_end(faulty) as cp:
        cp.write(b"late")
    assert (caught.value.staged, caught.value.stored) == (1, 0)
    faulty.down = False
    with pytest.raises(Failed) as failed, down_in_the_end(faulty) as cp:
        cp.write(b"late")
        raise Failed
    assert "not stored in time" in failed.value.__notes__[0]


def test_flush_that_cannot_be_done_in_time(store: MemoryStore) -> None:
    """flush() raises FlushTimeoutError, and the state stays staged for the next try."""
    faulty = FaultyStore(store)
    with blocking.open(faulty, "k", flush_timeout=0.2, min_interval=0) as cp:
        faulty.down = True
        cp.write(b"late")
        with pytest.raises(FlushTimeoutError):
            cp.flush()
        faulty.down = False
        cp.flush()
        assert stored_state(store) == b"late"


def test_a_closed_handle_says_so(store: MemoryStore) -> None:
    """After its block every method of a handle raises ClosedError."""
    with blocking.open(store, "k") as cp:
        cp.write(b"x")
    for use in (lambda: cp.write(b"y"), cp.read, cp.flush, cp.latest, cp.delete):
        with pytest.raises(ClosedError):
            use()
    assert stored_state(store) == b"x"


def test_a_block_is_entered_once(store: MemoryStore) -> None:
    """What open() gives cannot be entered again."""
    opening = blocking.open(store, "k")
    with opening:
        pass
    with pytest.raises(ClosedError, match="entered once"), opening:
        pass


# Errors.


def test_write_after_a_takeover_is_fenced(store: MemoryStore) -> None:
    """A newer claim of the key fences the older handle, whose leaving tells it once more."""
    with pytest.raises(FencedError), blocking.open(store, "k", min_interval=0) as old:
        old.write(b"old")
        with blocking.open(store, "k") as new:
            assert new.read() == b"old"
            new.write(b"new")
        with contextlib.suppress(FencedError):
            old.write(b"zombie")
            old.flush()
        with pytest.raises(FencedError):
            old.write(b"zombie")
    assert stored_state(store) == b"new"


def test_bad_states_are_refused(store: MemoryStore) -> None:
    """A state that is None or cannot be encoded is a CodecError; nothing is staged."""
    with blocking.open(store, "k", type=Progress) as cp:
        cp.write(Progress(1))
        for bad in (None, object()):
            with pytest.raises(CodecError):
                cp.write(bad)  # type: ignore[arg-type]
        assert cp.read() == Progress(1)


def test_open_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """An open() that raises has ended its thread, and says what is wrong."""
    with blocking.open(f"file:{tmp_path}/jobs", "k") as cp:
        cp.write(b"x")
    for path in files(tmp_path):
        path.write_bytes(b"damage")
    with pytest.raises(CorruptCheckpointError), blocking.open(f"file:{tmp_path}/jobs", "k"):
        pass
    with pytest.raises(ValueError, match="nosuch"), blocking.open("nosuch:jobs", "k"):
        pass
    assert io_threads_end()


def test_methods_called_on_an_io_thread_do_not_wait_for_themselves(store: MemoryStore) -> None:
    """Called on an I/O thread, a method that waits raises instead of hanging."""
    raised: list[BaseException] = []
    done = threading.Event()

    def use() -> None:
        try:
            cp.flush()
        except BaseException as exc:
            raised.append(exc)
        done.set()

    with blocking.open(store, "k") as cp:
        cp._cp._io.post(use)
        assert done.wait(DEADLINE)
    assert isinstance(raised[0], RuntimeError)


# Threads.


def test_many_threads_write_at_once(store: MemoryStore) -> None:
    """Any thread may write: no seq is given twice, and the highest is what is stored."""
    count, each = 8, 500
    gate = threading.Barrier(count)
    written: list[dict[int, bytes]] = [{} for _ in range(count)]

    def work(number: int) -> None:
        gate.wait()
        for n in range(each):
            state = b"%d.%d" % (number, n)
            written[number][cp.write(state)] = state

    with blocking.open(store, "k", min_interval=0) as cp:
        threads = [threading.Thread(target=work, args=[n]) for n in range(count)]
        for thread in threads:
            thread.start()
        cp.flush()
        for thread in threads:
            thread.join()
        together = {seq: state for one in written for seq, state in one.items()}
        assert sorted(together) == list(range(1, count * each + 1))
        assert cp.read() == together[count * each]
    assert stored(store) == (count * each, together[count * each])


def test_threads_that_write_while_the_block_is_left(store: MemoryStore) -> None:
    """A write that returned is stored, one that came too late raises ClosedError."""
    written: list[int] = []
    gate = threading.Barrier(5)

    def work() -> None:
        gate.wait()
        with contextlib.suppress(ClosedError):
            while True:
                written.append(cp.write(b"x"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    with blocking.open(store, "k", min_interval=0) as cp:
        for thread in threads:
            thread.start()
        gate.wait()
        poll(lambda: len(written) > 100)
    for thread in threads:
        thread.join()
    assert stored(store) == (max(written), b"x")


def test_threads_that_flush_and_look_at_once(store: MemoryStore) -> None:
    """flush(), read(), latest() and statistics() may be called from several threads at once."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                seq = cp.write(b"x")
                cp.flush()
                found = cp.latest()
                assert found is not None
                assert found.seq >= seq
                assert cp.read() == b"x"
                assert cp.statistics().stored >= seq
        except BaseException as exc:
            errors.append(exc)

    with blocking.open(store, "k", min_interval=0) as cp:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


# Inside event loops.


@pytest.mark.anyio
async def test_a_block_inside_a_running_loop(store: MemoryStore) -> None:
    """It works where a loop is running, too, on asyncio and trio; only it blocks it."""
    with blocking.open(store, "k", min_interval=3600) as cp:
        cp.write(b"1")
        cp.flush()
        assert stored_state(store) == b"1"
        await anyio.lowlevel.checkpoint()
        cp.write(b"2")
    assert stored_state(store) == b"2"


@pytest.mark.anyio
async def test_callbacks_of_a_worker_thread_use_an_async_handle(store: MemoryStore) -> None:
    """blocking.Checkpointer(cp) is the handle of an async block, for callbacks in other threads
    and on the loop itself."""

    def fit(callback: blocking.Checkpointer[bytes]) -> None:
        start = int(callback.read(default=b"0"))
        for n in range(start, start + 3):
            callback.write(b"%d" % (n + 1))
            callback.flush()
            assert stored_state(store) == b"%d" % (n + 1)

    async with aiocheckpoint.open(store, "k", min_interval=3600) as cp:
        await cp.write(b"5")
        face = blocking.Checkpointer(cp)
        await anyio.to_thread.run_sync(fit, face)
        assert await cp.read() == b"8"
        fit(face)
        assert await cp.read() == b"11"
    with pytest.raises(ClosedError):
        face.write(b"late")


@pytest.mark.anyio
async def test_a_stop_ends_the_callbacks_of_a_run(store: MemoryStore) -> None:
    """When the runtime stops, the next blocking write of an attempt stages, and ends it."""
    writing = threading.Event()

    def fit(cp: blocking.Checkpointer[bytes]) -> None:
        while True:
            cp.write(b"%d" % (int(cp.read(default=b"0")) + 1))
            writing.set()

    async def job(cp: aiocheckpoint.Checkpointer[bytes]) -> None:
        await anyio.to_thread.run_sync(fit, blocking.Checkpointer(cp))

    async with Runtime(store) as rt:
        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as group:

                async def stop() -> None:
                    await true(writing.is_set)
                    rt.stop()

                group.start_soon(stop)
                with pytest.raises(StoppedError):
                    await rt.run(job, key="k")
    found = stored(store)
    assert found is not None
    assert found[1] == b"%d" % found[0]


# Processes that end.

PRELUDE = """
import os, signal, sys, threading, time, warnings
import aiocheckpoint
from aiocheckpoint import blocking
from aiocheckpoint.stores.sqlite import SqliteStore
from aiocheckpoint.testing import FaultyStore, SlowStore

store = SlowStore(SqliteStore(sys.argv[1]), 0)

def stage(cp):
    store.seconds = 0.5
    for n in range(5):
        cp.write(b"%d" % n)
"""
LAST = b"4"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def in_database(database: Path) -> bytes | None:
    """What the store itself holds, the spool left aside."""
    spool = database.parent / "no-spool"
    with blocking.open(database, "k", spool=spool) as cp:
        return cp.read()


@pytest.mark.parametrize("wait", ["signal.pause()", "while True: pass", "cp.flush()"])
def test_ctrl_c_stores_the_last_state(database: Path, wait: str) -> None:
    """Ctrl-C in a block, wherever it is, ends the program by KeyboardInterrupt, with all stored."""
    source = f"""
with blocking.open(store, "k") as cp:
    stage(cp)
    print("ready", flush=True)
    {wait}
    signal.pause()
"""
    script = Script(PRELUDE + source, database)
    assert script.line() == "ready"
    script.signal(signal.SIGINT)
    assert script.end() == -signal.SIGINT
    assert "KeyboardInterrupt" in script.stderr
    assert in_database(database) == LAST


def test_ctrl_c_while_leaving_leaves_at_once(database: Path) -> None:
    """Ctrl-C while the exit waits ends the wait, not the storing: the program goes on, and its end
    waits for the flush."""
    source = """
faulty = FaultyStore(store)
gate = faulty.held()
def interrupt():
    while not cp._cp._held.left:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
try:
    with blocking.open(faulty, "k") as cp:
        gate.__enter__()
        threading.Thread(target=interrupt).start()
        cp.write(b"last")
except KeyboardInterrupt:
    print("interrupted", cp.statistics().stored)
threading.Timer(0.2, gate.__exit__, [None, None, None]).start()
"""
    script = run_script(PRELUDE + source, database)
    assert script.stdout.split() == ["interrupted", "0"]
    assert script.stderr == ""
    assert in_database(database) == b"last"


def test_ctrl_c_while_opening_with_the_store_down(database: Path) -> None:
    """An open() that waits for its store is ended by Ctrl-C, and leaves no thread."""
    source = """
faulty = FaultyStore(store)
faulty.down = True
def interrupt():
    while not faulty.calls["load"]:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    with blocking.open(faulty, "k"):
        print("opened")
except KeyboardInterrupt:
    print("interrupted", [t.name for t in threading.enumerate() if "aiocheck" in t.name])
"""
    assert run_script(PRELUDE + source, database).stdout.split() == ["interrupted", "[]"]


def test_sigkill_loses_nothing(database: Path) -> None:
    """After SIGKILL the next open() takes the last staged state from the spool."""
    source = """
with blocking.open("sqlite:" + sys.argv[1], "k", min_interval=3600) as cp:
    for n in range(1000):
        cp.write(b"%d" % n)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    script = Script(PRELUDE + source, database)
    assert script.end() == -signal.SIGKILL
    assert read_back(database) == b"999"


def test_sigterm_with_a_handler_that_exits(database: Path) -> None:
    """A handler that raises SystemExit leaves the block as any exception does."""
    source = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with blocking.open(store, "k") as cp:
    stage(cp)
    print("ready", flush=True)
    while True: pass
"""
    script = Script(PRELUDE + source, database)
    assert script.line() == "ready"
    script.signal(signal.SIGTERM)
    assert script.end() == 143
    assert in_database(database) == LAST


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("use()", id="end"),
        pytest.param("use(); sys.exit(0)", id="sys.exit"),
        pytest.param("threading.Thread(target=use).start(); opened.wait()", id="thread"),
    ],
)
def test_interpreter_exit_with_a_handle_open(database: Path, source: str) -> None:
    """A program that enters a block and never leaves it loses nothing."""
    use = """
kept = []
opened = threading.Event()
def use():
    kept.append(blocking.open(store, "k"))
    cp = kept[0].__enter__()
    opened.set()
    stage(cp)
"""
    script = run_script(PRELUDE + use + source, database)
    assert script.stderr == ""
    assert in_database(database) == LAST


def test_a_forked_child_that_leaves_the_block_disturbs_nothing(database: Path) -> None:
    """A forked child's methods raise ClosedError; it leaves its parent's block without waiting."""
    source = """
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
with blocking.open("sqlite:" + sys.argv[1], "k", min_interval=3600) as cp:
    cp.write(b"1")
    cp.flush()
    cp.write(b"2")
    child = os.fork()
    if not child:
        for use in (lambda: cp.write(b"no"), cp.flush, cp.latest, cp.delete):
            try:
                use()
            except aiocheckpoint.ClosedError as exc:
                assert "process" in str(exc), exc
            else:
                os._exit(3)
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert cp.statistics().spooled
    cp.write(b"3")
"""
    run_script(PRELUDE + source, database)
    assert in_database(database) == b"3"


def test_it_is_there_after_importing_the_package() -> None:
    """`aiocheckpoint.blocking` needs no import of its own, and starts nothing."""
    run_script(
        """
import threading
import aiocheckpoint
assert aiocheckpoint.blocking.open
assert threading.active_count() == 1
"""
    )


def test_files_are_saved_and_restored(tmp_path: Path) -> None:
    """`save` and `restore` are those of the async handle, from any thread, moved or not."""
    url = f"sqlite:{tmp_path}/s.db"
    source = make(tmp_path / "source", a=b"a", b__c=b"c")
    before = seen(source)
    with blocking.open(url, "k") as cp:
        assert cp.restore(tmp_path / "out") is None
        thread = threading.Thread(target=lambda: cp.save(source, state=b"1"))
        thread.start()
        thread.join()
        cp.write(b"2")
        assert cp.restore(tmp_path / "out") == tmp_path / "out"
    with blocking.open(url, "k") as cp:
        assert cp.read() == b"2"
        cp.save(tmp_path / "out", move=True)
        assert not (tmp_path / "out").exists()
        with pytest.raises(FileNotFoundError):
            cp.save(tmp_path / "out")
    with blocking.open(url, "k") as cp:
        assert cp.read() == b"2"
        cp.restore(tmp_path / "again")
    assert seen(tmp_path / "again") == before


async def test_a_wrapped_handle_saves_on_its_own_loop(tmp_path: Path) -> None:
    """From a worker thread the save of an async handle is refused, with the way to do it."""
    source = make(tmp_path / "source", a=b"a")
    async with aiocheckpoint.open("memory:", "k") as cp:

        def callback() -> None:
            with pytest.raises(RuntimeError, match=r"anyio\.from_thread\.run"):
                blocking.Checkpointer(cp).save(source)
            anyio.from_thread.run(cp.save, source)
            assert blocking.Checkpointer(cp).restore(tmp_path / "out")

        await anyio.to_thread.run_sync(callback)
    assert seen(tmp_path / "out") == seen(source)
