"""`run`: a task as a script, with an event loop and signals of its own."""

from __future__ import annotations

import importlib
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar, TypeVarTuple, Unpack

import anyio

from ._checkpointer import Checkpointer
from ._compression import Compression
from ._errors import StoppedError
from ._keyring import Keyring
from ._options import SpoolOption
from ._policy import RetryPolicy
from ._runtime import Runtime
from ._signals import SignalHandlers
from ._task import Task
from .abc import Store

T = TypeVar("T")
R = TypeVar("R")
Args = TypeVarTuple("Args")


def run(
    fn: Task[T, *Args, R] | Callable[[Checkpointer[T], Unpack[Args]], Awaitable[R]],
    *args: *Args,
    store: str | os.PathLike[str] | Store,
    key: str | None = None,
    retry: int | RetryPolicy | None = None,
    fresh: bool = False,
    keep: int = 1,
    min_interval: float | None = None,
    flush_timeout: float = 30.0,
    spool: SpoolOption = "auto",
    encryption: Keyring | None = None,
    compression: Compression = None,
    backend: Literal["asyncio", "uvloop", "trio"] = "asyncio",
    grace: float = 25.0,
) -> R:
    """Run one task to its result, like `asyncio.run`, and stop well on SIGINT and SIGTERM.

    The first signal ends the attempt at its next write, or where it is when most of `grace`
    seconds have passed; a second one ends it at once. Either way what is staged is stored, and
    the process exits with 128 + the signal's number (SystemExit). The next call resumes. Outside
    the main thread signals are left alone. The other options are those of `Runtime` and
    `Runtime.run`.
    """
    if backend not in ("asyncio", "uvloop", "trio"):
        raise ValueError(f"backend={backend!r}: it is 'asyncio', 'uvloop' or 'trio'")
    try:
        importlib.import_module(backend)
    except ImportError as exc:
        raise ImportError(
            f"backend={backend!r} needs {backend}: pip install 'aiocheckpoint[{backend}]'"
        ) from exc
    runtime = Runtime(
        store,
        keep=keep,
        min_interval=min_interval,
        flush_timeout=flush_timeout,
        spool=spool,
        encryption=encryption,
        compression=compression,
        grace=grace,
    )
    caught: list[int] = []

    def on_signal(number: int) -> None:
        caught.append(number)
        runtime._on_signal(number)

    async def main() -> R:
        async with runtime:
            return await runtime.run(fn, *args, key=key, retry=retry, fresh=fresh)

    # before the loop starts: asyncio and trio leave a SIGINT handler alone that is not Python's
    in_main = threading.current_thread() is threading.main_thread()
    handlers = SignalHandlers((signal.SIGINT, signal.SIGTERM) if in_main else (), on_signal)
    options: dict[str, Any] = {"use_uvloop": True} if backend == "uvloop" else {}
    handlers.install()
    try:
        return anyio.run(
            main,
            backend="asyncio" if backend == "uvloop" else backend,
            backend_options=options,
        )
    except StoppedError:
        if caught:
            raise SystemExit(128 + caught[0]) from None
        raise
    finally:
        handlers.restore()
