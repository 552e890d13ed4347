"""Every point of a recorded program, every state that a power cut there may leave, looked at."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from aiocheckpoint import _mapped, _region
from tests.children import state
from tests.reliability._disk import Disk, Image
from tests.reliability._jobs import Job, Version, Witness, tree_at
from tests.reliability._recorder import Recorder
from tests.reliability._torn import Op
from tests.reliability._torture import Counts


class Recording(NamedTuple):
    """What a program did and staged, from a disk that was durable at the start."""

    start: Image
    ops: Sequence[Op]
    versions: Sequence[Version]

    def without(self, site: str) -> Recording:
        """As if the sync that is called for there had been left out."""
        return self._replace(ops=[op for op in self.ops if op.site != site])

    def end(self) -> Image:
        """What the program saw when it was done."""
        disk = Disk(self.start)
        for op in self.ops:
            disk.apply(op)
        return disk.live()

    def somewhere(self, rng: random.Random) -> list[Image]:
        """Some of what a power cut leaves at some point."""
        disk = Disk(self.start)
        for op in self.ops[: rng.randrange(len(self.ops) + 1)]:
            disk.apply(op)
        return disk.states(rng, 10)[0]

    def sites(self) -> list[str]:
        return sorted({op.site for op in self.ops if op.kind == "sync"})


def record(
    job: Job, url: str, start: Image | None = None, first: Version = (None, None)
) -> Recording:
    """Run a program, its store in a directory in memory, and record what it does there.

    `start` is what an earlier one has left, `first` what its key says.
    """
    with fast_directory() as above:
        base = above / "base"
        put_on_disk(start or {}, base)
        job.prepare(base)
        start = image_of(base)
        recorder = Recorder(base)
        witness = Witness(base, url.format(base), recorder.mark, first)
        with recorder, small_shares():
            asyncio.run(job.run(witness))
        recording = Recording(start, recorder.ops, witness.versions)
        if recording.end() != image_of(base):
            raise AssertionError("the record is not what was done: something went past it")
        return recording


def crash_twice(
    recording: Recording,
    looker: Looker,
    again: Callable[[Image, Version], Recording],
    rng: random.Random,
    limit: int,
) -> Counts:
    """Cut the power somewhere, go on with the key on what is left, and cut it everywhere there.

    `again` records that, given what is left and what the key says there.
    """
    image = rng.choice(recording.somewhere(rng))
    found = looker.found(image)
    if isinstance(found, Exception):
        raise found
    return crash(again(image, found), looker, rng, limit)


class LostError(AssertionError):
    """After a power cut there is something else than there must be."""


@contextmanager
def fast_directory() -> Iterator[Path]:
    """A directory in memory, where there is such a thing: what is on a disk is up to the model."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="crash-", dir=base)).resolve()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def image_of(directory: Path) -> Image:
    image: Image = {}
    for path in directory.rglob("*"):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            image[name] = os.readlink(path)
        else:
            image[name] = None if path.is_dir() else path.read_bytes()
    return image


def put_on_disk(image: Image, directory: Path) -> None:
    directory.mkdir()
    for name, what in sorted(image.items()):
        path = directory / name
        if what is None:
            path.mkdir(mode=0o700)
        elif isinstance(what, str):
            path.symlink_to(what)
        else:
            path.write_bytes(what)


class _Complaints(logging.Handler):
    """Keeps the log lines that speak of damage: a power cut is no reason for any."""

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self._words = words

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if any(word in line for word in self._words):
            self.lines.append(line)


@dataclass
class Looker:
    """Opens a key on what is left of a disk, as the next program after the boot does.

    The same disk is looked at once: what is there does not depend on how it came about.
    """

    job: Job
    url: str
    """Of the store, `{}` being where the disk is."""
    before: Callable[[Path], None] = lambda directory: None
    after: Callable[[Path], None] = lambda directory: None
    """More to do with the disk before the package opens the key, and after."""
    complaints: Sequence[str] = ("falling back", "stored anew", "cannot be")
    """What the log must not say."""
    counts: Counts = field(default_factory=Counts)
    _seen: dict[bytes, Version | Exception] = field(default_factory=dict)

    def found(self, image: Image) -> Version | Exception:
        digest = _digest(image)
        if digest not in self._seen:
            self.counts["disks"] += 1
            with fast_directory() as above:
                put_on_disk(image, above / "disk")
                self._seen[digest] = self.look(above / "disk", go_on=digest[0] % 4 == 0)
        return self._seen[digest]

    def look(self, directory: Path, go_on: bool) -> Version | Exception:
        """What the key says there; and whether it takes a new state, if it is to `go_on`."""
        complaints = _Complaints(self.complaints)
        log = logging.getLogger("aiocheckpoint")
        log.addHandler(complaints)
        try:
            with another_boot():
                self.before(directory)
                free = not os.path.lexists(directory / "restored")
                found = asyncio.run(self._read(directory, free, go_on))
                self.after(directory)
            if complaints.lines:
                raise LostError(f"the log speaks of damage: {complaints.lines}")
        except Exception as exc:
            return exc
        finally:
            log.removeHandler(complaints)
        return found

    async def _read(self, directory: Path, free: bool, go_on: bool) -> Version:
        async with self.job.runtime(self.url.format(directory)) as rt:
            listed = [key async for key in rt.keys()]  # noqa: SIM118 (of a runtime)
            before = await rt.latest(self.job.key)
            if (before is not None) != (self.job.key in listed):
                raise LostError(f"the key is {before}, and listed are {listed}")
            async with rt.open(self.job.key) as cp:
                data: bytes | None = await cp.read(default=None)
                target = directory / ("restored" if free else "restored again")
                restored = await cp.restore(target)
                if any(directory.glob(".restoring-*")) and free and restored:
                    raise LostError("what an earlier restore has left is still there")
                if go_on:
                    await cp.write(state(1000))
        if not go_on:
            return data, None if restored is None else tree_at(restored)
        async with self.job.runtime(self.url.format(directory)) as rt:
            latest = await rt.latest(self.job.key)
            if latest is None or latest.payload != state(1000):
                raise LostError("the key cannot be gone on with")
        return data, None if restored is None else tree_at(restored)


@contextmanager
def another_boot() -> Iterator[None]:
    """The machine was started again since the recording."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_region, "boot_id", lambda: "the next boot")
        yield


@contextmanager
def small_shares() -> Iterator[None]:
    """Regions share smaller files, which take less time to look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_mapped, "_SHARED", _mapped.LARGEST_SEAT)
        yield


def crash(recording: Recording, looker: Looker, rng: random.Random, limit: int) -> Counts:
    """Cut the power before every sync and at the end: at each up to so many states.

    Those are all points: what a power cut between two syncs leaves, one that comes right before
    the second may leave as well, with all lost that was done in between.

    Raises:
        LostError: in one of them something acknowledged is lost, or something torn returned.
    """
    disk = Disk(recording.start)
    acknowledged = staged = 0
    counts = Counts(points=0, exhaustive=0, states=0, lost=0)
    for number, op in enumerate([*recording.ops, _END]):
        if op.kind in ("sync", "end"):
            states, exhaustive = disk.states(rng, limit)
            counts["points"] += 1
            counts["exhaustive"] += exhaustive
            counts["states"] += len(states)
            allowed = recording.versions[acknowledged : staged + 1]
            for image in states:
                found = looker.found(image)
                if found not in allowed:
                    raise LostError(
                        f"before operation {number}, {op.kind} {op.path}, with {acknowledged}"
                        f" acknowledged of {staged} staged, the power cut left {_sizes(image)}:"
                        f" found {_short(found)}"
                    ) from (found if isinstance(found, Exception) else None)
        elif op.kind == "staged":
            staged = op.at
        elif op.kind == "acknowledged":
            acknowledged = op.at
        if op is not _END:
            disk.apply(op)
    return counts


_END = Op("end")


def _digest(image: Image) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name, what in sorted(image.items()):
        data = what.encode() if isinstance(what, str) else what or b""
        digest.update(f"{name}\0{type(what).__name__}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.digest()


def _sizes(image: Image) -> dict[str, int | None]:
    return {name: None if what is None else len(what) for name, what in sorted(image.items())}


def _short(found: Version | Exception) -> str:
    if isinstance(found, Exception):
        return f"{type(found).__name__}: {found}"
    data, tree = found
    return f"{data and data[:20]!r} with {tree and {k: len(v) for k, v in tree.items()}}"
