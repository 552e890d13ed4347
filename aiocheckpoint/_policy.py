"""RetryPolicy: which failures are tried again, after how long. Pure arithmetic."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from ._errors import (
    CodecError,
    CorruptCheckpointError,
    FencedError,
    NonRecoverableError,
    RecoverableError,
    StoppedError,
)

_NEVER = (
    NonRecoverableError,
    FencedError,
    CorruptCheckpointError,
    CodecError,
    StoppedError,
)

Seconds = float | timedelta
On = (
    type[Exception]
    | tuple[type[Exception], ...]
    | Callable[[Exception], "bool | float | timedelta"]
)


class AttemptTimeoutError(TimeoutError):
    """An attempt ran longer than `attempt_timeout`; counts as a retryable failure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often, on what and after how long a failed attempt is followed by another.

    Attributes:
        on: An exception type or a tuple of them, or a callable that is given the exception and
            returns True (retry), False (do not), or the wait before the retry (seconds or
            timedelta). An exception group is retried when every leaf is. Never retried, whatever
            `on` says: what is not an Exception, NonRecoverableError, FencedError,
            CorruptCheckpointError, CodecError, StoppedError. Always retried while retries are
            left: RecoverableError, and an attempt that ran into `attempt_timeout`.
        retries: Retries after the first attempt, counted across processes.
        wait_initial, wait_max, wait_exp_base, wait_jitter: The wait before the n-th retry is
            `min(wait_max, wait_initial * wait_exp_base ** (n - 1) + random(0, wait_jitter))`
            seconds (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
        attempt_timeout: Seconds after which an attempt is cancelled, or None.
        deadline: Seconds after the start of this call of `run` past which no retry is begun, or
            None. An attempt that is under way is not cut short.
        reset_on_progress: Count only failures in a row without a newer state between them.
    """

    on: On
    retries: int = 3
    wait_initial: Seconds = 0.1
    wait_max: Seconds = 60.0
    wait_exp_base: float = 2.0
    wait_jitter: Seconds = 1.0
    attempt_timeout: Seconds | None = None
    deadline: Seconds | None = None
    reset_on_progress: bool = False

    def __post_init__(self) -> None:
        types = self.on if isinstance(self.on, tuple) else (self.on,)
        for kind in types:
            if isinstance(kind, type):
                if not issubclass(kind, Exception):
                    raise TypeError(f"on={kind.__name__}: only subclasses of Exception are retried")
            elif isinstance(self.on, tuple) or not callable(kind):
                raise TypeError("on= is an exception type, a tuple of them, or a callable")
        if type(self.retries) is not int or self.retries < 0:
            raise ValueError(f"retries={self.retries!r}: it is an int, 0 or more")
        for name in ("wait_initial", "wait_max", "wait_jitter", "attempt_timeout", "deadline"):
            value = getattr(self, name)
            if value is None and name in ("attempt_timeout", "deadline"):
                continue
            if not isinstance(value, (int, float, timedelta)):
                raise TypeError(f"{name}={value!r}: it is a number of seconds, or a timedelta")
            if not seconds(value) >= 0:
                raise ValueError(f"{name}={value}: it must not be negative")
        base: object = self.wait_exp_base
        if not isinstance(base, (int, float)) or not base >= 1:
            raise ValueError(f"wait_exp_base={base!r}: it is a number, at least 1")

    def wait_before(self, retry: int, exc: BaseException) -> float | None:
        """Seconds to wait before the `retry`-th retry (from 1) after `exc`; None: do not retry."""
        if retry > self.retries:
            return None
        longest = 0.0
        for leaf in _leaves(exc):
            verdict = self._verdict(leaf)
            if verdict is False:
                return None
            wait = self.backoff(retry) if verdict is True else seconds(verdict)
            longest = max(longest, wait)
        return longest

    def backoff(self, retry: int) -> float:
        """The policy's own wait before the `retry`-th retry, in seconds."""
        wait, cap = seconds(self.wait_initial), seconds(self.wait_max)
        try:
            # a float base: the powers of an int know no bounds
            wait = wait and wait * float(self.wait_exp_base) ** (retry - 1)
        except OverflowError:
            return cap
        return min(cap, wait + random.uniform(0, seconds(self.wait_jitter)))

    def _verdict(self, exc: BaseException) -> bool | Seconds:
        if not isinstance(exc, Exception) or isinstance(exc, _NEVER):
            return False
        if isinstance(exc, AttemptTimeoutError):
            return True
        if isinstance(exc, RecoverableError):
            return True if exc.retry_after is None else exc.retry_after
        if isinstance(self.on, (type, tuple)):
            return isinstance(exc, self.on)
        verdict = self.on(exc)
        if not isinstance(verdict, (bool, int, float, timedelta)):
            raise TypeError(f"on= returned {verdict!r}; it returns bool, seconds or timedelta")
        return verdict


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    else:
        yield exc


def as_policy(retry: int | RetryPolicy) -> RetryPolicy:
    """An int stands for that many retries on any Exception."""
    if isinstance(retry, RetryPolicy):
        return retry
    return RetryPolicy(on=Exception, retries=retry)


def seconds(value: Seconds) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else float(value)
