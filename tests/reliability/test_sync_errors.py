"""A disk that fails to write or to sync never makes a flush say what is not so."""

from __future__ import annotations

import pytest

from ._sync_errors import run


@pytest.mark.parametrize(
    ("scheme", "call", "when"),
    [
        ("file", "pwritev2", "1+2"),
        ("file", "fsync", "2+3"),  # the first is the constructor's, which says so at once
        ("sqlite", "fdatasync", "1+2"),
        ("sqlite", "pwrite64", "5"),
        ("sqlite", "fsync", "1"),
        ("sqlite", "pwritev2", "1"),
    ],
)
def test_calls_that_fail_now_and_then_are_made_good(scheme: str, call: str, when: str) -> None:
    told = run(scheme, call, "EIO", when)
    assert told.injected > 0
    assert told.stored == 5


@pytest.mark.parametrize(
    ("scheme", "call", "error", "when"),
    [
        ("file", "pwritev2", "EIO", "3+"),
        ("file", "fsync", "EIO", "3+"),
        ("file", "pwritev2", "ENOSPC", "3+"),
        ("sqlite", "fdatasync", "EIO", "6+"),
        ("sqlite", "pwrite64", "ENOSPC", "20+"),
    ],
)
def test_calls_that_go_on_failing_are_told(scheme: str, call: str, error: str, when: str) -> None:
    told = run(scheme, call, error, when, seconds=0.3)
    assert told.injected > 0
    assert told.refused > 1
    assert told.stored < 5


@pytest.mark.parametrize(
    ("flaw", "when", "message"),
    [("ignore_errors", "1+", "was acknowledged"), ("sync_again", "1+2", "its sync had failed")],
)
def test_a_disk_that_is_trusted_too_far_is_found(flaw: str, when: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        run("file", "pwritev2", "EIO", when, flaw=flaw)
