"""Which failures are tried again, and after how long: arithmetic, no clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocheckpoint import (
    CodecError,
    CorruptCheckpointError,
    FencedError,
    NonRecoverableError,
    RecoverableError,
    RetryPolicy,
    StoppedError,
)
from aiocheckpoint._policy import AttemptTimeoutError, as_policy

NEVER: list[BaseException] = [
    NonRecoverableError(),
    FencedError(),
    CorruptCheckpointError(),
    CodecError(),
    StoppedError(),
    KeyboardInterrupt(),
    SystemExit(),
    asyncio.CancelledError(),
    GeneratorExit(),
]


def always(wait: float = 0.0, **options: Any) -> RetryPolicy:
    """Retries every Exception after exactly this wait."""
    return RetryPolicy(on=Exception, wait_initial=wait, wait_jitter=0, **options)


def judged(on: Any, exc: BaseException) -> float | None:
    """The wait before the first retry; the policy's own is 7 seconds."""
    policy = RetryPolicy(on=on, wait_initial=7, wait_jitter=0, retries=1)
    return policy.wait_before(1, exc)


# What is retried.


@pytest.mark.parametrize(
    ("on", "exc", "retried"),
    [
        (OSError, ConnectionError(), True),
        (OSError, ValueError(), False),
        ((OSError, ValueError), ValueError(), True),
        ((OSError, ValueError), KeyError(), False),
        ((), ValueError(), False),
    ],
)
def test_types_match_by_isinstance(on: Any, exc: Exception, retried: bool) -> None:
    """A type, or a tuple of them, matches its subclasses; an empty tuple matches nothing."""
    assert judged(on, exc) == (7 if retried else None)


@pytest.mark.parametrize(
    ("answer", "wait"),
    [
        (True, 7),
        (False, None),
        (0, 0),
        (1, 1),
        (0.25, 0.25),
        (timedelta(minutes=1), 60),
        (-1, 0),
        (timedelta(seconds=-1), 0),
    ],
)
def test_callable_decides(answer: bool | float | timedelta, wait: float | None) -> None:
    """What a callable returns is a yes, a no, or the wait itself, never below 0."""
    seen: list[Exception] = []
    error = ValueError()

    def on(exc: Exception) -> bool | float | timedelta:
        seen.append(exc)
        return answer

    assert judged(on, error) == wait
    assert seen == [error]


@pytest.mark.parametrize("answer", [None, "1", [1]])
def test_callable_that_returns_neither_is_an_error(answer: Any) -> None:
    """A callable that forgot to answer is told so."""
    with pytest.raises(TypeError, match=r"on= returned .* bool, seconds or timedelta"):
        judged(lambda exc: answer, ValueError())


@pytest.mark.parametrize("exc", NEVER, ids=lambda exc: type(exc).__name__)
@pytest.mark.parametrize("on", [Exception, lambda exc: True, lambda exc: 1.0])
def test_never_retried(on: Any, exc: BaseException) -> None:
    """Some errors are not retried whatever `on` says, alone or anywhere in a group."""
    assert judged(on, exc) is None
    inner = BaseExceptionGroup("inner", [ValueError(), exc])
    assert judged(on, inner) is None
    assert judged(on, BaseExceptionGroup("outer", [OSError(), inner])) is None


def test_callable_is_not_asked_about_what_is_never_retried() -> None:
    """`on` sees no error that it has no say in."""

    def on(exc: Exception) -> bool:
        raise AssertionError(exc)

    for exc in NEVER:
        assert judged(on, exc) is None


def test_recoverable_error_needs_no_match() -> None:
    """RecoverableError is retried though `on` does not name it; `retry_after` is its wait."""
    assert judged(KeyError, RecoverableError("later")) == 7
    assert judged(KeyError, RecoverableError(retry_after=0.5)) == 0.5
    assert judged(lambda exc: False, RecoverableError(retry_after=0)) == 0
    assert judged(KeyError, RecoverableError(retry_after=-1)) == 0


def test_attempt_timeout_needs_no_match() -> None:
    """The attempt's own timeout is retried though `on` does not name it; another is not."""
    assert judged(KeyError, AttemptTimeoutError()) == 7
    assert judged(KeyError, TimeoutError()) is None


def test_no_retry_is_left_past_the_last() -> None:
    """Retries are counted from 1, and there are as many as `retries` says."""
    policy = always(retries=2)
    assert [policy.wait_before(n, ValueError()) for n in (1, 2, 3)] == [0, 0, None]
    assert always(retries=0).wait_before(1, RecoverableError()) is None


# Groups.


def test_group_matches_when_every_leaf_does() -> None:
    """A group, nested or not, is retried when each of its leaves is."""
    inner = ExceptionGroup("inner", [OSError(), ConnectionError()])
    assert judged(OSError, inner) == 7
    assert judged(OSError, ExceptionGroup("outer", [inner, OSError()])) == 7
    assert judged(OSError, ExceptionGroup("outer", [inner, ValueError()])) is None
    assert judged(lambda exc: isinstance(exc, OSError), inner) == 7


def test_group_waits_as_long_as_its_longest_leaf() -> None:
    """Of the waits that leaves ask for the longest counts."""
    leaves = [RecoverableError(retry_after=1), RecoverableError(retry_after=3)]
    nested = ExceptionGroup("nested", [ExceptionGroup("inner", leaves), RecoverableError()])
    assert judged(KeyError, ExceptionGroup("flat", leaves)) == 3
    assert judged(lambda exc: timedelta(seconds=2), nested) >= 3  # type: ignore[operator]


leaf = st.sampled_from([ValueError(), OSError(), RecoverableError(), FencedError()])
group = st.recursive(
    leaf,
    lambda inner: st.lists(inner, min_size=1, max_size=4).map(
        lambda leaves: ExceptionGroup("g", leaves)
    ),
    max_leaves=12,
)


def leaves_of(exc: Exception) -> list[Exception]:
    if isinstance(exc, ExceptionGroup):
        return [leaf for inner in exc.exceptions for leaf in leaves_of(inner)]
    return [exc]


@given(group)
def test_shape_of_a_group_does_not_matter(exc: Exception) -> None:
    """However groups are nested, the leaves alone decide."""
    expected = all(isinstance(one, (OSError, RecoverableError)) for one in leaves_of(exc))
    assert (judged(OSError, exc) is not None) == expected


# Waits.

seconds = st.floats(0, 1e6)


@given(
    retry=st.integers(1, 10**7),
    initial=seconds,
    cap=seconds,
    base=st.one_of(st.floats(1, 1e3), st.integers(1, 1000)),
    jitter=seconds,
)
def test_backoff_grows_up_to_its_cap(
    retry: int, initial: float, cap: float, base: float, jitter: float
) -> None:
    """The wait is the formula's plus at most the jitter, and never above the cap."""
    policy = RetryPolicy(
        on=Exception, wait_initial=initial, wait_max=cap, wait_exp_base=base, wait_jitter=jitter
    )
    try:
        plain = initial * float(base) ** (retry - 1) if initial else 0.0
    except OverflowError:
        plain = float("inf")
    wait = policy.backoff(retry)
    assert min(cap, plain) <= wait <= min(cap, plain + jitter)


def test_backoff_doubles() -> None:
    """With the defaults, but for jitter, waits are 0.1, 0.2, 0.4, ... up to a minute."""
    policy = RetryPolicy(on=Exception, wait_jitter=0)
    assert [policy.backoff(n) for n in (1, 2, 3, 4)] == [0.1, 0.2, 0.4, 0.8]
    assert policy.backoff(11) == 60
    assert RetryPolicy(on=Exception, wait_initial=3, wait_exp_base=1, wait_jitter=0).backoff(9) == 3


def test_jitter_spreads() -> None:
    """Two runs that fail together do not come back together."""
    policy = RetryPolicy(on=Exception, wait_initial=0, wait_jitter=1)
    waits = {policy.backoff(1) for _ in range(50)}
    assert len(waits) > 40
    assert all(0 <= wait <= 1 for wait in waits)


@pytest.mark.parametrize("base", [2, 2.0, 1e308])
def test_huge_retry_numbers_do_not_overflow(base: float) -> None:
    """The ten millionth retry waits as long as the cap says, or not at all if there is no wait."""
    policy = RetryPolicy(on=Exception, wait_exp_base=base, retries=10**9, wait_jitter=0)
    assert policy.wait_before(10**7, ValueError()) == 60
    assert always(retries=10**9, wait_exp_base=base).wait_before(10**7, ValueError()) == 0


def test_waits_may_be_timedeltas() -> None:
    """Every time of a policy is seconds or a timedelta."""
    policy = RetryPolicy(
        on=Exception,
        wait_initial=timedelta(seconds=3),
        wait_max=timedelta(seconds=5),
        wait_jitter=timedelta(0),
        attempt_timeout=timedelta(hours=1),
        deadline=timedelta(days=1),
    )
    assert [policy.backoff(n) for n in (1, 2)] == [3, 5]


# Bad values.

OPTIONS = ["wait_initial", "wait_max", "wait_jitter", "attempt_timeout", "deadline"]


@pytest.mark.parametrize("value", [-1, -0.001, float("nan"), timedelta(seconds=-1)])
@pytest.mark.parametrize("name", [*OPTIONS, "wait_exp_base"])
def test_negative_values_are_refused(name: str, value: Any) -> None:
    """A negative time, or one that is no number, is an error that names the option."""
    with pytest.raises((ValueError, TypeError), match=name):
        RetryPolicy(on=Exception, **{name: value})


@pytest.mark.parametrize("value", ["1", "soon", [1], object()])
@pytest.mark.parametrize("name", [*OPTIONS, "wait_exp_base"])
def test_values_of_another_type_are_refused(name: str, value: Any) -> None:
    """What is no number of seconds is an error that names the option."""
    with pytest.raises((ValueError, TypeError), match=name):
        RetryPolicy(on=Exception, **{name: value})


@pytest.mark.parametrize("name", ["wait_initial", "wait_max", "wait_jitter", "wait_exp_base"])
def test_waits_cannot_be_none(name: str) -> None:
    """Only the two limits may be left out by None."""
    with pytest.raises((ValueError, TypeError), match=name):
        RetryPolicy(on=Exception, **cast(Any, {name: None}))


@pytest.mark.parametrize("retries", [-1, 1.5, "3", None, True])
def test_retries_is_a_count(retries: Any) -> None:
    """A number of retries is an int and not negative, also in the short form."""
    with pytest.raises(ValueError, match="retries"):
        RetryPolicy(on=Exception, retries=retries)
    with pytest.raises(ValueError, match="retries"):
        as_policy(retries)


@pytest.mark.parametrize(
    "on",
    [
        None,
        "ValueError",
        ValueError(),
        [ValueError],
        (ValueError, "x"),
        (ValueError, lambda exc: True),
        ((ValueError,),),
    ],
)
def test_on_of_another_kind_is_refused(on: Any) -> None:
    """`on` is an exception type, a tuple of them, or a callable."""
    with pytest.raises(TypeError, match="on="):
        RetryPolicy(on=on)


@pytest.mark.parametrize("on", [BaseException, KeyboardInterrupt, (ValueError, SystemExit), int])
def test_only_exceptions_can_be_retried(on: Any) -> None:
    """A type that stands outside Exception is refused, so that nobody counts on it."""
    with pytest.raises(TypeError, match="only subclasses of Exception"):
        RetryPolicy(on=on)


def test_on_has_no_default() -> None:
    """What is retried must be said."""
    make: Callable[..., RetryPolicy] = RetryPolicy
    with pytest.raises(TypeError, match="on"):
        make()


# The short form.


def test_an_int_is_that_many_retries_on_any_exception() -> None:
    """`retry=2` retries any Exception twice; a policy is itself."""
    policy = as_policy(2)
    assert policy.wait_before(2, KeyError()) is not None
    assert policy.wait_before(3, KeyError()) is None
    assert policy.wait_before(1, KeyboardInterrupt()) is None
    assert as_policy(policy) is policy
