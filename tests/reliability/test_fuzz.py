"""The fuzzer goes through all that reads, finds nothing, and finds what is broken on purpose."""

from __future__ import annotations

import pytest

from ._fuzz import KINDS, fuzz, need_fuzzer


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_go_new_ways_are_read_rightly_or_refused(kind: str) -> None:
    need_fuzzer()
    counts = fuzz(kind, 100 if kind == "databases" else 2_000, seed=5)
    assert counts["inputs"] >= 100
    assert counts["paths"] > 1


@pytest.mark.parametrize(
    ("flaw", "kind", "message"),
    [
        ("any_path", "manifests", r"a path that leads out|an absolute path"),
        ("no_checksum", "records", "a wrong state"),
        ("names_as_they_are", "keys", "a name that"),
        ("any_error", "regions", "ValueError"),
        ("endless", "urls", "timeout"),
    ],
)
def test_the_fuzzer_finds_what_is_broken(flaw: str, kind: str, message: str) -> None:
    need_fuzzer()
    with pytest.raises(AssertionError, match=message):
        fuzz(kind, 100_000, seed=5, flaw=flaw)
