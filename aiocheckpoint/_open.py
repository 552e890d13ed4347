"""`open`: one handle with a runtime of its own."""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar, overload

from ._checkpointer import Checkpointer
from ._compression import Compression
from ._keyring import Keyring
from ._options import SpoolOption
from ._runtime import Runtime
from .abc import Codec, Store

T = TypeVar("T")


@overload
def open(
    store: str | os.PathLike[str] | Store,
    key: str,
    *,
    type: None = None,
    codec: None = None,
    keep: int = 1,
    min_interval: float | None = None,
    flush_timeout: float = 30.0,
    spool: SpoolOption = "auto",
    encryption: Keyring | None = None,
    compression: Compression = None,
) -> AbstractAsyncContextManager[Checkpointer[bytes]]: ...
@overload
def open(
    store: str | os.PathLike[str] | Store,
    key: str,
    *,
    type: type[T],
    codec: None = None,
    keep: int = 1,
    min_interval: float | None = None,
    flush_timeout: float = 30.0,
    spool: SpoolOption = "auto",
    encryption: Keyring | None = None,
    compression: Compression = None,
) -> AbstractAsyncContextManager[Checkpointer[T]]: ...
@overload
def open(
    store: str | os.PathLike[str] | Store,
    key: str,
    *,
    type: None = None,
    codec: Codec[T],
    keep: int = 1,
    min_interval: float | None = None,
    flush_timeout: float = 30.0,
    spool: SpoolOption = "auto",
    encryption: Keyring | None = None,
    compression: Compression = None,
) -> AbstractAsyncContextManager[Checkpointer[T]]: ...
def open(
    store: str | os.PathLike[str] | Store,
    key: str,
    *,
    type: type[Any] | None = None,
    codec: Codec[Any] | None = None,
    keep: int = 1,
    min_interval: float | None = None,
    flush_timeout: float = 30.0,
    spool: SpoolOption = "auto",
    encryption: Keyring | None = None,
    compression: Compression = None,
) -> AbstractAsyncContextManager[Checkpointer[Any]]:
    """Claim one key of a store: an async context manager that gives its checkpointer.

    The options are those of `Runtime` and `Runtime.open`. For several keys of one store make a
    `Runtime`, which needs one thread for all.
    """
    runtime = Runtime(
        store,
        keep=keep,
        min_interval=min_interval,
        flush_timeout=flush_timeout,
        spool=spool,
        encryption=encryption,
        compression=compression,
    )
    return _Single(runtime, runtime.open(key, type=type, codec=codec))  # type: ignore[arg-type]


class _Single(Generic[T]):
    def __init__(
        self, runtime: Runtime, opening: AbstractAsyncContextManager[Checkpointer[T]]
    ) -> None:
        self._runtime = runtime
        self._opening = opening

    async def __aenter__(self) -> Checkpointer[T]:
        await self._runtime.__aenter__()
        try:
            return await self._opening.__aenter__()
        except BaseException as exc:
            await self._runtime.__aexit__(type(exc), exc, exc.__traceback__)
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._opening.__aexit__(kind, exc, traceback)
        except BaseException as worse:
            await self._runtime.__aexit__(type(worse), worse, worse.__traceback__)
            raise
        await self._runtime.__aexit__(kind, exc, traceback)
