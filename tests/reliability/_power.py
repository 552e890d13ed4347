"""Power cuts at the calls of a program on a real file system, and what is found there after."""

from __future__ import annotations

import functools
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import reduction
from pathlib import Path
from typing import NamedTuple

import pytest

from . import _powered, _random_jobs
from ._crash import Looker, LostError, image_of, record
from ._images import Volume
from ._jobs import Version
from ._powered import Orders
from ._processes import processes
from ._stops import Call, follow
from ._torture import Counts
from .test_crash_points_sqlite import whole

URLS = {"file": "file:{}/store", "sqlite": "sqlite:{}/jobs.db"}
_LATE = 40.0


class Cut(NamedTuple):
    """How far a program had come when the power was cut."""

    calls: int
    """So many it had made, or was about to make."""
    before_end: bool
    safe: int
    """The number of the version that was acknowledged last."""
    staged: int
    """The number of that which was staged last."""
    left: list[str]
    """The files that are there after it, with their sizes."""


@dataclass(frozen=True)
class Plan:
    """A program, and what is wrong with it on purpose."""

    volume: Volume
    scheme: str
    job: str
    spool: bool = False
    left_out: str = ""
    """The place in the stores whose sync is left out, or the call and file of SQLite's."""
    synchronous: str = ""
    """What SQLite is told instead of what the store asks for."""

    @functools.cached_property
    def _looker(self) -> Looker:
        return Looker(
            _powered.job_of(self.job, self.spool),
            URLS[self.scheme],
            after=whole if self.scheme == "sqlite" else _nothing,
            complaints=("falling back", "stored anew", "cannot be", "damaged"),
        )

    def calls(self) -> list[str]:
        """What the program does when nothing happens to it: each call, and of what, if it syncs."""
        with self._ready() as base:
            calls = list[str]()
            self._run(base, None, told=lambda call: calls.append(named(call, base)))
            return calls

    def cut(self, stop: int | None, again: int | None = None) -> Counts:
        """Cut the power at the call of that number, or at the end; look at what is there.

        With `again`, the next program goes on with it, and the power is cut at that call of its.

        Raises:
            LostError: something acknowledged is lost, or something torn returned.
        """
        counts = Counts(cuts=1, second=0, lost=0)
        go_on = (stop or 0) % 4 == 0
        with self._ready() as base:
            versions = versions_of(self.job)
            cut = self._run(base, stop)
            if again is None:
                self._check(base, cut, versions, self._looker.look(base, go_on))
                return counts
            # at a copy, so that the second program is the first to open the key after the boot
            found = self._check(base, cut, versions, self._looker.found(image_of(base)))
            after = f"{_random_jobs.AFTER}{self.job}"
            versions = [found, *((data, found[1]) for data, _ in versions_of(after)[1:])]
            cut = replace(self, job=after)._run(base, again, "the second boot")
            self._check(base, cut, versions, self._looker.look(base, go_on))
            counts["second"] += 1
        return counts

    @contextmanager
    def _ready(self) -> Iterator[Path]:
        """A directory with what must be there, durably, before the program begins."""
        with self.volume.directory() as base:
            self._looker.job.prepare(base)
            self.volume.sync()
            yield base

    def _check(
        self, base: Path, cut: Cut, versions: list[Version], found: Version | Exception
    ) -> Version:
        if isinstance(found, Exception):
            # not the exception: what it refers to would keep the file system busy
            told = "".join(traceback.format_exception(found))
        elif found in versions[cut.safe : cut.staged + 1]:
            return found
        else:
            told = f"{found[0] and found[0][:20]!r}, with files: {found[1] is not None}"
        del found
        raise LostError(f"{self.volume.kind}, {self.scheme}, {self.job}: {cut}: found {told}")

    def _run(
        self,
        base: Path,
        stop: int | None,
        boot: str = "the first boot",
        told: Callable[[Call], None] = lambda call: None,
    ) -> Cut:
        with tempfile.TemporaryDirectory(prefix="power-") as aside:
            orders = Orders(
                *(base, Path(aside), URLS[self.scheme], self.job, self.spool, boot),
                *(self.left_out, self.synchronous),
            )
            progress = orders.progress()
            stopped = False

            def at(call: Call) -> bool | None:
                nonlocal stopped
                if call.number == stop:
                    stopped = True
                    return None
                told(call)
                return not (self.left_out and named(call, base) == self.left_out)

            try:
                with _running(orders) as listener:
                    calls = follow(listener, at)
                    self.volume.cut()
            finally:
                self.volume.boot()
            if orders.failure.exists():
                raise AssertionError(orders.failure.read_text())
            assert stopped or progress.ended
            return Cut(calls, stopped, progress.safe, progress.staged, _files(base))


@contextmanager
def _running(orders: Orders) -> Iterator[int]:
    """Start the program; the descriptor to follow it by. It is killed at the end."""
    here, there = processes().Pipe()
    process = processes().Process(target=_powered.live, args=(orders, there))
    process.start()
    there.close()
    try:
        assert here.poll(_LATE), "the program does not start"
        try:
            listener = reduction.recv_handle(here)
        except EOFError:  # a container may forbid it, or have a listener of its own
            if orders.failure.exists():
                pytest.skip(orders.failure.read_text())
            raise
        try:
            yield listener
        finally:
            process.kill()
            process.join()
            os.close(listener)
    finally:
        process.kill()
        process.join()
        here.close()
        process.close()


def named(call: Call, base: Path) -> str:
    """The call, and of which file, if it syncs one."""
    if call.name not in ("fsync", "fdatasync"):
        return call.name
    path = os.path.relpath(call.path(), base)
    return f"{call.name} {'DIRECTORY' if path == '.' else path}"


@functools.lru_cache(64)
def versions_of(job: str) -> list[Version]:
    """All that a program stages, in turn: the same wherever it runs."""
    return list(record(_random_jobs.named(job), URLS["file"]).versions)


def _nothing(directory: Path) -> None:
    pass


def _files(base: Path) -> list[str]:
    files = (path for path in base.rglob("*") if path.is_file())
    return sorted(f"{path.relative_to(base)}: {path.lstat().st_size}" for path in files)
