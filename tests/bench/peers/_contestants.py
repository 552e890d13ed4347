"""Ways to keep the state of an async loop, each as its own documentation says."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

Save = Callable[[bytes], Awaitable[object]]
Body = Callable[[Save], Awaitable[None]]
_NUMBER = struct.Struct("<Q")


def state(number: int, size: int) -> bytes:
    """A state that says which it is; a different one each time."""
    return _NUMBER.pack(number) + hashlib.blake2b(_NUMBER.pack(number)).digest() * (size // 64)


def number_of(found: bytes | None) -> int:
    """Which state it is; 0 for none."""
    return _NUMBER.unpack(found[:8])[0] if found else 0


@dataclass(frozen=True)
class Contestant:
    """One way. Both functions are given a directory of their own."""

    name: str
    run: Callable[[Path, Body], Awaitable[int | None]]
    """Run the body, give it what keeps a state, and leave properly. How many states were put on
    the disk meanwhile; None if each call puts one there."""
    last: Callable[[Path], Awaitable[bytes | None]] | None
    """What a new process finds; None if only a server would have it."""
    power: str
    """What of a call that has returned outlives the process, and what a power cut."""


# Nothing, and the least that a thread costs.


async def _nothing(place: Path, body: Body) -> int:
    async def save(data: bytes) -> None:
        pass

    await body(save)
    return 0


async def _hop(place: Path, body: Body) -> int:
    async def save(data: bytes) -> None:
        await asyncio.to_thread(len, data)

    await body(save)
    return 0


# aiocheckpoint.


async def _ours(url: str, spool: bool, place: Path, body: Body) -> int:
    from aiocheckpoint import Runtime

    directory = place / "spool" if spool else None
    async with (
        Runtime(url.format(place), spool=directory) as rt,
        rt.open("k", type=bytes) as cp,
    ):
        await body(cp.write)
        await cp.flush()
        statistics = cp.statistics()
        return statistics.stored - statistics.coalesced


async def _our_last(url: str, spool: bool, place: Path) -> bytes | None:
    from aiocheckpoint import Runtime

    directory = place / "spool" if spool else None
    async with Runtime(url.format(place), spool=directory) as rt, rt.open("k", type=bytes) as cp:
        return await cp.read()


def _own(name: str, url: str, *, spool: bool) -> Contestant:
    power = "process: all" if spool else "process: what min_interval is behind"
    return Contestant(
        f"aiocheckpoint {name}, {'with' if spool else 'no'} spool",
        partial(_ours, url, spool),
        partial(_our_last, url, spool),
        f"{power}; power: what min_interval is behind",
    )


# By hand.


async def _aiofiles(place: Path, body: Body) -> None:
    import aiofiles
    import aiofiles.os

    directory = os.open(place, os.O_RDONLY)
    loop = asyncio.get_running_loop()

    async def save(data: bytes) -> None:
        async with aiofiles.open(place / "new", "wb") as file:
            await file.write(data)
            await file.flush()
            await loop.run_in_executor(None, os.fsync, file.fileno())
        await aiofiles.os.replace(place / "new", place / "state")
        await loop.run_in_executor(None, os.fsync, directory)

    try:
        await body(save)
    finally:
        os.close(directory)


async def _file_last(place: Path) -> bytes | None:
    path = place / "state"
    return path.read_bytes() if path.exists() else None


async def _aiosqlite(place: Path, body: Body) -> None:
    import aiosqlite

    async with aiosqlite.connect(place / "db") as connection:
        await connection.execute("PRAGMA journal_mode=WAL")
        await connection.execute("PRAGMA synchronous=FULL")
        await connection.execute("CREATE TABLE states (key TEXT PRIMARY KEY, state BLOB)")

        async def save(data: bytes) -> None:
            await connection.execute("INSERT OR REPLACE INTO states VALUES ('k', ?)", (data,))
            await connection.commit()

        await body(save)


async def _sqlite_last(place: Path) -> bytes | None:
    with closing(sqlite3.connect(place / "db")) as connection:
        row = connection.execute("SELECT state FROM states").fetchone()
        return None if row is None else bytes(row[0])


# Flyte.


async def _flytekit(place: Path, body: Body) -> None:
    from flytekit.core.checkpointer import SyncCheckpoint

    checkpoint = SyncCheckpoint(checkpoint_dest=str(place / "cp"))

    async def save(data: bytes) -> None:
        checkpoint.write(data)  # it has no other form

    await body(save)


async def _flytekit_last(place: Path) -> bytes | None:
    from flytekit.core.checkpointer import SyncCheckpoint

    dest = place / "cp"
    if not dest.exists() or not any(dest.iterdir()):
        return None
    found: bytes | None = SyncCheckpoint(str(place / "next"), str(dest)).read()
    return found


async def _flyte2(place: Path, body: Body) -> None:
    import flyte

    await body(flyte.Checkpoint(checkpoint_dest=str(place / "cp")).save)


async def _flyte2_last(place: Path) -> bytes | None:
    import flyte

    checkpoint = flyte.Checkpoint(str(place / "next"), checkpoint_src=str(place / "cp"))
    path = await checkpoint.load()
    return None if path is None else bytes(path.read_bytes())


# Temporal.


async def _temporal(place: Path, body: Body) -> None:
    """The worker's own path from `activity.heartbeat`, up to where Temporal's core takes over."""
    from temporalio import activity
    from temporalio.bridge.proto.activity_task import ActivityTask
    from temporalio.bridge.worker import PollShutdownError
    from temporalio.common import MetricMeter
    from temporalio.converter import DataConverter
    from temporalio.worker._activity import _ActivityWorker

    done = asyncio.Event()
    failure: list[BaseException] = []

    class Bridge:
        """Takes what the core takes, and throws it away."""

        started = False

        async def poll_activity_task(self) -> Any:
            if not self.started:
                self.started = True
                task = ActivityTask(task_token=b"t")
                task.start.activity_type, task.start.activity_id = "work", "1"
                task.start.workflow_namespace = "default"
                return task
            await done.wait()
            raise PollShutdownError

        def record_activity_heartbeat(self, heartbeat: Any) -> None:
            heartbeat.SerializeToString()

        async def complete_activity_task(self, completion: Any) -> None:
            done.set()

    @activity.defn  # type: ignore[untyped-decorator]
    async def work() -> None:
        async def save(data: bytes) -> None:
            activity.heartbeat(data)

        try:
            await body(save)
        except BaseException as exc:
            failure.append(exc)
            raise

    bridge = Bridge()
    client: Any = type("Client", (), {"namespace": "default"})()
    worker = _ActivityWorker(
        bridge_worker=lambda: bridge,
        task_queue="q",
        activities=[work],
        activity_executor=None,
        shared_state_manager=None,
        data_converter=DataConverter.default,
        interceptors=[],
        metric_meter=MetricMeter.noop,
        client=client,
        encode_headers=False,
    )
    await worker.run()
    if failure:
        raise failure[0]


async def _temporal_testing(place: Path, body: Body) -> None:
    from temporalio import activity
    from temporalio.testing import ActivityEnvironment

    @activity.defn  # type: ignore[untyped-decorator]
    async def work() -> None:
        async def save(data: bytes) -> None:
            activity.heartbeat(data)

        await body(save)

    await ActivityEnvironment().run(work)


# LangGraph.


async def _langgraph(place: Path, body: Body) -> None:
    from langgraph.checkpoint.base import empty_checkpoint
    from langgraph.checkpoint.base.id import uuid6
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    async with AsyncSqliteSaver.from_conn_string(str(place / "db")) as saver:
        config: Any = {"configurable": {"thread_id": "k", "checkpoint_ns": ""}}

        async def save(data: bytes) -> None:
            nonlocal config
            checkpoint = empty_checkpoint()
            checkpoint["id"] = str(uuid6())
            checkpoint["channel_values"] = {"state": data}
            config = await saver.aput(config, checkpoint, {"source": "loop"}, {})

        await body(save)


async def _langgraph_last(place: Path) -> bytes | None:
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    async with AsyncSqliteSaver.from_conn_string(str(place / "db")) as saver:
        found = await saver.aget({"configurable": {"thread_id": "k", "checkpoint_ns": ""}})
        return None if found is None else bytes(found["channel_values"]["state"])


# DBOS.


def _dbos_at(place: Path) -> Any:
    import sys

    sys.modules["sqlite3"] = __import__("pysqlite3")
    from dbos import DBOS

    DBOS(
        config={
            "name": "bench",
            "system_database_url": f"sqlite:///{place}/db",
            "run_admin_server": False,
            "log_level": "ERROR",
        }
    )
    return DBOS


async def _dbos(place: Path, body: Body) -> None:
    dbos = _dbos_at(place)

    @dbos.step()  # type: ignore[untyped-decorator]
    async def save(data: bytes) -> bytes:
        return data

    @dbos.workflow()  # type: ignore[untyped-decorator]
    async def work() -> None:
        await body(save)

    dbos.launch()
    try:
        await work()
    finally:
        dbos.destroy()


async def _dbos_last(place: Path) -> bytes | None:
    """The output of the newest step: recovery runs the workflow again, and replays these."""
    import base64
    import pickle

    with closing(sqlite3.connect(place / "db")) as connection:
        query = "SELECT output FROM operation_outputs ORDER BY function_id DESC LIMIT 1"
        row = connection.execute(query).fetchone()
        return None if row is None else pickle.loads(base64.b64decode(row[0]))


ALL = [
    Contestant("no checkpoint", _nothing, None, "nothing"),
    Contestant("one thread hop", _hop, None, "nothing"),
    _own("sqlite", "sqlite:{}/db", spool=True),
    _own("sqlite", "sqlite:{}/db", spool=False),
    _own("file", "file:{}/store", spool=True),
    _own("file", "file:{}/store", spool=False),
    Contestant("aiosqlite, WAL, FULL", _aiosqlite, _sqlite_last, "process: all; power: all"),
    Contestant("aiofiles, fsync, rename", _aiofiles, _file_last, "process: all; power: all"),
    Contestant(
        "flytekit SyncCheckpoint", _flytekit, _flytekit_last, "process: all; power: no promise"
    ),
    Contestant("flyte.Checkpoint", _flyte2, _flyte2_last, "process: all; power: no promise"),
    Contestant(
        "Temporal heartbeat, worker", _temporal, None, "what its core has sent: throttled, seconds"
    ),
    Contestant("Temporal heartbeat, ActivityEnvironment", _temporal_testing, None, "nothing"),
    Contestant(
        "LangGraph AsyncSqliteSaver", _langgraph, _langgraph_last, "process: all; power: all"
    ),
    Contestant("DBOS step, SQLite", _dbos, _dbos_last, "process: all; power: all"),
]
BY_NAME = {contestant.name: contestant for contestant in ALL}


@asynccontextmanager
async def ticking(lags: list[float], every: float = 0.001) -> AsyncIterator[None]:
    """Note by how many seconds a timer of this loop comes late."""

    async def tick() -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + every
        while True:
            await asyncio.sleep(due - loop.time())
            now = loop.time()
            lags.append(now - due)
            due = now + every

    task = asyncio.create_task(tick())
    try:
        yield
    finally:
        task.cancel()
