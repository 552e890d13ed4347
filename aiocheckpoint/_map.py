"""Many runs of one task: items drawn lazily, so many at a time, outcomes as they come."""

from __future__ import annotations

import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Sized,
)
from contextlib import aclosing, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar, cast

import anyio
import anyio.abc

from ._errors import ClosedError, KeyInUseError, StoppedError
from ._keys import Template, check_key
from ._runner import Run
from ._seen import Seen
from ._stopping import Stopping
from ._task import Task, name_of

if TYPE_CHECKING:
    from ._progress import Bar

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")

MAX_CONCURRENCY = 16
_log = logging.getLogger("aiocheckpoint")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[I, R]):
    """How one item of a `Runtime.map` ended: with a result or with an error."""

    item: I
    key: str
    """The item's key; empty if none could be made of it."""
    result: R | None = None
    """What the task returned, now or in an earlier process; None if there is an error."""
    error: Exception | None = None
    """What ended the run, or kept it from beginning; None if there is a result."""

    def unwrap(self) -> R:
        """The result; raises the error if there is one."""
        if self.error is not None:
            raise self.error
        return cast(R, self.result)


class RunOne(Protocol):
    """Has a run's key reserved while it runs to its result."""

    def __call__(self, run: Run[T, I, R], /) -> Awaitable[R]: ...


class Map(Generic[T, I, R]):
    """What `Runtime.map` gives: entered, it is the iterator of the outcomes.

    An item has a slot from before it is drawn until its outcome is taken. That bounds all: what
    runs, what is drawn ahead and what waits to be taken are at most `max_concurrency` together.
    """

    def __init__(
        self,
        task: Task[T, I, R],
        items: Iterable[I] | AsyncIterable[I],
        run: RunOne,
        stopping: Stopping,
        key: str | Callable[[I], str] | None,
        max_concurrency: int,
        progress: bool,
    ) -> None:
        self._task = task
        self._name = name_of(task.fn)
        self._key_of = _key_maker(task, key)
        self._items = _check_items(items)
        self._max = _check_concurrency(max_concurrency)
        self._run_one = run
        self._stopping = stopping
        self._bar = _make_bar(self._name, items) if progress else None
        self._seen = Seen()
        self._failure: BaseException | None = None
        """What ended the map before its items did, until it has been raised."""
        self._entered = self._left = False
        self._drawn = self._done = self._failed = 0
        self._slots: anyio.Semaphore
        self._group: anyio.abc.TaskGroup
        self._drawing: anyio.CancelScope

    async def __aenter__(self) -> Self:
        if self._entered:
            raise ClosedError("what map() gives is entered once: call map() again")
        self._entered = True
        # as many as there are slots, so putting never waits
        self._put, self._outcomes = anyio.create_memory_object_stream[Outcome[I, R]](self._max)
        self._slots = anyio.Semaphore(self._max, fast_acquire=True)
        self._drawing = anyio.CancelScope()
        self._host = _current_task()
        self._group = anyio.create_task_group()
        if self._bar is not None:
            self._bar.start()
        await self._group.__aenter__()
        self._group.start_soon(self._feed)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._left = True
        self._outcomes.close()
        try:
            if isinstance(exc, GeneratorExit) and _current_task() != self._host:
                # a coroutine that is closed must not wait; a generator is closed by its task
                self._put.close()
                with suppress(RuntimeError):  # there may be no loop any more
                    self._group.cancel_scope.cancel()
                return None
            return await self._leave(kind, exc, traceback)
        finally:
            if self._bar is not None:
                self._bar.stop()
            _log.info(
                "map of %s: %d items drawn, %d done, %d failed",
                self._name,
                self._drawn,
                self._done,
                self._failed,
            )

    async def _leave(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Cancel what runs, and wait until it has ended. The group must know of a cancellation;
        any other exception it would put into a group of one."""
        swallowed: bool | None = None
        if isinstance(exc, anyio.get_cancelled_exc_class()):
            swallowed = await self._group.__aexit__(kind, exc, traceback)
        else:
            self._group.cancel_scope.cancel()
            await self._group.__aexit__(None, None, None)
        failure = self._take_failure()
        if failure is None or isinstance(failure, StoppedError):
            return swallowed
        if exc is None or not isinstance(failure, Exception):
            raise failure
        exc.add_note(f"aiocheckpoint: the items of the map failed as well: {failure!r}")
        return swallowed

    def __aiter__(self) -> AsyncIterator[Outcome[I, R]]:
        return self

    async def __anext__(self) -> Outcome[I, R]:
        if self._left or not self._entered:
            raise ClosedError("outcomes are for inside the block of map()")
        try:
            outcome = await self._outcomes.receive()
        except anyio.EndOfStream:
            failure = self._take_failure()
        else:
            self._slots.release()
            return outcome
        raise failure or StopAsyncIteration

    # Drawing items.

    async def _feed(self) -> None:
        try:
            async with anyio.create_task_group() as group:
                await self._draw(group)
        except anyio.get_cancelled_exc_class() as exc:
            self._end(exc)
        finally:
            self._put.close()

    async def _draw(self, group: anyio.abc.TaskGroup) -> None:
        try:
            # A stop ends the drawing at once. The scope is around all of it: the items may be a
            # generator that has scopes of its own.
            with self._drawing, self._stopping.interrupting(self._drawing, nap=True):
                async with aclosing(_each(self._items)) as items:
                    await self._slots.acquire()
                    while not self._drawing.cancel_called:
                        try:
                            item = await anext(items)
                        except StopAsyncIteration:
                            return
                        self._begin(group, item)
                        await self._slots.acquire()
        except GeneratorExit:
            raise
        except Exception as exc:
            self._end(exc)
            running = self._drawn - self._done - self._failed
            if running:
                _log.warning("the items of a map failed (%r); %d begun end first", exc, running)
        except BaseException as exc:
            self._end(exc)
        else:
            if self._stopping.requested:
                self._end(StoppedError(f"the runtime is stopping; the map of {self._name} resumes"))

    def _begin(self, group: anyio.abc.TaskGroup, item: I) -> None:
        self._drawn += 1
        key = ""
        try:
            key = self._key_of(item)
            if not self._seen.add(key):
                raise KeyInUseError(
                    f"an earlier item of this map has the key {key!r} too: this one was not run;"
                    " make key= tell them apart"
                )
        except Exception as exc:
            self._ended(Outcome(item, key, error=exc))
        else:
            group.start_soon(self._run, item, key)

    # Running one.

    async def _run(self, item: I, key: str) -> None:
        run = Run(self._task, key, (item,), stopping=self._stopping, level=logging.DEBUG)
        try:
            result = await self._run_one(run)
        except GeneratorExit:
            raise
        except StoppedError as exc:
            self._end(exc)
        except Exception as exc:
            self._ended(Outcome(item, key, error=exc))
        except BaseException as exc:
            self._end(exc)
        else:
            self._ended(Outcome(item, key, result))

    def _ended(self, outcome: Outcome[I, R]) -> None:
        failed = outcome.error is not None
        self._failed += failed
        self._done += not failed
        if self._bar is not None:
            self._bar.advance(failed=failed)
        if not self._left:
            self._put.send_nowait(outcome)

    def _end(self, failure: BaseException) -> None:
        """Draw no more; the first failure is raised once all that was begun has ended. What is
        neither an Exception nor a cancellation cancels all, the block included: were it raised
        here, asyncio would leave its loop at once."""
        cancelled = isinstance(failure, anyio.get_cancelled_exc_class())
        if self._failure is None and not (cancelled and self._left):
            self._failure = failure
        self._drawing.cancel()
        if not (cancelled or isinstance(failure, Exception)):
            self._group.cancel_scope.cancel()

    def _take_failure(self) -> BaseException | None:
        failure, self._failure = self._failure, None
        return failure


def _current_task() -> int | None:
    try:
        return anyio.get_current_task().id
    except Exception:
        return None  # the garbage collector closes us, where no loop runs


async def _each(items: Iterable[I] | AsyncIterable[I]) -> AsyncGenerator[I, None]:
    """One item after the other; generators are closed at the end, in the task that draws."""
    if isinstance(items, AsyncIterable):
        later = aiter(items)
        try:
            async for item in later:
                yield item
        finally:
            if isinstance(later, AsyncGenerator):
                await later.aclose()
    else:
        now = iter(items)
        try:
            for item in now:
                yield item
        finally:
            if isinstance(now, Generator):
                now.close()


def _key_maker(task: Task[T, I, R], key: str | Callable[[I], str] | None) -> Callable[[I], str]:
    """How the key of an item is made.

    Raises:
        TypeError: there is no key, or the function does not take the checkpointer and one item.
        ValueError: the template is wrong, or all items would have one key.
    """
    call = f"map({name_of(task.fn)}, ...)"
    if not (key is None or isinstance(key, str) or callable(key)):
        raise TypeError(f"{call}: key={key!r} is no template and no function of the item")
    try:
        template = Template((task.key or "") if key is None or callable(key) else key, task.fn)
        template.check(None)
    except TypeError as exc:
        raise TypeError(f"{call} runs functions of a checkpointer and one item: {exc}") from exc
    if callable(key):
        by_item = key
        return lambda item: check_key(by_item(item))
    if key is None and task.key is None:
        raise TypeError(
            f"{call} needs a key=: a template such as 'resize/{{path}}', where path is the"
            " function's parameter, or a function that makes it of the item"
        )
    if template.constant:
        raise ValueError(f"{call}: all items would have one key, {key or task.key!r}")
    return lambda item: template.fill((item,))


def _check_items(items: Iterable[I] | AsyncIterable[I]) -> Iterable[I] | AsyncIterable[I]:
    given: object = items
    if not isinstance(given, (Iterable, AsyncIterable)):
        raise TypeError(f"items={given!r}: they are an iterable or an async iterable")
    return items


def _check_concurrency(most: int) -> int:
    if type(most) is not int or most < 1:
        raise ValueError(f"max_concurrency={most!r}: it is an int, 1 or more")
    return most


def _make_bar(name: str, items: object) -> Bar:
    try:
        from ._progress import Bar
    except ImportError as exc:
        raise ImportError("progress=True needs rich: pip install 'aiocheckpoint[rich]'") from exc
    return Bar(name, len(items) if isinstance(items, Sized) else None)
