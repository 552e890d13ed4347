"""The trampoline counts each suspension, and interrupts at the one that was chosen."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from ._interrupting import Driven, Point, Points

BACKENDS = [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True}), ("trio", {})]
every_backend = pytest.mark.parametrize("backend", BACKENDS, ids=["asyncio", "uvloop", "trio"])


async def waits_thrice(log: list[int]) -> str:
    for n in range(3):
        await anyio.lowlevel.checkpoint()
        log.append(n)
    return "done"


@every_backend
def test_driven_coroutine_is_as_it_was(backend: tuple[str, dict[str, Any]]) -> None:
    """It has the result of the coroutine inside, and each of its suspensions is seen."""
    suspensions: list[None] = []
    log: list[int] = []

    async def main() -> str:
        return await Driven(waits_thrice(log), lambda: suspensions.append(None))

    assert anyio.run(main, backend=backend[0], backend_options=backend[1]) == "done"
    assert len(suspensions) == 3
    assert log == [0, 1, 2]


@every_backend
@pytest.mark.parametrize("at", range(3))
def test_program_is_cancelled_at_the_point(backend: tuple[str, dict[str, Any]], at: int) -> None:
    """Cancelled at its n-th suspension, it gets no further."""
    log: list[int] = []

    async def main() -> Points:
        with anyio.CancelScope() as scope:
            points = Points(Point("", at))
            points.interrupt(scope, lambda scope: scope.cancel())
            await points.main(waits_thrice(log))
        assert scope.cancelled_caught
        return points

    points = anyio.run(main, backend=backend[0], backend_options=backend[1])
    assert log == list(range(at))
    assert points.delivered == 1


def test_second_cancel_comes_at_the_next_suspension() -> None:
    """Once the first has been delivered, the second one interrupts what cleans up."""
    log: list[str] = []

    def cancel(task: asyncio.Task[None]) -> None:
        task.cancel()

    async def program() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            try:
                await asyncio.sleep(0)
                log.append("cleaned up")
            finally:
                log.append("interrupted again")

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        points = Points(Point("", 0))
        points.interrupt(task, cancel, cancel)
        await points.main(program())

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert log == ["interrupted again"]


def test_exception_is_raised_at_the_point() -> None:
    """What is not a cancellation is raised where the program waits."""
    log: list[int] = []

    async def main() -> None:
        points = Points(Point("", 1))
        points.interrupt("by hand", KeyboardInterrupt)
        await points.main(waits_thrice(log))

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert log == [0]
