"""What the soak does all the time: every operation, at full rate, each checking what it finds."""

from __future__ import annotations

import random
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from aiocheckpoint import (
    Checkpointer,
    ConflictError,
    FencedError,
    RetryPolicy,
    Runtime,
    StoreUnavailableError,
)

from ._torture import Counts
from ._victim import numbers_of, state

_SIZES = (10, 100, 1_000, 10_000, 100, 1_000, 10_000, 1_500_000)
_RETRY = RetryPolicy(on=OSError, retries=5, wait_initial=0.001, wait_max=0.001, wait_jitter=0)


class Load:
    """Work for one runtime. States are numbered: of each key it is known which one may be found."""

    def __init__(self, runtime: Runtime, rival: Runtime, scratch: Path, rng: random.Random) -> None:
        """`rival` is another runtime on the same store, which takes keys over."""
        self.counts = Counts()
        self._runtime = runtime
        self._rival = rival
        self._scratch = scratch
        self._rng = rng
        self._number = 0
        self._between: dict[str, tuple[int, int]] = {}
        self._busy: set[str] = set()

    async def go_on(self, seconds: float, standing: Checkpointer[bytes]) -> None:
        """Do all of it side by side for so long; `standing` is a handle that stays open."""
        until = anyio.current_time() + seconds
        async with anyio.create_task_group() as group:
            group.start_soon(self._again, until, lambda: self._write_fast(standing))
            for work in (self._visit, self._visit, self._save, self._run, self._contend):
                group.start_soon(self._again, until, work)

    async def _again(self, until: float, work: Callable[[], Awaitable[None]]) -> None:
        while anyio.current_time() < until:
            try:
                await work()
            except StoreUnavailableError:  # an open has tried for as long as it may
                self.counts["unavailable"] += 1

    def _next(self, tree: int = 0) -> tuple[int, bytes]:
        self._number += 1
        return self._number, state(self._number, tree, self._rng.choice(_SIZES))

    async def _write_fast(self, cp: Checkpointer[bytes]) -> None:
        for _ in range(500):
            await cp.write(self._next()[1])
        self.counts["writes"] += 500
        await cp.flush()

    async def _visit(self) -> None:
        """Open one of a few keys, write, and leave: in peace, cancelled, or by an error."""
        key = f"visited-{self._rng.randrange(10)}"
        if key in self._busy:
            await anyio.sleep(0.001)
            return
        self._busy.add(key)
        try:
            with anyio.move_on_after(self._rng.choice((0.005, 0.05, 5))):
                async with self._runtime.open(key, type=bytes) as cp:
                    oldest = self._check(key, await cp.read())
                    for _ in range(self._rng.randrange(20)):
                        number, data = self._next()
                        self._between[key] = oldest, number
                        await cp.write(data)
                        self._between[key] = number, number
                        oldest = number
                    if self._rng.random() < 0.1:
                        self._between[key] = 0, oldest
                        await cp.delete()
                        self._between[key] = 0, 0
        finally:
            self._busy.discard(key)
        self.counts["visits"] += 1

    def _check(self, key: str, found: bytes | None) -> int:
        number = 0 if found is None else numbers_of(found)[0]
        oldest, newest = self._between.get(key, (0, 0))
        assert number == 0 or oldest <= number <= newest, f"{key}: {number}, not {oldest}-{newest}"
        assert number or not oldest, f"{key}: state {oldest} is lost"
        self._between[key] = number, number
        return number

    async def _save(self) -> None:
        """Save files by copy and by move, and get them back with their state."""
        number, data = self._next(tree=self._number + 1)
        tree, target = self._scratch / f"tree-{number}", self._scratch / f"back-{number}"
        tree.mkdir()
        (tree / "number").write_text(str(number))
        (tree / "more").write_bytes(self._rng.randbytes(self._rng.choice((10, 100_000))))
        move = self._rng.random() < 0.5
        async with self._runtime.open("saved", type=bytes) as cp:
            await cp.save(tree, state=data, move=move)
        async with self._runtime.open("saved", type=bytes) as cp:
            found = numbers_of(await cp.read(default=b""))
            await cp.restore(target)
        assert found == (number, number)
        assert (target / "number").read_text() == str(number)
        for path in (tree, target):
            shutil.rmtree(path, ignore_errors=True)
        self.counts["saves"] += 1

    async def _run(self) -> None:
        """A task that fails, goes on where it was, and has its result."""

        async def count(cp: Checkpointer[int], to: int) -> int:
            for n in range(await cp.read(default=0), to):
                await cp.write(n + 1)
                if self._rng.random() < 0.05:
                    raise OSError("as drawn")
            return to

        to = self._rng.randrange(1, 30)
        try:
            found = await self._runtime.run(count, to, key="ran", retry=_RETRY, fresh=True)
        except OSError:
            self.counts["exhausted"] += 1
        else:
            assert found == to
        self.counts["runs"] += 1

    async def _contend(self) -> None:
        """Two runtimes take one key from each other."""
        try:
            async with self._runtime.open("contended", type=bytes) as cp:
                await cp.write(self._next()[1])
                async with self._rival.open("contended", type=bytes) as rival:
                    numbers_of(await rival.read(default=b""))
                    await rival.write(self._next()[1])
                await cp.write(self._next()[1])
                await cp.flush()
        except FencedError:
            self.counts["fenced"] += 1
        else:
            raise AssertionError("a zombie was not fenced")
        if self._rng.random() < 0.1:
            try:
                await self._runtime.delete("contended")
            except ConflictError:
                pass  # an answer was lost
