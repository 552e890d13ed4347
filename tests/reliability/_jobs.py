"""Programs for a power cut to hit: what they stage, and what they are told is stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from aiocheckpoint import Checkpointer, Keyring, Runtime
from tests.children import state

Tree = dict[str, bytes]
Version = tuple[bytes | None, Tree | None]
"""All that a key can say: its state and its files; None for none."""

Handle = Checkpointer[bytes]
LONG = "long/" * 30
"""A key that its directory's name does not say: `file:` keeps it in a file."""
MIB = 1 << 20
LARGE = MIB + 10
"""Of a state that is a blob of its own."""


class Witness:
    """Keeps what a program has staged so far, and marks that, and what was acknowledged."""

    def __init__(
        self,
        base: Path,
        url: str,
        mark: Callable[[str, int], None],
        first: Version = (None, None),
    ) -> None:
        """`first` is what is there already."""
        self.base = base
        self.url = url
        self.versions = [first]
        self._mark = mark

    def stage(self, data: bytes | None, tree: Tree | None) -> None:
        """Say what comes next, before it is done."""
        self.versions.append((data, tree))
        self._mark("staged", len(self.versions) - 1)

    def acknowledge(self) -> None:
        """All that was staged is stored, as far as the program was told."""
        self._mark("acknowledged", len(self.versions) - 1)

    async def write(self, cp: Handle, number: int, size: int = 60, *, flush: bool = True) -> None:
        data = state(number, size)
        self.stage(data, self.versions[-1][1])
        await cp.write(data)
        if flush:
            await cp.flush()
            self.acknowledge()

    async def save(
        self, cp: Handle, number: int, tree: Tree, name: str, *, move: bool = False
    ) -> None:
        data = state(number)
        self.stage(data, tree)
        await cp.save(self.base / name, state=data, move=move)
        if not move:
            self.acknowledge()


Program = Callable[[Witness, Runtime], Awaitable[None]]


@dataclass(frozen=True)
class Job:
    """A program, and how its key is opened; `trees` are there, durably, before it begins."""

    program: Program
    key: str = "k"
    keep: int = 1
    trees: tuple[tuple[str, Tree], ...] = ()
    spool: Literal["auto"] | None = None
    encryption: Keyring | None = None

    def prepare(self, base: Path) -> None:
        for name, tree in self.trees:
            make_tree(base / name, tree)

    async def run(self, witness: Witness) -> None:
        async with self.runtime(witness.url) as rt:
            await self.program(witness, rt)

    def runtime(self, url: str) -> Runtime:
        return Runtime(
            url, keep=self.keep, min_interval=0, spool=self.spool, encryption=self.encryption
        )


def make_tree(path: Path, tree: Tree) -> None:
    for name, data in tree.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


def tree_at(path: Path) -> Tree:
    if path.is_file():
        return {"": path.read_bytes()}
    found = (each for each in path.rglob("*") if each.is_file())
    return {str(each.relative_to(path)): each.read_bytes() for each in found}


async def _small(witness: Witness, rt: Runtime) -> None:
    """States within records, flushed one by one; two at once; then the block is left."""
    async with rt.open("k") as cp:
        for number in (1, 2, 3):
            await witness.write(cp, number)
        await witness.write(cp, 4, flush=False)
        await witness.write(cp, 5)
        await witness.write(cp, 6, flush=False)
    witness.acknowledge()


async def _generations(witness: Witness, rt: Runtime) -> None:
    """Each record once more as a blob, and the old ones collected."""
    async with rt.open(LONG) as cp:
        for number in range(1, 6):
            await witness.write(cp, number, 700)
    witness.acknowledge()


async def _large(witness: Witness, rt: Runtime) -> None:
    """States that are blobs, and then a small one."""
    async with rt.open("k") as cp:
        await witness.write(cp, 1, 2 * MIB)
        await witness.write(cp, 2, LARGE)
        await witness.write(cp, 3)
    witness.acknowledge()


async def _sealed(witness: Witness, rt: Runtime) -> None:
    """A state that is sealed, and stored, in several chunks."""
    async with rt.open("k") as cp:
        await witness.write(cp, 1, 3 * MIB)
        await witness.write(cp, 2)
    witness.acknowledge()


async def _checkpointed(witness: Witness, rt: Runtime) -> None:
    """States that fill SQLite's log, so that it is copied into the database and begun anew; then
    one that is a blob, whose commit does not make the log longer."""
    async with rt.open("k") as cp:
        for number in range(1, 6):
            await witness.write(cp, number, 900_000)
        for number in range(6, 9):
            await witness.write(cp, number)
        await witness.write(cp, 9, 3 * MIB)
    witness.acknowledge()


FIRST: Tree = {"config": b"first", "deep/weights": state(1, 300_000)}
SECOND: Tree = {"config": b"second", "deep/weights": state(1, 300_000), "new": b""}


async def _files(witness: Witness, rt: Runtime) -> None:
    """Trees are copied, one upon another; one is restored; a state comes after."""
    async with rt.open("k") as cp:
        await witness.save(cp, 1, FIRST, "first")
        await witness.save(cp, 2, SECOND, "second")
        await cp.restore(witness.base / "restored")
        await witness.write(cp, 3)
    witness.acknowledge()


async def _moved(witness: Witness, rt: Runtime) -> None:
    """Trees are taken by rename, one upon another."""
    async with rt.open("k") as cp:
        await witness.save(cp, 1, FIRST, "first", move=True)
        await cp.flush()
        witness.acknowledge()
        await witness.save(cp, 2, SECOND, "second", move=True)
        await witness.write(cp, 3)
    witness.acknowledge()


async def _deleted(witness: Witness, rt: Runtime) -> None:
    """A key is deleted and made anew, with a large state before and after."""
    for number in (1, 3):
        async with rt.open(LONG) as cp:
            await witness.write(cp, number, LARGE)
            await witness.write(cp, number + 1)
            if number == 1:
                witness.stage(None, None)
                await cp.delete()
                witness.acknowledge()
    witness.acknowledge()


async def _claimed(witness: Witness, rt: Runtime) -> None:
    """One attempt after another, with files, each of which claims the key."""
    async with rt.open("k") as cp:
        await witness.save(cp, 1, FIRST, "first")
    witness.acknowledge()
    for number in (2, 3):
        async with rt.open("k") as cp:
            await witness.write(cp, number, flush=False)
        witness.acknowledge()


def going_on(job: Job) -> Job:
    """What is done with its key after the power cut, when the power may be cut again."""

    async def go_on(witness: Witness, rt: Runtime) -> None:
        async with rt.open(job.key) as cp:
            await witness.write(cp, 101)
            await witness.write(cp, 102, LARGE)
            await witness.write(cp, 103)
        witness.acknowledge()

    return replace(job, program=go_on, trees=())


JOBS: dict[str, Job] = {
    "small": Job(_small),
    "small, spooled": Job(_small, spool="auto"),
    "generations": Job(_generations, LONG, keep=2),
    "large": Job(_large),
    "large kept": Job(_large, keep=2),
    "checkpointed": Job(_checkpointed),
    "checkpointed, encrypted": Job(_checkpointed, encryption=Keyring({"key": bytes(range(32))})),
    "encrypted": Job(_sealed, encryption=Keyring({"key": bytes(range(32))})),
    "files": Job(_files, trees=(("first", FIRST), ("second", SECOND))),
    "moved": Job(_moved, trees=(("first", FIRST), ("second", SECOND)), spool="auto"),
    "deleted": Job(_deleted, LONG),
    "claimed": Job(_claimed, keep=2, trees=(("first", FIRST),)),
}
