"""Tasks: a function with the key, the retries and the codec that its runs use."""

from __future__ import annotations

import functools
import typing
from collections.abc import Awaitable, Callable
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    NoReturn,
    TypeVar,
    TypeVarTuple,
    Unpack,
    cast,
    overload,
)

import msgspec

from ._checkpointer import Checkpointer
from ._codecs import MSGPACK, Coder, MsgspecCodec
from ._errors import CodecError
from ._keys import Template, check_key
from ._policy import RetryPolicy, as_policy
from .abc import Codec

T = TypeVar("T")
R = TypeVar("R")
Args = TypeVarTuple("Args")

RESULT_LIMIT = 1 << 20


class Task(Generic[T, *Args, R]):
    """What `@task` makes of a function. `Runtime.run` runs it; calling it does not."""

    def __init__(
        self,
        fn: Callable[[Checkpointer[T], Unpack[Args]], Awaitable[R]],
        *,
        key: str | None,
        retry: int | RetryPolicy = 0,
        type: type[T] | None = None,
        codec: Codec[T] | None = None,
    ) -> None:
        self.fn = fn
        """The plain function."""
        self.key = key
        """The template of the key, or None if each call of `run` must give one."""
        self.retry = as_policy(retry)
        self._type = type
        self._codec = codec
        self._template: Template | None = None  # made of both when the first key is
        self.coder: Coder[T] = Coder(type, codec)
        # names only: the function's own attributes may be called like ours (`retry`)
        functools.update_wrapper(cast("Callable[..., Any]", self), fn, updated=())

    if not TYPE_CHECKING:  # to a type checker a task is no function, and run() takes the task

        def __call__(self, *args: object, **kwargs: object) -> NoReturn:
            name = name_of(self.fn)
            raise TypeError(
                f"{name} is a task: run it with `await rt.run({name}, ...)` or"
                f" `aiocheckpoint.run({name}, ...)`; the plain function is {name}.fn"
            )

    def __repr__(self) -> str:
        return f"<task {name_of(self.fn)} key={self.key!r}>"

    def using(
        self, *, key: str | None = None, retry: int | RetryPolicy | None = None
    ) -> Task[T, *Args, R]:
        """The same task with another key template or other retries."""
        return Task(
            self.fn,
            key=self.key if key is None else key,
            retry=self.retry if retry is None else retry,
            type=self._type,
            codec=self._codec,
        )

    def key_for(self, args: tuple[object, ...]) -> str:
        """The key of a call with these arguments."""
        if self.key is None:
            raise TypeError(f"run({name_of(self.fn)}, ...) needs a key=: it names the checkpoint")
        try:
            if self._template is None:
                self._template = Template(self.key, self.fn)
            return self._template.fill(args)
        except TypeError as exc:
            raise TypeError(f"run({name_of(self.fn)}, ...): {exc}") from exc

    def encode_result(self, result: R) -> tuple[bytes, str]:
        """The result's bytes and codec; by MessagePack, or the task's codec where that fails."""
        try:
            try:
                data, codec = msgspec.msgpack.encode(result), MSGPACK
            except Exception:
                if self._codec is None:
                    raise
                data, codec = self._codec.encode(cast(T, result)), self._codec.name
        except Exception as exc:
            raise CodecError(
                f"{name_of(self.fn)} returned a {type(result).__name__} that cannot be stored as"
                f" its result: {exc}; return something that msgspec encodes, or give the task a"
                " codec="
            ) from exc
        if len(data) > RESULT_LIMIT:
            raise CodecError(
                f"{name_of(self.fn)} returned a result of {len(data)} bytes, and at most"
                f" {RESULT_LIMIT} are stored: write() large results as the last state"
            )
        return data, codec

    def decode_result(self, data: bytes, codec: str) -> R:
        """The result of a run that is done, as the function's return annotation says."""
        try:
            if codec == MSGPACK:
                return cast(R, MsgspecCodec(_return_type(self.fn)).decode(data))
            if self._codec is not None and self._codec.name == codec:
                return cast(R, self._codec.decode(data))
        except Exception as exc:
            raise CodecError(
                f"the stored result of {name_of(self.fn)} does not fit its return type: {exc};"
                " run it with fresh=True to start over"
            ) from exc
        raise CodecError(f"the stored result of {name_of(self.fn)} was written by codec {codec!r}")


@overload
def task(
    *,
    key: str,
    retry: int | RetryPolicy = 0,
    type: None = None,
    codec: None = None,
) -> Callable[
    [Callable[[Checkpointer[bytes], Unpack[Args]], Awaitable[R]]], Task[bytes, *Args, R]
]: ...
@overload
def task(
    *,
    key: str,
    retry: int | RetryPolicy = 0,
    type: type[T],
    codec: None = None,
) -> Callable[[Callable[[Checkpointer[T], Unpack[Args]], Awaitable[R]]], Task[T, *Args, R]]: ...
@overload
def task(
    *,
    key: str,
    retry: int | RetryPolicy = 0,
    type: None = None,
    codec: Codec[T],
) -> Callable[[Callable[[Checkpointer[T], Unpack[Args]], Awaitable[R]]], Task[T, *Args, R]]: ...
def task(
    *,
    key: str,
    retry: int | RetryPolicy = 0,
    type: type[Any] | None = None,
    codec: Codec[Any] | None = None,
) -> Callable[[Callable[[Checkpointer[Any], Unpack[Args]], Awaitable[R]]], Task[Any, *Args, R]]:
    """Make a task of an async function whose first parameter is its checkpointer.

    Args:
        key: The template of the key: `"train/{run_id}"` takes the argument `run_id`.
        retry: Retries on any Exception, or a RetryPolicy.
        type: The type that states are decoded into; without it (and `codec`) they are bytes.
        codec: What encodes and decodes states instead.
    """

    def decorate(
        fn: Callable[[Checkpointer[Any], Unpack[Args]], Awaitable[R]],
    ) -> Task[Any, *Args, R]:
        return Task(fn, key=key, retry=retry, type=type, codec=codec)

    return decorate


def as_task(
    fn: Task[T, *Args, R] | Callable[[Checkpointer[T], Unpack[Args]], Awaitable[R]],
    key: str | None,
    retry: int | RetryPolicy | None,
) -> Task[T, *Args, R]:
    """What `run` was given, with its own options applied. A plain key stays as it is."""
    given: Any = fn
    made: Any
    if isinstance(given, Task):
        made = given
    elif isinstance(inner := getattr(given, "func", None), Task):  # a functools.partial
        bound: Any = functools.partial(inner.fn, *given.args, **given.keywords)
        made = Task(bound, key=inner.key, retry=inner.retry, type=inner._type, codec=inner._codec)
    else:
        made = Task(given, key=None)
    if retry is not None:
        made = made.using(retry=retry)
    if key is not None:
        made = made.using(key=check_key(key).replace("{", "{{").replace("}", "}}"))
    task: Task[T, *Args, R] = made
    return task


def name_of(fn: Callable[..., object]) -> str:
    """What to call a function in messages."""
    plain = fn.func if isinstance(fn, functools.partial) else fn
    return getattr(plain, "__name__", None) or repr(plain)


def _return_type(fn: Callable[..., object]) -> Any:
    plain = fn.func if isinstance(fn, functools.partial) else fn
    try:
        return typing.get_type_hints(plain).get("return", Any)
    except Exception:
        return Any  # annotations that cannot be resolved say nothing
