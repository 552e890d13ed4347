"""Races for one key: clients in processes and threads, some paused, some killed, and the history
that comes of it."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import redis

from ..postgresql import some_server
from ..servers import missing
from ..stores import redis_server
from ..stores.ceph import ceph
from ..stores.objects import moto
from ._history import NEVER, Handle, History, Look, Refused, State
from ._processes import processes
from ._racer import OP_TIMEOUT, Orders, live
from ._torture import Budget, Case, Counts

STORES = ["memory", "sqlite", "file", "redis", "postgresql", "s3", "s3+obstore"]
CEPH = ["ceph", "ceph+obstore"]
_LATE = 40.0


@contextmanager
def place(kind: str, directory: Path) -> Iterator[str]:
    """The URL of an empty store, which is gone afterwards."""
    if kind == "memory":
        yield "memory:"
    elif kind in ("sqlite", "file"):
        yield f"{kind}:{directory}/store"
    elif kind == "redis":
        prefix = f"races-{secrets.token_hex(6)}"
        with redis_server.client(redis_server.PORT) as client:
            try:
                client.ping()
            except redis.ConnectionError:
                missing("Redis", "install redis-server")
            yield f"redis://127.0.0.1:{redis_server.PORT}?prefix={prefix}"
            for key in client.scan_iter(f"{prefix}*"):
                client.delete(key)
    elif kind == "postgresql":
        with some_server() as server, server.database() as admin:
            yield admin.url
    else:
        name, _, client_of = kind.partition("+")
        service = ceph() if name == "ceph" else moto()
        yield service.url(service.bucket(), "raced", "s3+obstore" if client_of else "s3")


def races(budget: Budget) -> Counts:
    """Race over each store that is here, with a spool and without."""
    absent: set[str] = set()

    def one(case: Case) -> Counts:
        rng = case.random()
        kinds = [*STORES, *CEPH]
        kind = kinds[case.number // 2 % len(kinds)]
        try:
            if kind in absent:
                return Counts(left_out=1)
            return race(kind, f"{case.seed}:{case.number}", spool=case.number % 2 == 0, rng=rng)
        except pytest.skip.Exception as reason:
            absent.add(kind)
            print(f"{budget.part}: {kind} is left out: {reason}", flush=True)
            return Counts(left_out=1)

    return budget.each(one)


def race(
    kind: str,
    seed: str,
    *,
    spool: bool,
    rng: random.Random,
    seconds: float = 2.0,
    processes: int | None = None,
    claims: int = 0,
    flaw: str = "",
) -> Counts:
    """One race for a new key, for so many seconds and until there have been so many claims.

    Raises:
        Refused: what the clients saw is not linearizable, or a fenced one's state was seen.
    """
    processes = 1 if kind == "memory" else processes or rng.randrange(2, 9)
    threads = rng.randrange(2, 9) if processes == 1 else rng.randrange(1, 4 - processes // 3)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(place(kind, directory))
        running = [
            _Racer(Orders(directory, f"p{number}", url, spool, threads, f"{seed}:{number}", flaw))
            for number in range(processes)
        ]
        try:
            for racer in running:
                racer.has_started()
            counts = _trouble(running, rng, seconds, seed)
            _wait_for_claims(directory, claims)
            (directory / "end").touch()
            for racer in running:
                racer.ends()
        finally:
            for racer in running:
                racer.kill()
        history = read_history(directory, counts, spool=spool and kind != "memory")
    try:
        history.check()
    except AssertionError as refused:
        refused.add_note(f"{kind}, spool: {spool}, seed {seed}")
        raise
    return counts


class _Racer:
    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self._process: ForkServerProcess = processes().Process(target=live, args=(orders,))
        self._process.start()

    def has_started(self) -> None:
        until = time.monotonic() + _LATE
        log = self.orders.log(0)
        while not log.exists():
            assert self._process.is_alive(), "a process did not start"
            assert time.monotonic() < until, "a process starts too slowly"
            time.sleep(0.002)

    def signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def ends(self) -> None:
        self._process.join(_LATE)
        assert not self._process.is_alive(), "a process hangs"

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _wait_for_claims(directory: Path, least: int) -> None:
    """On a machine that is slow, the calls of a store that is slow may fail for a good while."""
    until = time.monotonic() + _LATE
    while sum(log.read_bytes().count(b'["claimed"') for log in directory.glob("*.log")) < least:
        assert time.monotonic() < until, f"there were not even {least} claims"
        time.sleep(0.1)


def _trouble(running: list[_Racer], rng: random.Random, seconds: float, seed: str) -> Counts:
    """Pause one after the other for longer than a store call may take; kill, and start others."""
    counts = Counts(races=1, pauses=0, kills=0)
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, rng.uniform(0, 0.3)))
        which = rng.randrange(len(running))
        racer = running[which]
        if len(running) > 1 and rng.random() < 0.3:
            racer.kill()
            counts["kills"] += 1
            old, number = racer.orders, counts["kills"]
            running[which] = _Racer(
                Orders(
                    *(old.directory, f"k{number}", old.url, old.spool, old.threads),
                    *(f"{seed}:k{number}", old.flaw),
                )
            )
            running[which].has_started()
        else:
            racer.signal(signal.SIGSTOP)
            try:
                time.sleep(OP_TIMEOUT * rng.uniform(1.1, 2.5))
            finally:
                racer.signal(signal.SIGCONT)
            counts["pauses"] += 1
    return counts


def read_history(directory: Path, counts: Counts, *, spool: bool) -> History:
    """What all clients have told."""
    handles: dict[str, Handle] = {}
    looks: list[Look] = []
    for log in sorted(directory.glob("*.log")):
        for line in log.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                continue  # killed
            event, *details = json.loads(line)
            counts[_COUNTED.get(event, "")] += 1
            if event == "look":
                invoked, returned, epoch, claim, found = details
                looks.append(Look(invoked, returned, epoch, claim, State(*found)))
            elif event == "claim":
                name, at = details
                handles[name] = Handle(name, at, NEVER)
            elif event == "claimed":
                name, at, epoch, found = details
                handle = handles[name]
                handle.returned, handle.epoch, handle.found = at, epoch, State(*found)
            elif event in ("write", "staged", "flushed"):
                name, at, number = details
                handle = handles[name]
                times = {"write": handle.begun, "staged": handle.staged}.get(event, handle.flushed)
                if number:
                    times.setdefault(number, at)
            elif event == "failed":
                raise Refused(f"{log.name} ended with an error that nobody promises: {details[0]}")
    counts.pop("", None)
    return History(handles.values(), looks, spool=spool)


_COUNTED = {
    "claimed": "claims",
    "write": "writes",
    "flushed": "flushes",
    "look": "looks",
    "fenced": "fenced",
    "unavailable": "unavailable",
}
